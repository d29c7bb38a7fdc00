"""What a latent must agree with while it is denoised: the kept part of a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Constraint(Protocol):
    """A place of the plan: acts on the start and on every estimate of the clean latent."""

    def start(self, x: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """The latent to start from, given the one without a constraint.

        Args:
            x: [1, C, h, w].
            noise: of unit variance, that which is in `x`.
            sigma: the noise level.
        """
        ...

    def denoised(self, denoised: Tensor, sigma: float) -> Tensor:
        """The estimate of the clean latent that the sampler may see, of the network's."""
        ...


class Unconstrained:
    """No constraint."""

    def start(self, x: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """`x`."""
        del noise, sigma
        return x

    def denoised(self, denoised: Tensor, sigma: float) -> Tensor:
        """As it is."""
        del sigma
        return denoised


@dataclass(frozen=True, eq=False)
class MaskConstraint:
    """Keeps a picture's latent where a mask is 0, and for a part of the way where it is grey.

    Differential diffusion (Levin and Fried 2023, arXiv 2306.00950, algorithm 1): a cell whose mask
    is m takes part in the last m of the steps. Until then its estimate is the picture itself, so
    that any sampler carries it along as the picture plus noise of the right variance; nothing needs
    to be put back into x. (Deterministic samplers keep to the very noise that they started from.)

    Attributes:
        latent: of the picture, [1, C, h, w].
        mask: [1, 1, h, w] in 0..1.
        sigmas: of the plan; its steps are what the mask divides.
    """

    latent: Tensor
    mask: Tensor
    sigmas: Sequence[float]

    def start(self, x: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """The picture plus noise, but for what is painted from the first step on."""
        return torch.where(self._painted(sigma), x, self.latent + sigma * noise)

    def denoised(self, denoised: Tensor, sigma: float) -> Tensor:
        """The picture where it is (still) kept."""
        return torch.where(self._painted(sigma), denoised, self.latent)

    def _painted(self, sigma: float) -> Tensor:
        """Which cells take part at a noise level: at step i of n those of mask ≥ 1 − i/n."""
        steps = len(self.sigmas) - 1
        step = sum(s >= sigma for s in self.sigmas[1:-1])
        return self.mask >= 1 - step / steps
