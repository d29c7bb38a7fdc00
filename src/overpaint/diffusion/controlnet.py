"""Run ControlNets and T2I-Adapters for the rows of a batch, and sum their residuals for the UNet.

Sources: arXiv 2302.05543 (ControlNet), arXiv 2302.08453 (T2I-Adapter).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from overpaint.diffusion.conditioning import ControlInput, Row
from overpaint.diffusion.schedule import NoiseSchedule
from overpaint.models.controlnet import ControlNet
from overpaint.nn.attention import Context
from overpaint.nn.host import copy_to_device
from overpaint.registry import Weighting

SOFT_LEVEL_FACTOR = 0.825
"""The ratio of the scales of adjacent levels under "soft" weights: the finer level gets less."""

BatchKey = tuple[Any, ...]
"""The net first, then everything else that rows must share to share a call of the net."""


def level_weights(weighting: Weighting, count: int) -> Tensor:
    """Return the factor of the scale at each level, finest first, middle last; fp32 [count].

    "soft" is A1111's "my prompt is more important"; "guess" is diffusers' guess mode.
    """
    match weighting:
        case "balanced":
            return torch.ones(count)
        case "soft":
            return SOFT_LEVEL_FACTOR ** torch.arange(count - 1, -1, -1.0)
        case "guess":
            return torch.logspace(-1, 0, count)


@dataclass(frozen=True)
class _NetRow:
    """One line of a net's batch.

    Attributes:
        row: the index of the UNet row that it is for.
        controls: its control images; more than one only for a union ControlNet.
    """

    row: int
    controls: tuple[ControlInput, ...]

    @property
    def fused(self) -> bool:
        """True if a union ControlNet weighs several control images against each other."""
        return len(self.controls) > 1


class ControlNetRunner:
    """Computes the residuals of all nets for a UNet's batch.

    It caches stacked contexts, since consecutive steps mostly have the same rows.
    """

    def __init__(self, schedule: NoiseSchedule):
        self._schedule = schedule
        self._stacked: dict[BatchKey, tuple[tuple[Context, ...], Context]] = {}

    def residuals(
        self, rows: Sequence[Row], x: Tensor, t: Tensor, added: dict[str, Tensor]
    ) -> dict[str, Any]:
        """Return keyword arguments for the UNet's forward; empty if no row has an active control.

        Args:
            rows: of the batch.
            x: the UNet's input [B, C, h, w], without concatenated channels.
            t: timesteps [B].
            added: the UNet's added conditions.
        """
        batches, adapters = self._group_controls(rows)
        arguments: dict[str, Any] = {}
        if batches:
            total: list[Tensor] = []
            for key, net_rows in batches.items():
                index = _list_rows(net_rows, x.device)
                for level, part in enumerate(self._run_net(key, net_rows, rows, x, t, added)):
                    if level == len(total):
                        total.append(part.new_zeros(len(rows), *part.shape[1:]))
                    total[level].index_add_(0, index, part)
            arguments["down_block_additional_residuals"] = tuple(total[:-1])
            arguments["mid_block_additional_residual"] = total[-1]
        if adapters:
            features = [f.new_zeros(len(rows), *f.shape[1:]) for f in adapters[0][1].features]
            for row, control in adapters:
                weights = level_weights(control.weighting, len(features)).tolist()
                for total_, own, weight in zip(features, control.features, weights, strict=True):
                    total_[row] += _apply_mask(own[0], control) * (control.scale * weight)
            arguments["down_intrablock_additional_residuals"] = features
        return arguments

    def _group_controls(
        self, rows: Sequence[Row]
    ) -> tuple[dict[BatchKey, list[_NetRow]], list[tuple[int, ControlInput]]]:
        """Return the batches of the ControlNets, and the T2I-Adapters with their row indices."""
        batches: dict[BatchKey, list[_NetRow]] = defaultdict(list)
        adapters: list[tuple[int, ControlInput]] = []
        for number, row in enumerate(rows):
            if not (controls := row.conditioning.controls):
                continue
            progress = self._schedule.progress(row.sigma)
            fused: dict[tuple[Any, ...], list[ControlInput]] = defaultdict(list)
            for control in controls:
                if not control.acts(progress):
                    continue
                if control.net.kind == "adapter":
                    adapters.append((number, control))
                elif control.net.kind == "union" and control.mask is None:
                    fused[control.net, control.weighting, control.context].append(control)
                else:
                    net_row = _NetRow(number, (control,))
                    batches[_batch_key(net_row)].append(net_row)
            for together in fused.values():
                net_row = _NetRow(number, tuple(together))
                batches[_batch_key(net_row)].append(net_row)
        return batches, adapters

    def _run_net(
        self,
        key: BatchKey,
        net_rows: list[_NetRow],
        rows: Sequence[Row],
        x: Tensor,
        t: Tensor,
        added: dict[str, Tensor],
    ) -> list[Tensor]:
        """Call one net once; return its weighted residuals, finest first, middle last."""
        net: ControlNet = key[0]
        index = _list_rows(net_rows, x.device)
        context = self._stack_contexts(key, net_rows, rows)
        own_added = {name: value[index] for name, value in added.items()}
        inputs: dict[str, Any] = {"added_cond_kwargs": own_added, "return_dict": False}
        features = [
            torch.cat([own.controls[i].features[0] for own in net_rows])
            for i in range(len(net_rows[0].controls))
        ]
        if net.kind == "union":
            types = [control.type for control in net_rows[0].controls]
            marks = torch.zeros(len(net_rows), net.types)
            marks[:, types] = 1
            marks = copy_to_device(marks, x.device, x.dtype)
            inputs |= {
                "control_type": marks,
                "control_type_idx": types,
                "conditioning_scale": [c.scale for c in net_rows[0].controls]
                if net_rows[0].fused
                else [1.0],
            }
            down, middle = net.module(x[index], t[index], context, features, **inputs)
        else:
            down, middle = net.module(x[index], t[index], context, features[0], **inputs)
        parts = [*down, middle]
        weights = torch.stack([_residual_weights(own, len(parts)) for own in net_rows])
        weights = copy_to_device(weights, x.device, x.dtype)
        return [
            torch.cat(
                [_apply_mask(p[i : i + 1], own.controls[0]) for i, own in enumerate(net_rows)]
            )
            * weights[:, level, None, None, None]
            for level, p in enumerate(parts)
        ]

    def _stack_contexts(
        self, key: BatchKey, net_rows: list[_NetRow], rows: Sequence[Row]
    ) -> Context:
        parts = tuple(
            own.controls[0].context or rows[own.row].conditioning.context for own in net_rows
        )
        last = self._stacked.get(key)
        if last is None or last[0] != parts:
            self._stacked = {k: v for k, v in self._stacked.items() if k[0] is not key[0]}
            self._stacked[key] = last = (parts, Context.stack(parts))
        return last[1]


def _batch_key(net_row: _NetRow) -> BatchKey:
    """Return the key of a line: the net, and for a union ControlNet its types and their scales."""
    first = net_row.controls[0]
    if first.net.kind != "union":
        return (first.net,)
    types = tuple(control.type for control in net_row.controls)
    return (first.net, types, *(c.scale for c in net_row.controls if net_row.fused))


def _list_rows(net_rows: Sequence[_NetRow], device: torch.device) -> Tensor:
    """Return the indices of the UNet's rows that lines are for, int64 [lines]."""
    return copy_to_device(torch.tensor([own.row for own in net_rows]), device)


def _residual_weights(net_row: _NetRow, count: int) -> Tensor:
    """Return the weight of each level.

    A union ControlNet applies the scales of several control images itself.
    """
    first = net_row.controls[0]
    return level_weights(first.weighting, count) * (1.0 if net_row.fused else first.scale)


def _apply_mask(part: Tensor, control: ControlInput) -> Tensor:
    """Multiply a residual [1, C, h, w] or [C, h, w] by the control's mask."""
    if control.mask is None:
        return part
    mask = F.interpolate(control.mask, part.shape[-2:], mode="area")
    return part * mask.to(part)[0]
