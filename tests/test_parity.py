"""Our pictures against diffusers' pipelines: same random weights, same noise, same settings, fp32.

Where diffusers names a sampler otherwise, ends elsewhere than at zero noise, or scales pure noise
by σ instead of √(σ² + 1), the reference is told to do as we do; the table says how.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from numpy.typing import NDArray
from PIL import Image

from overpaint import images
from overpaint.diffusion.denoise import Trajectory, step
from overpaint.diffusion.plan import plan
from overpaint.models.model import Model
from overpaint.request import Request
from tests.tiny import tiny_model, tiny_pipeline

# diffusers' own schedulers use what numpy 2.4 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

CLOSE = 1e-3
"""Largest difference of a pixel in 0..1."""

KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
BETA = {"use_beta_sigmas": True}
DPMPP = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero"}
DPMPP_SDE = {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "zero"}
TO_ZERO = {"set_alpha_to_one": True, "clip_sample": False}

CASES: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("euler", "normal", EulerDiscreteScheduler, {}),
    ("euler", "linspace", EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
    ("euler", "trailing", EulerDiscreteScheduler, {"timestep_spacing": "trailing"}),
    ("euler", "karras", EulerDiscreteScheduler, KARRAS),
    ("euler", "exponential", EulerDiscreteScheduler, EXPONENTIAL),
    ("euler", "beta", EulerDiscreteScheduler, BETA),
    ("euler_a", "normal", EulerAncestralDiscreteScheduler, {}),
    ("heun", "normal", HeunDiscreteScheduler, {}),
    ("heun", "karras", HeunDiscreteScheduler, KARRAS),
    ("lms", "normal", LMSDiscreteScheduler, {}),
    ("dpmpp_2m", "normal", DPMSolverMultistepScheduler, DPMPP),
    ("dpmpp_2m", "karras", DPMSolverMultistepScheduler, {**DPMPP, **KARRAS}),
    ("dpmpp_2m_sde", "normal", DPMSolverMultistepScheduler, DPMPP_SDE),
    ("unipc", "normal", UniPCMultistepScheduler, {"final_sigmas_type": "zero"}),
    ("deis", "normal", DEISMultistepScheduler, {}),
    ("ddim", "normal", DDIMScheduler, TO_ZERO),
    ("ddim", "trailing", DDIMScheduler, {**TO_ZERO, "timestep_spacing": "trailing"}),
    ("ddpm", "normal", DDPMScheduler, {"clip_sample": False}),
    ("pndm", "normal", PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": True}),
    ("lcm", "normal", LCMScheduler, {"set_alpha_to_one": True}),
    ("tcd", "normal", TCDScheduler, {"set_alpha_to_one": True}),
]
NAMES = [f"{sampler}-{schedule}" for sampler, schedule, _, _ in CASES]
STEPS = 8


def sketch() -> Image.Image:
    """Something with structure: a tilted gradient."""
    return Image.linear_gradient("L").rotate(20).resize((128, 128)).convert("RGB")


@torch.no_grad()
def ours(request: Request, model: Model | None = None) -> NDArray[np.float64]:
    """The request's pictures [n, h, w, 3] in 0..1, before they are rounded to 8 bits."""
    model = model or tiny_model()
    trajectories = [Trajectory(own) for own in plan(request, model).plans]
    while live := [t for t in trajectories if not t.done]:
        step(live)
    latent = torch.cat([t.latent for t in trajectories if t.latent is not None])
    pixels = model.vae.decode(latent / model.vae.config["scaling_factor"], return_dict=False)[0]
    return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).double().numpy()


def theirs(
    request: Request,
    scheduler: Any = EulerDiscreteScheduler,
    config: dict[str, Any] | None = None,
    model: Model | None = None,
    **extra: Any,
) -> NDArray[np.float64]:
    """The same request by diffusers."""
    model = model or tiny_model()
    text_to_image = tiny_pipeline(model)
    text_to_image.scheduler = scheduler.from_config(
        {**text_to_image.scheduler.config, **(config or {})}
    )
    generator = torch.Generator().manual_seed(request.seed)
    call: dict[str, Any] = {
        "prompt": request.prompt,
        "prompt_2": request.prompt_2,
        "negative_prompt": request.negative_prompt,
        "negative_prompt_2": request.negative_prompt_2,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "guidance_rescale": request.guidance_rescale,
        "original_size": request.original_size,
        "crops_coords_top_left": request.crops_coords_top_left,
        "target_size": request.target_size,
        "clip_skip": request.clip_skip or None,
        "generator": generator,
        "output_type": "np",
        **extra,
    }
    if request.image is None:
        own = plan(request, model).plans[0]
        text_to_image.scheduler.set_timesteps(request.num_inference_steps)
        noise = own.noise()() * math.sqrt(own.sigmas[0] ** 2 + 1)
        in_vp = scheduler not in VARIANCE_EXPLODING
        scale = math.sqrt(own.sigmas[0] ** 2 + 1) if in_vp else 1.0
        call["latents"] = noise / scale / float(text_to_image.scheduler.init_noise_sigma)
        torch.randn((1, *own.shape), generator=generator)  # what ours drew for the start
        pixels = text_to_image(**call, height=128, width=128).images
    else:
        image_to_image = StableDiffusionXLImg2ImgPipeline(
            **text_to_image.components,
            requires_aesthetics_score=False,
            force_zeros_for_empty_prompt=False,
            add_watermarker=False,
        )
        image_to_image.set_progress_bar_config(disable=True)
        pixels = image_to_image(**call, image=sketch(), strength=request.strength).images
    return np.asarray(pixels, dtype=np.float64)


VARIANCE_EXPLODING = (
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
)


def assert_close(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    assert a.shape == b.shape
    assert a.std() > 0.05  # the random network does draw something
    assert np.abs(a - b).max() < CLOSE


def request(**fields: Any) -> Request:
    defaults: dict[str, Any] = {
        "prompt": "a red house on a green background",
        "negative_prompt": "a drawing",
        "num_inference_steps": STEPS,
        "guidance_scale": 5.0,
        "steps": "truncate",
        "sampler": "euler",
        "schedule": "normal",
        "seed": 11,
    }
    return Request(**{**defaults, **fields})


@pytest.mark.parametrize(("sampler", "schedule", "scheduler", "config"), CASES, ids=NAMES)
def test_text_to_image(sampler: str, schedule: str, scheduler: Any, config: dict[str, Any]) -> None:
    asked = request(sampler=sampler, schedule=schedule)
    assert_close(ours(asked), theirs(asked, scheduler, config))


@pytest.mark.parametrize(("sampler", "schedule", "scheduler", "config"), CASES, ids=NAMES)
def test_image_to_image(
    sampler: str, schedule: str, scheduler: Any, config: dict[str, Any]
) -> None:
    asked = request(
        sampler=sampler, schedule=schedule, image=images.picture(sketch()), strength=0.6
    )
    assert_close(ours(asked), theirs(asked, scheduler, config))
