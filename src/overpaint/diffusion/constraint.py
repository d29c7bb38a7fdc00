"""Constraints on the latent during denoising: keep the unmasked part of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Constraint(Protocol):
    """A part of the plan that changes the start and every estimate of the clean latent."""

    def start(self, x: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Return the latent to start from.

        Args:
            x: [1, C, h, w], the start without a constraint.
            noise: [1, C, h, w], the unit noise that `x` contains.
            sigma: the noise level.
        """
        ...

    def denoised(self, denoised: Tensor, sigma: float) -> Tensor:
        """Return the estimate of the clean latent for the sampler, from the network's estimate."""
        ...


class Unconstrained:
    """No constraint."""

    def start(self, x: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Return `x` unchanged."""
        del noise, sigma
        return x

    def denoised(self, denoised: Tensor, sigma: float) -> Tensor:
        """Return `denoised` unchanged."""
        del sigma
        return denoised


@dataclass(frozen=True, eq=False)
class MaskConstraint:
    """Keeps a picture's latent where a mask is 0, and for a share of the steps where it is gray.

    Differential diffusion (Levin and Fried 2023, arXiv 2306.00950, algorithm 1): a cell whose mask
    is m is repainted in the last share m of the steps. Before that, its estimate is the picture.
    Every sampler then keeps the cell at the picture plus noise of the right variance, so that
    nothing has to be written into x. Deterministic samplers keep the noise of the start.

    Attributes:
        latent: of the picture, [1, C, h, w].
        mask: [1, 1, h, w] in 0..1.
        sigmas: of the plan; the mask divides their steps.
    """

    latent: Tensor
    mask: Tensor
    sigmas: Sequence[float]

    def start(self, x: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Return the picture plus noise, except for cells repainted from the first step on."""
        return torch.where(self.is_painted(sigma), x, self.latent + sigma * noise)

    def denoised(self, denoised: Tensor, sigma: float) -> Tensor:
        """Return the picture where it is still kept, and the network's estimate elsewhere."""
        return torch.where(self.is_painted(sigma), denoised, self.latent)

    def is_painted(self, sigma: float) -> Tensor:
        """Return which cells [1, 1, h, w] are repainted at a noise level.

        At step i of n, these are the cells with a mask ≥ 1 − i/n.
        """
        steps = len(self.sigmas) - 1
        step = sum(s >= sigma for s in self.sigmas[1:-1])
        return self.mask >= 1 - step / steps
