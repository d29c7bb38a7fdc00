"""Langevin steps for masks: before each step of a sampler, the painted part looks at the kept one.

A mask alone keeps its part of the picture at the right noise level, but the painted part follows it
only a little, since no step asks whether the two fit. With a Gaussian of correlation 0.9 whose
first value is kept at 1.5, thirty steps paint a mean of 0.65 in place of 1.35. Langevin steps at
each noise level sample both parts together, as in LanPaint (Zheng et al. 2025, arXiv 2502.03491).
They need no special network.
"""

from collections.abc import Generator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from overpaint.diffusion.constraint import MaskConstraint, Unconstrained
from overpaint.diffusion.samplers import Evaluate, Noise, Sampler, Steps
from overpaint.diffusion.schedule import Sigmas

if TYPE_CHECKING:
    from torch import Tensor

RATE = 0.2
"""Share of the way to the estimate that a Langevin step goes. Larger steps leave too much noise in
pictures, and smaller ones need more of them."""

GUIDANCE = 4.0
"""λ of LanPaint's bidirectional guidance. The kept part is drawn toward the picture and away from
the network's estimate of it, so that differences between the two move the painted part."""


@dataclass(frozen=True, eq=False)
class FreeConstraint(Unconstrained):
    """A mask that sets the start only; `add_langevin_steps` sets the estimates.

    Attributes:
        constraint: the mask.
    """

    constraint: MaskConstraint

    def start(self, x: "Tensor", noise: "Tensor", sigma: float) -> "Tensor":
        """Return the start that the mask sets."""
        return self.constraint.start(x, noise, sigma)


def add_langevin_steps(sampler: Sampler, constraint: MaskConstraint, count: int) -> Sampler:
    """Return a sampler that takes Langevin steps before each step of another one.

    The plan of the sampler must have a `FreeConstraint`. A multistep sampler loses its history,
    because the latent moves between its steps.

    Args:
        sampler: takes the steps between the noise levels.
        constraint: the mask.
        count: Langevin steps at each noise level, each with one evaluation of the network.
    """

    def run(x: "Tensor", sigmas: Sigmas, noise: Noise) -> Steps:
        for pair in pairwise(sigmas):
            for _ in range(count):
                x = yield from _take_langevin_step(x, pair[0], constraint, noise)
            steps = sampler(x, Sigmas(pair, sigmas.schedule), noise)
            x = yield from _constrain(steps, constraint)
        return x

    return run


def _take_langevin_step(
    x: "Tensor", sigma: float, constraint: MaskConstraint, noise: Noise
) -> Steps:
    """Move x at its noise level by a step of the Langevin equation.

    The score of both parts is (target − x) / σ². The target of the painted part is the network's
    estimate D, and that of the kept part is (1 + λ) y − λ D, where y is the picture (arXiv
    2502.03491, equation 9). The step of the kept part is shorter by the factor 1 + λ.

    Guidance does not act, because a guided estimate is not that of a distribution: repeated steps
    exaggerate colors. A step without it has one row.
    """
    estimate = yield Evaluate(x, sigma, guided=False)
    kept = constraint.denoised(estimate, sigma)
    target = kept + GUIDANCE * (kept - estimate)
    rate = torch.where(constraint.is_painted(sigma), RATE, RATE / (1 + GUIDANCE)).to(x)
    return x + rate * (target - x) + (2 * rate).sqrt() * sigma * noise()


def _constrain(steps: Steps, constraint: MaskConstraint) -> "Generator[Evaluate, Tensor, Tensor]":
    """Run a sampler on estimates that the mask constrains."""
    asked = next(steps)
    while True:
        estimate = yield asked
        try:
            asked = steps.send(constraint.denoised(estimate, asked.sigma))
        except StopIteration as stop:
            return stop.value
