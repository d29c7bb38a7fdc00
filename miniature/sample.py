"""A minimal sampler for looking at a model while it trains; the product's own is in `overpaint`."""

from __future__ import annotations

import math

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from .family import Painter, Tokenizers, noise_schedule
from .vae import decode, scaling


def karras(steps: int, low: float, high: float, rho: float = 7.0) -> Tensor:
    """`steps` sigmas from high to low and a zero (Karras et al. 2022, equation 5)."""
    ramp = torch.linspace(0, 1, steps)
    sigmas = (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return torch.cat([sigmas, torch.zeros(1)])


@torch.no_grad()
def sample(
    painter: Painter,
    vae: AutoencoderKL,
    prompts: list[str],
    *,
    seed: int = 0,
    steps: int = 30,
    guidance: float = 5.0,
    size: tuple[int, int] = (128, 128),
) -> Tensor:
    """Pictures (n, 3, h, w) in −1..1 by DPM-Solver++ 2M over a Karras schedule."""
    tokenizers = Tokenizers()
    context, pooled = painter.encode(*tokenizers([*prompts, *[""] * len(prompts)]))
    height, width = size
    ids = torch.tensor([[height, width, 0, 0, height, width]] * (2 * len(prompts)))
    alphas = noise_schedule().alphas_cumprod
    table = ((1 - alphas) / alphas).sqrt()
    draw = torch.Generator().manual_seed(seed)
    shape = (len(prompts), 4, height // 8, width // 8)
    sigmas = karras(steps, float(table[0]), float(table[-1]))
    x = torch.randn(shape, generator=draw) * sigmas[0]
    old: Tensor | None = None
    for i in range(steps):
        sigma, following = float(sigmas[i]), float(sigmas[i + 1])
        t = _timestep(table, sigma)
        scaled = x / math.sqrt(sigma**2 + 1)
        steps_in = torch.full((2 * len(x),), t)
        noise = painter(torch.cat([scaled, scaled]), steps_in, context, pooled, ids.float())
        told, untold = noise.chunk(2)
        denoised = x - sigma * (untold + guidance * (told - untold))
        if following == 0:
            x = denoised
            break
        ratio = following / sigma
        if old is None:
            estimate = denoised
        else:
            h, last = math.log(sigma / following), math.log(float(sigmas[i - 1]) / sigma)
            estimate = denoised + (denoised - old) * h / (2 * last)
        x = ratio * x - (ratio - 1) * estimate
        old = denoised
    return decode(vae, x / scaling(vae))


def _timestep(table: Tensor, sigma: float) -> float:
    """The (fractional) timestep of a sigma, linear in log sigma."""
    logs = table.log()
    low = int((logs <= math.log(sigma)).sum()) - 1
    low = min(max(low, 0), len(logs) - 2)
    share = (math.log(sigma) - float(logs[low])) / float(logs[low + 1] - logs[low])
    return low + min(max(share, 0.0), 1.0)
