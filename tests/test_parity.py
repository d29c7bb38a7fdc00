"""Overpaint's pictures compared with diffusers': same random weights, noise and settings, in fp32.

Some schedulers of diffusers have another name for a sampler, do not end at zero noise, or scale
pure noise by σ instead of √(σ² + 1). The options in `CASES` remove these differences.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint import (
    StableDiffusionXLInpaintPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from overpaint.diffusion import prompt
from overpaint.diffusion.constraint import Unconstrained
from overpaint.diffusion.denoise import Trajectory, group_by_batch_key, step
from overpaint.diffusion.plan import Plan
from overpaint.diffusion.planner import plan
from overpaint.diffusion.schedule import make_sigmas
from overpaint.imaging import codec
from overpaint.models.adapters import Adapters
from overpaint.models.addons import Addons, ControlNets
from overpaint.models.model import Model
from overpaint.request import Request
from tests.tiny import (
    share_model,
    tiny_inpainter,
    tiny_lcm,
    tiny_model,
    tiny_pipeline,
    tiny_refiner,
)

# diffusers' schedulers use numpy calls that numpy 2.4 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

CLOSE = 1e-3
"""The largest difference of a pixel in 0..1."""

# diffusers spaces these between the ends of the table only for "linspace".
KARRAS = {"use_karras_sigmas": True, "timestep_spacing": "linspace"}
EXPONENTIAL = {"use_exponential_sigmas": True, "timestep_spacing": "linspace"}
TRAILING = {"timestep_spacing": "trailing"}
DPMPP = {"algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", **TRAILING}
DPMPP_SDE = {**DPMPP, "algorithm_type": "sde-dpmsolver++"}
TO_ZERO = {"set_alpha_to_one": True, "clip_sample": False}

# diffusers' multistep solvers use another spacing for "leading" timesteps than its other
# schedulers, so that these tests use "trailing". Only test_samplers.py compares TCD and DEIS, since
# diffusers' versions keep the noise of timestep 0.
CASES: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("euler", "normal", EulerDiscreteScheduler, {}),
    ("euler", "linspace", EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
    ("euler", "trailing", EulerDiscreteScheduler, TRAILING),
    ("euler", "karras", EulerDiscreteScheduler, KARRAS),
    ("euler", "exponential", EulerDiscreteScheduler, EXPONENTIAL),
    ("euler_a", "normal", EulerAncestralDiscreteScheduler, {}),
    ("heun", "normal", HeunDiscreteScheduler, {}),
    ("heun", "karras", HeunDiscreteScheduler, KARRAS),
    ("lms", "normal", LMSDiscreteScheduler, {}),
    ("dpmpp_2m", "trailing", DPMSolverMultistepScheduler, DPMPP),
    ("dpmpp_2m_sde", "trailing", DPMSolverMultistepScheduler, DPMPP_SDE),
    ("unipc", "trailing", UniPCMultistepScheduler, {"final_sigmas_type": "zero", **TRAILING}),
    ("ddim", "normal", DDIMScheduler, TO_ZERO),
    ("ddim", "trailing", DDIMScheduler, {**TO_ZERO, **TRAILING}),
    ("ddpm", "normal", DDPMScheduler, {"clip_sample": False}),
    ("pndm", "normal", PNDMScheduler, {"skip_prk_steps": True, "set_alpha_to_one": True}),
    ("lcm", "trailing", LCMScheduler, {"set_alpha_to_one": True}),
]
NAMES = [f"{sampler}-{schedule}" for sampler, schedule, _, _ in CASES]
# If diffusers' LMS starts in the middle, it weighs steps that it has not taken. PNDM then counts
# from the beginning, but with the timesteps of the end.
FROM_THE_MIDDLE = [case for case in CASES if case[0] not in {"lms", "pndm"}]
# During inpainting, diffusers writes its first noise into the kept area; Overpaint keeps the
# sampler's noise. The history of diffusers' multistep solvers ignores the kept area.
DETERMINISTIC = [case for case in CASES if case[0] in {"euler", "ddim"}]
STEPS = 8


def sketch() -> Image.Image:
    """Draw a tilted gradient."""
    return Image.linear_gradient("L").rotate(20).resize((128, 128)).convert("RGB")


@torch.no_grad()
def run_plans(plans: Sequence[Plan]) -> list[Tensor]:
    """Run plans in one loop and return their latents."""
    trajectories = [Trajectory(own) for own in plans]
    while live := [t for t in trajectories if not t.done]:
        for together in group_by_batch_key(live):
            step(together)
    return [t.latent for t in trajectories if t.latent is not None]


@torch.no_grad()
def render_with_overpaint(
    request: Request,
    model: Model | None = None,
    refiner: Model | None = None,
    change: Callable[[Plan], Plan] = lambda plan: plan,
    nets: ControlNets = (),
    adapters: Adapters = (),
) -> NDArray[np.float64]:
    """Return Overpaint's pictures [n, h, w, 3] in 0..1, before they are rounded to 8 bits."""
    model = model or share_model()
    latent = torch.cat(
        run_plans(
            [change(own) for own in plan(request, model, Addons(refiner, nets, adapters)).plans]
        )
    )
    pixels = model.vae.decode(latent / model.vae.config["scaling_factor"], return_dict=False)[0]
    return (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).double().numpy()


