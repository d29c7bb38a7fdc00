"""The denoising loop: a `Trajectory` is a running plan, `step` runs the network for all of them.

Text to image, image to image and all other tasks differ only in the `Plan` of a `Trajectory`. The
library, the engine and the trainer's previews all run this loop:

    while live := [t for t in trajectories if not t.done]:
        step(live)
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from overpaint.diffusion.conditioning import Row
from overpaint.diffusion.noise import NoiseSource
from overpaint.diffusion.plan import Plan
from overpaint.diffusion.samplers import Evaluate


class Trajectory:
    """A running plan; the only mutable object of the loop.

    Attributes:
        plan: the current stage's plan.
        pending: the evaluation that the sampler waits for; None when the trajectory is done.
        latent: the result [1, C, h, w]; None until the trajectory is done.
        denoised: the latest estimate of the result, for previews.
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.pending: Evaluate | None = None
        self.latent: Tensor | None = None
        self.denoised: Tensor | None = None
        self._noise_source = NoiseSource(plan.seed, plan.variation)
        self._finished_stage_steps = 0
        self._enter_stage(plan)

    @property
    def done(self) -> bool:
        """True if the sampler of the last stage has returned."""
        return self.pending is None

    @property
    def steps_done(self) -> int:
        """The number of completed steps, over all stages."""
        if self.pending is None:
            return self._finished_stage_steps
        own = sum(s >= self.pending.sigma for s in self.plan.sigmas[1:])
        return self._finished_stage_steps + own

    def rows(self) -> list[Row]:
        """Return the rows of the pending evaluation: one, or two under guidance."""
        if self.pending is None:
            return []
        x, sigma, plan = self.pending.x, self.pending.sigma, self.plan
        row = Row(x, sigma, plan.positive)
        guided = self.pending.guided and plan.guidance.acts(plan.network.schedule.progress(sigma))
        if plan.negative and guided:
            return [row, Row(x, sigma, plan.negative)]
        return [row]

    def send(self, predictions: Sequence[Tensor]) -> None:
        """Send the network's predictions for `rows()` to the sampler.

        Raises:
            ValueError: the trajectory is done.
        """
        if self.pending is None:
            raise ValueError("This trajectory is done; its result is in `latent`.")
        prediction = predictions[0] if len(predictions) == 1 else self.plan.guidance(*predictions)
        network, asked = self.plan.network, self.pending
        denoised = network.denoised(asked.x, asked.sigma, prediction)
        self.denoised = denoised = self.plan.constraint.denoised(denoised, asked.sigma)
        self._resume(lambda: self._sampler.send(denoised))

    def _enter_stage(self, plan: Plan) -> None:
        self.plan = plan
        noise = plan.noise(self._noise_source)
        self._sampler = plan.sampler(plan.start(noise), plan.sigmas, noise)
        self._resume(lambda: next(self._sampler))

    def _resume(self, run_sampler: Callable[[], Evaluate]) -> None:
        try:
            self.pending = run_sampler()
        except StopIteration as stop:
            self._finished_stage_steps += len(self.plan.sigmas) - 1
            if self.plan.then:
                self._enter_stage(self.plan.then.start_from(stop.value))
            else:
                self.pending, self.latent = None, stop.value


def step(trajectories: Sequence[Trajectory]) -> None:
    """Run the network once for all trajectories, and advance each to its next evaluation.

    Args:
        trajectories: unfinished trajectories of one network and one latent shape. Their prompts,
            strengths, steps, samplers, guidance and seeds may differ.

    Raises:
        ValueError: the trajectories have different networks or latent shapes.
    """
    for trajectory, predictions in zip(trajectories, evaluate(trajectories), strict=True):
        advance(trajectory, predictions)


@torch.inference_mode()
def evaluate(trajectories: Sequence[Trajectory]) -> list[Sequence[Tensor]]:
    """Return the network's predictions for each trajectory, without changing the trajectories.

    This is the first half of `step`.
    """
    network, shape = trajectories[0].plan.network, trajectories[0].plan.shape
    if any(t.plan.network is not network or t.plan.shape != shape for t in trajectories):
        raise ValueError("All trajectories of a step must have one network and one latent shape.")
    rows = [trajectory.rows() for trajectory in trajectories]
    predictions = network.predict([row for own in rows for row in own])
    return [own.split(1) for own in predictions.split([len(own) for own in rows])]


@torch.inference_mode()
def advance(trajectory: Trajectory, predictions: Sequence[Tensor]) -> None:
    """Advance a trajectory to its next evaluation, to its next stage or to its end.

    This is the second half of `step`.
    """
    trajectory.send(predictions)


def group_by_batch_key(trajectories: Sequence[Trajectory]) -> Iterator[Sequence[Trajectory]]:
    """Yield groups of trajectories that can share a step: one network, one latent shape."""

    def batch_key(trajectory: Trajectory) -> tuple[int, tuple[int, int, int]]:
        return id(trajectory.plan.network), trajectory.plan.shape

    for _, group in groupby(sorted(trajectories, key=batch_key), key=batch_key):
        yield list(group)
