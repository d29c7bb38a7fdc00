"""Classifier-free guidance: a value that combines two predictions into one."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Guidance:
    """Strength and range of classifier-free guidance.

    Attributes:
        scale: w of arXiv 2207.12598 in Imagen's definition (arXiv 2205.11487, equation 2). At 1,
            the result is the conditional prediction.
        rescale: φ of arXiv 2305.08891, equation 16. 0 is plain guidance. At 1, the result has the
            standard deviation of the conditional prediction.
        interval: the part of the denoising range in which guidance acts, from 0 (pure noise) to 1
            (clean), after arXiv 2404.07724. Outside it, the batch has no unconditional row.
    """

    scale: float
    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    def acts(self, progress: float) -> bool:
        """Return whether guidance acts at this point, from 0 (pure noise) to 1 (clean)."""
        return self.scale > 1 and self.interval[0] <= progress <= self.interval[1]

    def __call__(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Return the guided prediction from two predictions [1, C, h, w]."""
        guided = unconditional + self.scale * (conditional - unconditional)
        if not self.rescale:
            return guided
        dims = list(range(1, guided.ndim))
        matched = guided * (conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True))
        return self.rescale * matched + (1 - self.rescale) * guided


def embed_guidance_scale(scale: float, width: int) -> Tensor:
    """Return the sinusoid [1, width] of a guidance scale for a network that was distilled with it.

    Such networks (LCM, arXiv 2310.04378, section 4.2) take the guidance scale as an input beside
    the timestep, and run without an unconditional row.

    Args:
        scale: w of arXiv 2207.12598 in Imagen's definition; the network takes w - 1, at least 0.
        width: the width of the network's input.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32) / max(1, half - 1)
    angles = 1000 * max(0.0, scale - 1) * torch.exp(-math.log(10_000) * exponents)
    embedding = torch.cat([angles.sin(), angles.cos()])
    return torch.nn.functional.pad(embedding, (0, width % 2))[None]
