"""The noise of a picture: from one seed, or mixed from the noise of two seeds."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_COSINE = 0.9995
"""Two columns of noise with a larger cosine, or one below its negative, count as parallel."""


@dataclass(frozen=True)
class Variation:
    """A second seed, whose noise is mixed into that of the first one.

    Attributes:
        seed: the second seed.
        strength: 0 gives the noise of the first seed, 1 that of the second one.
    """

    seed: int
    strength: float


class NoiseSource:
    """Draws unit noise on the CPU in fp32. Its draws depend only on seeds and shapes.

    With a variation, every draw is mixed from the draws of two generators. AUTOMATIC1111 mixes only
    the first draw, so stochastic samplers do not reach the second seed's picture at strength 1.
    """

    def __init__(self, seed: int, variation: Variation | None = None):
        """Start from a seed, or from two.

        Args:
            seed: of the first generator.
            variation: the second seed and its strength.
        """
        if variation and variation.strength == 1:
            seed, variation = variation.seed, None
        if variation and (variation.strength == 0 or variation.seed == seed):
            variation = None
        self._strength = variation.strength if variation else 0.0
        self._first = torch.Generator().manual_seed(seed)
        self._second = torch.Generator().manual_seed(variation.seed) if variation else None

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """Return the next noise of a shape, [N, C, h, w]."""
        first = torch.randn(shape, generator=self._first)
        if self._second is None:
            return first
        return slerp(first, torch.randn(shape, generator=self._second), self._strength)


def slerp(low: Tensor, high: Tensor, fraction: float) -> Tensor:
    """Interpolate spherically between two noises, which keeps the variance of noise.

    Like AUTOMATIC1111 (modules/rng.py), each column of each channel is a vector. Parallel columns
    have no arc between them. They are mixed linearly and scaled to unit variance.

    Args:
        low: the noise at fraction 0, [N, C, h, w].
        high: the noise at fraction 1, of the same shape.
        fraction: between 0 and 1.
    """
    lengths = torch.linalg.vector_norm(low, dim=-2, keepdim=True) * torch.linalg.vector_norm(
        high, dim=-2, keepdim=True
    )
    cosine = (low * high).sum(dim=-2, keepdim=True) / lengths
    parallel = cosine.isnan() | (cosine.abs() > MAX_COSINE)
    angle = torch.acos(torch.where(parallel, torch.zeros_like(cosine), cosine))
    arc = (
        torch.sin((1 - fraction) * angle) * low + torch.sin(fraction * angle) * high
    ) / torch.sin(angle)
    line = ((1 - fraction) * low + fraction * high) / math.hypot(1 - fraction, fraction)
    return torch.where(parallel, line, arc)
