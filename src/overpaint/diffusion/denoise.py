"""The one loop: trajectories hold what is running, `step` evaluates the network for all of them.

Text to image, image to image and everything that is built on them differ only in the `Plan` that
a `Trajectory` starts from. Whoever drives it (library, engine, trainer's previews) does no more
than

    while live := [t for t in trajectories if not t.done]:
        step(live)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from overpaint.diffusion.controlnet import Control, Controls
from overpaint.models.adapters import Adapters, changes_at
from overpaint.nn.attention import Context
from overpaint.nn.lowrank import Change
from overpaint.nn.row_adapters import Sides

if TYPE_CHECKING:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from overpaint.diffusion.plan import Plan
    from overpaint.diffusion.samplers import Evaluate
    from overpaint.diffusion.schedule import NoiseSchedule
    from overpaint.models.adapters import Weights
    from overpaint.models.model import Prediction


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the network is told about one row, besides the noisy latent.

    Attributes:
        context: the encoded prompt, with each layer's keys and values once they were needed.
        pooled: [1, P].
        size_ids: [1, 6], fp32: original height, width, crop top, left, target height, width
            (arXiv 2307.01952 section 2.2). bf16 would turn 1365 into 1368. The refiner's are
            [1, 5]: an aesthetic score in place of the target.
        channels: [1, K, h, w], laid beside the noisy latent: an inpainting network's mask and
            masked picture. None for networks that see the latent alone.
        controls: the hints that steer it.
        adapters: the LoRAs that the network is to have in it.
    """

    context: Context
    pooled: Tensor
    size_ids: Tensor
    channels: Tensor | None = None
    controls: tuple[Control, ...] = ()
    adapters: Adapters = ()


@dataclass(frozen=True)
class Row:
    """One line of the network's batch: predict the noise in `x` [1, C, h, w] at `sigma`."""

    x: Tensor
    sigma: float
    conditioning: Conditioning


class Network(Protocol):
    """The seam between the loop and a UNet: rows in, one prediction per row out."""

    @property
    def schedule(self) -> "NoiseSchedule":
        """The noise levels that it was trained on."""
        ...

    @property
    def device(self) -> torch.device:
        """Where latents live."""
        ...

    def predict(self, rows: Sequence[Row]) -> Tensor:
        """What the network says of each row, [rows, C, h, w] in x's dtype, in its own terms."""
        ...

    def denoised(self, x: Tensor, sigma: float, prediction: Tensor) -> Tensor:
        """The clean latent that a prediction implies."""
        ...


Stacked = tuple[Context, Tensor | None, dict[str, Tensor]]
"""A batch's context, channels and added conditions."""


class UNet:
    """A `Network` of a UNet on a device, in which `nn.blocks.install` has put our blocks."""

    def __init__(
        self,
        unet: "UNet2DConditionModel",
        schedule: "NoiseSchedule",
        prediction: "Prediction" = "epsilon",
        weights: "Weights | None" = None,
    ):
        self.schedule = schedule
        self.prediction: Prediction = prediction
        self.device = unet.device
        self.dtype = unet.dtype  # diffusers walks all modules for these two
        self._unet = unet
        self._weights = weights
        self._controls = Controls(schedule)
        self._sides = Sides(unet, _layers, _changes)
        self._last: tuple[tuple[Conditioning, ...], Stacked] | None = None

    def predict(self, rows: Sequence[Row]) -> Tensor:
        """One call of the UNet for rows of the same shape, each at its own noise level.

        Adapters that all rows share are merged into the weights; where rows differ, each has its
        own beside the pristine weights.
        """
        sets = [row.conditioning.adapters for row in rows]
        if self._weights is None or len(set(sets)) == 1:
            if self._weights is not None:
                self._weights.use("unet", sets[0])
            return self._predict(rows)
        self._weights.use("unet", ())
        order = sorted(range(len(rows)), key=lambda i: (not sets[i], sets.index(sets[i])))
        back = torch.tensor(order, device=self.device).argsort()
        # Rows that have something lie side by side: then they need not be gathered in every layer.
        with self._sides.lent(tuple(sets[i] for i in order)):
            return self._predict([rows[i] for i in order])[back]

    def _predict(self, rows: Sequence[Row]) -> Tensor:
        x = torch.cat([row.x * (row.sigma**2 + 1) ** -0.5 for row in rows]).to(self.dtype)
        t = torch.tensor([self.schedule.timestep(row.sigma) for row in rows], device=self.device)
        context, channels, added = self._stack(tuple(row.conditioning for row in rows))
        steered = self._controls.residuals(rows, x, t, added)
        if channels is not None:
            x = torch.cat([x, channels], dim=1)
        seen: dict[str, Any] = {"added_cond_kwargs": added, "return_dict": False, **steered}
        predicted = self._unet(x, t, context, **seen)[0]
        return predicted.to(rows[0].x.dtype)

    def denoised(self, x: Tensor, sigma: float, prediction: Tensor) -> Tensor:
        """x₀ from ε, v (arXiv 2202.00512, appendix D) or x₀, in the space x = x₀ + σ·ε."""
        match self.prediction:
            case "epsilon":
                return x - sigma * prediction
            case "v_prediction":
                return x / (sigma**2 + 1) - prediction * (sigma / (sigma**2 + 1) ** 0.5)
            case "sample":
                return prediction

    def _stack(self, members: tuple[Conditioning, ...]) -> Stacked:
        """The batch's conditioning, kept for as long as the same rows come again."""
        last = self._last
        if last is None or last[0] != members:
            context = Context.stack([m.context for m in members])
            beside = [m.channels for m in members if m.channels is not None]
            channels = torch.cat(beside).to(self.dtype) if beside else None
            added = {
                "text_embeds": torch.cat([m.pooled for m in members]),
                "time_ids": torch.cat([m.size_ids for m in members]),
            }
            self._last = last = (members, (context, channels, added))
        return last[1]


