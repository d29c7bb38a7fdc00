"""From one stage of a plan to the next: where noise levels are cut, what becomes of the latent."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from overpaint.diffusion import latents
from overpaint.diffusion.schedule import Sigmas
from overpaint.imaging import images
from overpaint.registry import Space

if TYPE_CHECKING:
    from overpaint.diffusion.plan import Plan
    from overpaint.models.model import Model


def cut(sigmas: Sigmas, fraction: float) -> tuple[Sigmas, Sigmas]:
    """Two runs in place of one: the second goes on at the noise level where the first ends.

    The first takes every step that starts in the first `fraction` of the training timesteps, the
    noisiest: the refiner was trained on the rest (arXiv 2307.01952, section 2.5). That is a noise
    level and no count of steps: karras spends more steps below it than a normal schedule does.

    Args:
        sigmas: descending, to 0.
        fraction: 0 gives everything to the second run, 1 to the first.

    Returns:
        Both with the shared sigma; a run of one sigma has no steps.
    """
    schedule = sigmas.schedule
    if fraction in (0, 1):
        at = fraction * (len(sigmas) - 1)
    else:
        at = sum(schedule.progress(sigma) < fraction for sigma in sigmas[:-1])
    return Sigmas(sigmas[: int(at) + 1], schedule), Sigmas(sigmas[int(at) :], schedule)


def carry(plan: "Plan", latent: Tensor) -> "Plan":
    """Go on with the noisy latent as it is."""
    return replace(plan, carried=latent)


def renoise(plan: "Plan", latent: Tensor) -> "Plan":
    """Start from the finished latent with new noise over it."""
    return replace(plan, init=latents.Moments(latent, latent.new_zeros(())))


def enlarge(model: "Model", space: Space) -> "Callable[[Plan, Tensor], Plan]":
    """Start from the finished picture, enlarged (Lanczos), with new noise over it.

    Args:
        model: that made the latent.
        space: what is resampled. Latents lose more of their edges than pixels do, and save the
            way through the VAE.
    """

    # What the VAE has to say here it says again when the result is decoded.
    def in_pixels(plan: "Plan", latent: Tensor) -> "Plan":
        size = model.vae_factor * plan.shape[2], model.vae_factor * plan.shape[1]
        small, _ = latents.decode(model, latent)
        pixels = images.to_array(small.resize(size, Resampling.LANCZOS))
        moments, _ = latents.encode(model, pixels)
        return replace(plan, init=moments)

    def in_latents(plan: "Plan", latent: Tensor) -> "Plan":
        size = plan.shape[2], plan.shape[1]
        channels = [Image.fromarray(c) for c in latent[0].numpy(force=True)]
        larger = [np.asarray(c.resize(size, Resampling.LANCZOS)) for c in channels]
        return renoise(plan, torch.from_numpy(np.stack(larger))[None].to(latent))

    return in_pixels if space == "pixels" else in_latents