def render_with_diffusers(
    request: Request,
    scheduler: Any = EulerDiscreteScheduler,
    config: dict[str, Any] | None = None,
    model: Model | None = None,
    **extra: Any,
) -> NDArray[np.float64]:
    """Return diffusers' pictures of a request; its UNet has diffusers' blocks."""
    model = model or share_model(overpaint_blocks=False)
    text_to_image: Any = tiny_pipeline(model)
    settings = {**text_to_image.scheduler.config, **(config or {})}
    settings.pop(
        "_use_default_values"
    )  # otherwise from_config drops values that were defaults before
    text_to_image.scheduler = scheduler.from_config(settings)
    generator = extra.get("generator", torch.Generator()).manual_seed(request.seed)
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
    own = plan(request, replace(share_model(), noise=model.noise)).plans[0]
    if scheduler is LCMScheduler:
        own_sigmas = make_sigmas(
            request.schedule, request.num_inference_steps, own.network.schedule
        )
        call["timesteps"] = [round(own.network.schedule.timestep(s)) for s in own_sigmas[:-1]]
    if request.image is None:
        text_to_image.scheduler.set_timesteps(request.num_inference_steps)
        noise = own.noise()() * math.sqrt(own.sigmas[0] ** 2 + 1)
        in_vp = scheduler not in VARIANCE_EXPLODING
        scale = math.sqrt(own.sigmas[0] ** 2 + 1) if in_vp else 1.0
        call["latents"] = noise / scale / float(text_to_image.scheduler.init_noise_sigma)
        torch.randn((1, *own.shape), generator=generator)  # Overpaint's draw for the start
        pixels = text_to_image(**call, height=128, width=128).images
    else:
        repaint = StableDiffusionXLImg2ImgPipeline
        if request.mask:
            repaint = StableDiffusionXLInpaintPipeline
            call["mask_image"] = Image.open(BytesIO(request.mask.data))
        image_to_image: Any = repaint(
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
    assert a.std() > 0.05  # the picture of the random network is not flat
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


REPAINT: dict[str, Any] = {"image": codec.read_picture(sketch()), "strength": 0.6}


@pytest.mark.parametrize(("sampler", "schedule", "scheduler", "config"), CASES, ids=NAMES)
def test_text_to_image_matches_diffusers(
    sampler: str, schedule: str, scheduler: Any, config: dict[str, Any]
) -> None:
    asked = request(sampler=sampler, schedule=schedule)
    assert_close(render_with_overpaint(asked), render_with_diffusers(asked, scheduler, config))


@pytest.mark.parametrize(
    ("sampler", "schedule", "scheduler", "config"),
    FROM_THE_MIDDLE,
    ids=[f"{sampler}-{schedule}" for sampler, schedule, _, _ in FROM_THE_MIDDLE],
)
def test_image_to_image_matches_diffusers(
    sampler: str, schedule: str, scheduler: Any, config: dict[str, Any]
) -> None:
    asked = request(sampler=sampler, schedule=schedule, **REPAINT)
    assert_close(render_with_overpaint(asked), render_with_diffusers(asked, scheduler, config))


def certain(model: Model) -> Model:
    """Return the model with a VAE whose posterior has no variance, so that no noise is drawn."""
    convolution: Any = model.vae.quant_conv
    convolution.weight[4:] = 0
    convolution.bias[4:] = -60
    return model


@pytest.mark.parametrize(
    ("sampler", "schedule", "scheduler", "config"),
    DETERMINISTIC,
    ids=[f"{sampler}-{schedule}" for sampler, schedule, _, _ in DETERMINISTIC],
)
def test_inpainting_matches_diffusers(
    sampler: str, schedule: str, scheduler: Any, config: dict[str, Any]
) -> None:
    """Compare before the result is composed with the picture, which diffusers does not do."""
    mask = Image.new("L", (128, 128))
    mask.paste(255, (40, 16, 96, 80))
    asked = request(
        sampler=sampler,
        schedule=schedule,
        mask=codec.read_picture(mask),
        crop="off",
        fill="original",
        **REPAINT,
    )
    reference = render_with_diffusers(
        asked, scheduler, config, certain(tiny_model(overpaint_blocks=False))
    )
    assert_close(render_with_overpaint(asked, certain(tiny_model())), reference)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_inpainting_network_with_nine_channels_matches_diffusers(
    strength: float, guidance: float
) -> None:
    """diffusers also repaints the kept area here, so the test drops the constraint."""
    mask = Image.new("L", (128, 128))
    mask.paste(255, (40, 16, 96, 80))
    fields: dict[str, Any] = {"image": codec.read_picture(sketch()), "strength": strength}
    fields |= {"mask": codec.read_picture(mask), "crop": "off", "fill": "original"}
    asked = request(**fields, guidance_scale=guidance)
    if guidance == 1:
        asked = request(**fields, guidance_scale=guidance, negative_prompt="")
    model = certain(tiny_inpainter(overpaint_blocks=False))
    reference = render_with_diffusers(asked, model=model, height=128, width=128)
    mine = render_with_overpaint(
        asked,
        certain(tiny_inpainter()),
        change=lambda own: replace(own, constraint=Unconstrained()),
    )
    assert_close(mine, reference)


def test_network_with_embedded_guidance_matches_diffusers() -> None:
    asked = request(sampler="lcm", schedule="trailing", num_inference_steps=4)
    config = {"set_alpha_to_one": True}
    model = share_model(tiny_lcm, overpaint_blocks=False)
    reference = render_with_diffusers(asked, LCMScheduler, config, model)
    mine = render_with_overpaint(asked, share_model(tiny_lcm))
    assert_close(mine, reference)
    weaker = asked.model_copy(update={"guidance_scale": 2.0})
    assert np.abs(mine - render_with_overpaint(weaker, share_model(tiny_lcm))).max() > 10 * CLOSE


def test_network_with_embedded_guidance_runs_without_unconditional_row() -> None:
    planned = plan(request(), share_model(tiny_lcm))
    assert planned.plans[0].negative is None
    [notice] = planned.notices
    assert notice.startswith("tiny-consistency takes guidance_scale 5.0 as an input")


@torch.no_grad()
def refined(asked: Request, scheduler: Any, config: dict[str, Any]) -> NDArray[np.float64]:
    """Run diffusers' base pipeline, then its image-to-image pipeline with the refiner."""
    generator = torch.Generator()
    first: dict[str, Any] = asked.model_dump(exclude={"refiner", *REFINING})
    first["image"] = asked.image
    extra: dict[str, Any] = {"generator": generator, "output_type": "latent"}
    ensemble = asked.refine == "ensemble"
    if ensemble:
        extra["denoising_end"] = asked.high_noise_frac
    latent = render_with_diffusers(Request(**first), scheduler, config, **extra)
    base = share_model(overpaint_blocks=False)
    refiner = share_model(tiny_refiner, overpaint_blocks=False)
    parts = tiny_pipeline(base).components
    settings = {**parts["scheduler"].config, **config}
    settings.pop("_use_default_values")
    parts |= {"unet": refiner.unet, "text_encoder": None, "tokenizer": None}
    parts |= {"scheduler": scheduler.from_config(settings)}
    second: Any = StableDiffusionXLImg2ImgPipeline(
        **parts,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    second.set_progress_bar_config(disable=True)
    if ensemble:
        way = {"denoising_start": asked.high_noise_frac}
        way |= {"num_inference_steps": asked.num_inference_steps}
    else:
        torch.randn(latent.shape, generator=generator)  # Overpaint's draw for the posterior
        way = {"strength": asked.refine_strength, "num_inference_steps": asked.refine_steps}
    return second(
        prompt=asked.prompt,
        negative_prompt=asked.negative_prompt,
        image=torch.from_numpy(latent).float(),
        guidance_scale=asked.guidance_scale,
        generator=generator,
        output_type="np",
        **way,
    ).images.astype(np.float64)


REFINING = ("refine", "high_noise_frac", "refine_strength", "refine_steps")
REFINERS = [
    case
    for case in FROM_THE_MIDDLE
    if case[1] in {"normal", "linspace", "trailing"} and case[0] != "lcm"
]


# diffusers' Heun changes models between the two halves of a step.
ENSEMBLES = [case for case in REFINERS if case[0] != "heun"]


@pytest.mark.parametrize("repaint", [False, True], ids=["t2i", "i2i"])
@pytest.mark.parametrize(("sampler", "schedule", "scheduler", "config"), ENSEMBLES)
def test_ensemble_refiner_matches_diffusers(
    sampler: str, schedule: str, scheduler: Any, config: dict[str, Any], repaint: bool
) -> None:
    asked = request(
        sampler=sampler,
        schedule=schedule,
        refiner="tiny",
        num_inference_steps=10,
        **(REPAINT if repaint else {}),
    )
    mine = render_with_overpaint(asked, refiner=share_model(tiny_refiner))
    assert_close(mine, refined(asked, scheduler, config))


@pytest.mark.parametrize(("sampler", "schedule", "scheduler", "config"), REFINERS)
def test_sequential_refiner_matches_diffusers(
    sampler: str, schedule: str, scheduler: Any, config: dict[str, Any]
) -> None:
    asked = request(
        sampler=sampler,
        schedule=schedule,
        refiner="tiny",
        refine="sequential",
        refine_strength=0.5,
        refine_steps=8,
    )
    mine = render_with_overpaint(asked, refiner=share_model(tiny_refiner))
    assert_close(mine, refined(asked, scheduler, config))


@pytest.mark.parametrize("repaint", [False, True], ids=["t2i", "i2i"])
@pytest.mark.parametrize(
    "fields",
    [
        {"guidance_scale": 1.0, "negative_prompt": ""},
        {"guidance_rescale": 0.7},
        {"prompt_2": "a blue cat", "negative_prompt_2": "black"},
        {
            "original_size": (200, 300),
            "crops_coords_top_left": (8, 24),
            "target_size": (100, 120),
            "negative_original_size": (64, 48),
            "negative_target_size": (90, 80),
        },
    ],
    ids=["unguided", "rescaled", "second prompts", "sizes"],
)
def test_conditioning_fields_match_diffusers(fields: dict[str, Any], repaint: bool) -> None:
    asked = request(**fields, **(REPAINT if repaint else {}))
    extra: dict[str, Any] = {
        key: value for key, value in fields.items() if key.startswith("negative_") and "size" in key
    }
    if extra and not repaint:
        # diffusers defaults to (0, 0); in image to image, to the positive value as Overpaint.
        extra["negative_crops_coords_top_left"] = asked.crops_coords_top_left
    assert_close(render_with_overpaint(asked), render_with_diffusers(asked, **extra))


@pytest.mark.parametrize("zeros", [False, True])
def test_empty_negative_prompt_matches_diffusers(zeros: bool) -> None:
    model = tiny_model(zero_empty_negative=zeros, overpaint_blocks=False)
    asked = request(negative_prompt="")
    reference = render_with_diffusers(asked, model=model, negative_prompt=None if zeros else "")
    assert_close(render_with_overpaint(asked, tiny_model(zero_empty_negative=zeros)), reference)


def test_v_prediction_with_zero_terminal_snr_matches_diffusers() -> None:
    mine, reference = (
        tiny_model(prediction="v_prediction", overpaint_blocks=own_blocks)
        for own_blocks in (True, False)
    )
    mine.noise = reference.noise = replace(mine.noise, zero_terminal_snr=True)
    asked = request(schedule="trailing", guidance_rescale=0.7)
    assert_close(
        render_with_overpaint(asked, mine),
        render_with_diffusers(asked, config=TRAILING, model=reference),
    )


def test_clip_skip_matches_diffusers() -> None:
    """diffusers skips no layers of the negative prompt, so the test passes its embeddings."""
    asked = request(clip_skip=1)
    negative = prompt.encode_prompt(share_model(), asked.negative_prompt, clip_skip=1)
    reference = render_with_diffusers(
        asked,
        negative_prompt=None,
        negative_prompt_2=None,
        negative_prompt_embeds=negative.tokens,
        negative_pooled_prompt_embeds=negative.pooled,
    )
    assert_close(render_with_overpaint(asked), reference)


def test_long_prompt_matches_its_chunks_in_diffusers() -> None:
    model = share_model()
    first, second, negative = "a red house, " * 18, "a blue cat and a dog, " * 9, "a drawing"
    asked = request(prompt=first + second, negative_prompt=negative)
    a, b, n, empty = (prompt.encode_prompt(model, text) for text in (first, second, negative, ""))
    assert a.tokens.shape[1] == b.tokens.shape[1] == 77
    reference = render_with_diffusers(
        asked,
        prompt=None,
        prompt_2=None,
        negative_prompt=None,
        negative_prompt_2=None,
        prompt_embeds=torch.cat([a.tokens, b.tokens], 1),
        pooled_prompt_embeds=a.pooled,
        negative_prompt_embeds=torch.cat([n.tokens, empty.tokens], 1),
        negative_pooled_prompt_embeds=n.pooled,
    )
    assert_close(render_with_overpaint(asked), reference)