def _layers(adapters: Adapters) -> Iterator[str]:
    """The layers of the UNet that a row with these adapters has changed."""
    return (layer for adapter in adapters for layer in adapter.changes("unet"))


def _changes(adapters: Adapters, layer: str) -> list[tuple[Change, float]]:
    """What a row with these adapters has of a layer of the UNet."""
    return changes_at(adapters, "unet", layer)


class Trajectory:
    """A plan under way: the only mutable object.

    Attributes:
        plan: what is being run; where it has stages, the one that is under way.
        pending: the evaluation that the sampler waits for; None when it is done.
        latent: the result [1, C, h, w], once done.
        denoised: the latest estimate of the result, for previews.
    """

    def __init__(self, plan: "Plan"):
        self.plan = plan
        self.pending: Evaluate | None = None
        self.latent: Tensor | None = None
        self.denoised: Tensor | None = None
        self._generator = torch.Generator().manual_seed(plan.seed)
        self._behind = 0
        self._enter(plan)

    @property
    def done(self) -> bool:
        """Whether the sampler has returned."""
        return self.pending is None

    @property
    def steps_done(self) -> int:
        """How many of the plan's steps lie behind."""
        if self.pending is None:
            return self._behind
        return self._behind + sum(s >= self.pending.sigma for s in self.plan.sigmas[1:])

    def rows(self) -> list[Row]:
        """What the pending evaluation needs from the network: one row, or two under guidance."""
        if self.pending is None:
            return []
        x, sigma, plan = self.pending.x, self.pending.sigma, self.plan
        row = Row(x, sigma, plan.positive)
        if plan.negative and plan.guidance.acts(plan.network.schedule.progress(sigma)):
            return [row, Row(x, sigma, plan.negative)]
        return [row]

    def send(self, predictions: Sequence[Tensor]) -> None:
        """Hand the network's predictions for `rows()` to the sampler."""
        if self.pending is None:
            raise ValueError("this trajectory is done; its latent is in `latent`")
        prediction = predictions[0] if len(predictions) == 1 else self.plan.guidance(*predictions)
        network, asked = self.plan.network, self.pending
        denoised = network.denoised(asked.x, asked.sigma, prediction)
        self.denoised = denoised = self.plan.constraint.denoised(denoised, asked.sigma)
        self._resume(lambda: self._sampler.send(denoised))

    def _enter(self, plan: "Plan") -> None:
        self.plan = plan
        noise = plan.noise(self._generator)
        self._sampler = plan.sampler(plan.start(noise), plan.sigmas, noise)
        self._resume(lambda: next(self._sampler))

    def _resume(self, sampler: Callable[[], "Evaluate"]) -> None:
        try:
            self.pending = sampler()
        except StopIteration as stop:
            self._behind += len(self.plan.sigmas) - 1
            if self.plan.then:
                self._enter(self.plan.then.after(stop.value))
            else:
                self.pending, self.latent = None, stop.value


def step(trajectories: Sequence[Trajectory]) -> None:
    """Evaluate the network once for all trajectories, and advance each to its next evaluation.

    Args:
        trajectories: unfinished, of one network and one latent shape; otherwise as unlike as can
            be: prompts, strengths, steps, samplers, guidance, seeds.

    Raises:
        ValueError: of several networks or shapes.
    """
    for trajectory, predictions in zip(trajectories, evaluate(trajectories), strict=True):
        advance(trajectory, predictions)


@torch.inference_mode()
def evaluate(trajectories: Sequence[Trajectory]) -> list[Sequence[Tensor]]:
    """The first half of `step`: what the network says to each trajectory, which stays as it is."""
    network, shape = trajectories[0].plan.network, trajectories[0].plan.shape
    if any(t.plan.network is not network or t.plan.shape != shape for t in trajectories):
        raise ValueError("a step takes trajectories of one network and one latent shape")
    rows = [trajectory.rows() for trajectory in trajectories]
    predictions = network.predict([row for own in rows for row in own])
    return [own.split(1) for own in predictions.split([len(own) for own in rows])]


@torch.inference_mode()
def advance(trajectory: Trajectory, predictions: Sequence[Tensor]) -> None:
    """The second half: on to the next evaluation, the next stage, or the end."""
    trajectory.send(predictions)


def alike(trajectories: Sequence[Trajectory]) -> Iterator[Sequence[Trajectory]]:
    """Groups that may share a step: of one network and one latent shape."""

    def kind(trajectory: Trajectory) -> tuple[int, tuple[int, int, int]]:
        return id(trajectory.plan.network), trajectory.plan.shape

    for _, group in groupby(sorted(trajectories, key=kind), key=kind):
        yield list(group)
