"""Control nets as a place of the plan: what they add to the UNet, row by row.

arXiv 2302.05543 (ControlNet), arXiv 2302.08453 (T2I-Adapter).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from overpaint.models.controlnet import ControlNet
from overpaint.nn.attention import Context
from overpaint.registry import Weighting

if TYPE_CHECKING:
    from overpaint.diffusion.denoise import Row
    from overpaint.diffusion.schedule import NoiseSchedule
    from overpaint.diffusion.tiling.windows import Window

SOFTER = 0.825
"""By how much less a finer level is steered under soft weights."""


@dataclass(frozen=True, eq=False)
class Control:
    """A hint that steers a row.

    Attributes:
        net: that follows it.
        hint: [1, 3, H, W] in 0..1, of the canvas's size.
        features: what the net sees in it: the same at every step.
        scale: how strongly it steers.
        interval: the part of the denoising range, from 0 (pure noise) to 1 (clean), in which it
            acts; its end is not in it, unless that is 1.
        weighting: how the scale is shared out over the levels.
        mask: [1, 1, h, w]: where it acts; None for everywhere.
        type: of control, for a union net.
        context: what the net reads in place of the prompt; None for the prompt.
    """

    net: ControlNet
    hint: Tensor
    features: tuple[Tensor, ...]
    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    weighting: Weighting = "balanced"
    mask: Tensor | None = None
    type: int | None = None
    context: Context | None = None

    def acts(self, progress: float) -> bool:
        """Whether it acts at this point, 0 (pure noise) to 1 (clean)."""
        start, end = self.interval
        return start <= progress and (progress < end or end == 1)

    def through(self, window: "Window", factor: int) -> "Control":
        """What a window sees of it.

        Args:
            window: in latent cells.
            factor: pixels per cell.
        """
        hint = window.of(self.hint, factor)
        return replace(
            self,
            hint=hint,
            features=self.net.see(hint),
            mask=None if self.mask is None else window.of(self.mask),
        )


def levels(weighting: Weighting, count: int) -> Tensor:
    """The share of the scale that each level gets, finest first, the middle last; fp32 [count].

    "soft" is A1111's ("my prompt is more important"), "guess" diffusers' guess mode.
    """
    match weighting:
        case "balanced":
            return torch.ones(count)
        case "soft":
            return SOFTER ** torch.arange(count - 1, -1, -1.0)
        case "guess":
            return torch.logspace(-1, 0, count)


@dataclass(frozen=True)
class _Run:
    """One line of a net's batch: the row that it is for, and its hints (several of a union's)."""

    row: int
    controls: tuple[Control, ...]

    @property
    def fused(self) -> bool:
        """Whether a union net weighs several hints against each other."""
        return len(self.controls) > 1


class Controls:
    """What all nets add to a UNet's batch; keeps contexts while the same rows come again."""

    def __init__(self, schedule: "NoiseSchedule"):
        self._schedule = schedule
        self._stacked: dict[tuple[Any, ...], tuple[tuple[Context, ...], Context]] = {}

    def residuals(
        self, rows: "Sequence[Row]", x: Tensor, t: Tensor, added: dict[str, Tensor]
    ) -> dict[str, Any]:
        """Keywords of the UNet's forward; none where no row has a control that acts.

        Args:
            rows: of the batch.
            x: as the UNet sees them, [B, C, h, w], without further channels.
            t: timesteps [B].
            added: the UNet's added conditions.
        """
        batches, adapters = self._runs(rows)
        found: dict[str, Any] = {}
        if batches:
            total: list[Tensor] = []
            for key, runs in batches.items():
                index = torch.tensor([run.row for run in runs], device=x.device)
                for level, part in enumerate(self._run(key, runs, rows, x, t, added)):
                    if level == len(total):
                        total.append(part.new_zeros(len(rows), *part.shape[1:]))
                    total[level].index_add_(0, index, part)
            found["down_block_additional_residuals"] = tuple(total[:-1])
            found["mid_block_additional_residual"] = total[-1]
        if adapters:
            features = [f.new_zeros(len(rows), *f.shape[1:]) for f in adapters[0][1].features]
            for row, control in adapters:
                weights = levels(control.weighting, len(features)).tolist()
                for total_, own, weight in zip(features, control.features, weights, strict=True):
                    total_[row] += _masked(own[0], control) * (control.scale * weight)
            found["down_intrablock_additional_residuals"] = features
        return found

    def _runs(
        self, rows: "Sequence[Row]"
    ) -> tuple[dict[tuple[Any, ...], list[_Run]], list[tuple[int, Control]]]:
        """The batches that nets are to run, and the rows' adapters."""
        batches: dict[tuple[Any, ...], list[_Run]] = defaultdict(list)
        adapters: list[tuple[int, Control]] = []
        for number, row in enumerate(rows):
            if not (controls := row.conditioning.controls):
                continue
            progress = self._schedule.progress(row.sigma)
            fused: dict[tuple[Any, ...], list[Control]] = defaultdict(list)
            for control in controls:
                if not control.acts(progress):
                    continue
                if control.net.kind == "adapter":
                    adapters.append((number, control))
                elif control.net.kind == "union" and control.mask is None:
                    fused[control.net, control.weighting, control.context].append(control)
                else:
                    run = _Run(number, (control,))
                    batches[_key(run)].append(run)
            for together in fused.values():
                run = _Run(number, tuple(together))
                batches[_key(run)].append(run)
        return batches, adapters

    def _run(
        self,
        key: tuple[Any, ...],
        runs: list[_Run],
        rows: "Sequence[Row]",
        x: Tensor,
        t: Tensor,
        added: dict[str, Tensor],
    ) -> list[Tensor]:
        """One call of one net: its weighted residuals, finest first, the middle last."""
        net: ControlNet = key[0]
        index = torch.tensor([run.row for run in runs], device=x.device)
        context = self._context(key, runs, rows)
        own = {name: value[index] for name, value in added.items()}
        seen: dict[str, Any] = {"added_cond_kwargs": own, "return_dict": False}
        shown = [
            torch.cat([run.controls[i].features[0] for run in runs])
            for i in range(len(runs[0].controls))
        ]
        if net.kind == "union":
            marks = x.new_zeros(len(runs), net.types)
            types = [control.type for control in runs[0].controls]
            marks[:, types] = 1
            seen |= {
                "control_type": marks,
                "control_type_idx": types,
                "conditioning_scale": [c.scale for c in runs[0].controls]
                if runs[0].fused
                else [1.0],
            }
            down, middle = net.module(x[index], t[index], context, shown, **seen)
        else:
            down, middle = net.module(x[index], t[index], context, shown[0], **seen)
        parts = [*down, middle]
        weights = torch.stack([_weights(run, len(parts)) for run in runs]).to(x)
        return [
            torch.cat([_masked(p[i : i + 1], run.controls[0]) for i, run in enumerate(runs)])
            * weights[:, level, None, None, None]
            for level, p in enumerate(parts)
        ]

    def _context(self, key: tuple[Any, ...], runs: list[_Run], rows: "Sequence[Row]") -> Context:
        parts = tuple(run.controls[0].context or rows[run.row].conditioning.context for run in runs)
        last = self._stacked.get(key)
        if last is None or last[0] != parts:
            self._stacked = {k: v for k, v in self._stacked.items() if k[0] is not key[0]}
            self._stacked[key] = last = (parts, Context.stack(parts))
        return last[1]


def _key(run: _Run) -> tuple[Any, ...]:
    """What runs must share to share a call: the net, and of a union net its types and weights."""
    first = run.controls[0]
    if first.net.kind != "union":
        return (first.net,)
    types = tuple(control.type for control in run.controls)
    return (first.net, types, *(c.scale for c in run.controls if run.fused))


def _weights(run: _Run, count: int) -> Tensor:
    """The weight of each level; several hints of a union net are weighed inside it."""
    first = run.controls[0]
    return levels(first.weighting, count) * (1.0 if run.fused else first.scale)


def _masked(part: Tensor, control: Control) -> Tensor:
    """A residual [1, C, h, w] or [C, h, w], where its control acts."""
    if control.mask is None:
        return part
    mask = F.interpolate(control.mask, part.shape[-2:], mode="area")
    return part * mask.to(part)[0]
