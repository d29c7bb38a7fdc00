"""Transitions between the stages of a plan: split the noise levels, start from the last latent."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from overpaint.diffusion import latents
from overpaint.diffusion.plan import Plan, Stage
from overpaint.diffusion.schedule import Sigmas
from overpaint.imaging import codec, sizing
from overpaint.models.model import Model
from overpaint.nn.host import copy_to_host
from overpaint.registry import Space
from overpaint.request.fields import Fit


def split_sigmas(sigmas: Sigmas, fraction: float) -> tuple[Sigmas, Sigmas]:
    """Split a run into two; the second continues at the noise level where the first ends.

    The first run takes every step that starts in the first `fraction` of the training timesteps,
    the noisiest ones. The refiner was trained on the others (arXiv 2307.01952, section 2.5). The
    fraction is a noise level and not a share of the steps: "karras" spends more steps below it
    than "normal" does.

    Args:
        sigmas: descending to 0.
        fraction: 0 gives all steps to the second run, 1 gives all steps to the first.

    Returns:
        Both runs, each with the shared sigma; a run of one sigma has no steps.
    """
    schedule = sigmas.schedule
    if fraction in (0, 1):
        at = fraction * (len(sigmas) - 1)
    else:
        at = sum(schedule.progress(sigma) < fraction for sigma in sigmas[:-1])
    return Sigmas(sigmas[: int(at) + 1], schedule), Sigmas(sigmas[int(at) :], schedule)


def append_stage(plan: Plan, stage: Stage) -> Plan:
    """Return a plan with a further stage after its last one."""
    then = plan.then
    if then:
        stage = replace(then, plan=append_stage(then.plan, stage))
    return replace(plan, then=stage)


def carry_latent(plan: Plan, latent: Tensor) -> Plan:
    """Start from the noisy latent, unchanged."""
    return replace(plan, carried=latent)


def renoise_latent(plan: Plan, latent: Tensor) -> Plan:
    """Start from the finished latent plus new noise."""
    return replace(plan, init=latents.Moments(latent, latent.new_zeros(())))


def make_enlarger(
    model: Model, space: Space, fit: Fit = "stretch"
) -> Callable[[Plan, Tensor], Plan]:
    """Return a function that starts a plan from the finished picture, enlarged, plus new noise.

    Args:
        model: made the latent.
        space: "pixels" or "latents": the space in which Lanczos resampling runs. Latents lose more
            of their edges than pixels do, but need no pass through the VAE.
        fit: how a picture of another aspect is fitted.
    """

    # The notices of the VAE are dropped here: it repeats them when it decodes the final result.
    def enlarge_pixels(plan: Plan, latent: Tensor) -> Plan:
        size = model.vae_factor * plan.shape[2], model.vae_factor * plan.shape[1]
        small, _ = latents.decode_latent(model, latent)
        pixels = codec.to_array(sizing.fit_image(small, size, fit))
        moments, _ = latents.encode_pixels(model, pixels)
        return replace(plan, init=moments)

    def enlarge_latents(plan: Plan, latent: Tensor) -> Plan:
        size = plan.shape[2], plan.shape[1]
        channels = [Image.fromarray(c) for c in copy_to_host(latent[0]).numpy()]
        larger = [np.asarray(sizing.fit_image(c, size, fit)) for c in channels]
        return renoise_latent(plan, torch.from_numpy(np.stack(larger))[None].to(latent))

    return enlarge_pixels if space == "pixels" else enlarge_latents
