"""ControlNet pictures compared with diffusers': same random weights, noise and settings, fp32."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.controlnet.pipeline_controlnet_inpaint_sd_xl import (
    StableDiffusionXLControlNetInpaintPipeline,
)
from diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl import (
    StableDiffusionXLControlNetPipeline,
)
from diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl_img2img import (
    StableDiffusionXLControlNetImg2ImgPipeline,
)
from diffusers.pipelines.controlnet.pipeline_controlnet_union_sd_xl import (
    StableDiffusionXLControlNetUnionPipeline,
)
from diffusers.pipelines.t2i_adapter.pipeline_stable_diffusion_xl_adapter import (
    StableDiffusionXLAdapterPipeline,
)
from numpy.typing import NDArray
from PIL import Image

from overpaint.diffusion.planner import plan
from overpaint.imaging import codec
from overpaint.models.addons import Addons
from overpaint.models.controlnet import ControlNet, load_controlnet
from overpaint.request import Request
from overpaint.request.parts import Control
from tests.test_parity import REPAINT, assert_close, certain, render_with_overpaint, request, sketch
from tests.tiny import share_model, tiny_model, tiny_pipeline
from tests.tiny_control import tiny_adapter, tiny_net, write, write_control_lora, write_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")


def drawn(seed: int) -> Image.Image:
    """Draw a picture with edges."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(blocks).resize((128, 128), Image.Resampling.NEAREST)


def hint(seed: int, kind: str = "canny", **fields: Any) -> Control:
    return Control(kind=kind, hint=codec.read_picture(drawn(seed)), **fields)


def render_controlled(asked: Request, nets: list[ControlNet]) -> NDArray[np.float64]:
    model = certain(tiny_model()) if asked.mask else share_model()
    return render_with_overpaint(asked, model, nets=nets)


def render_with_diffusers(
    asked: Request, pipeline: Any, part: dict[str, Any], **call: Any
) -> NDArray[np.float64]:
    """Return the pictures of a diffusers pipeline with additional parts."""
    if asked.mask:
        text_to_image = tiny_pipeline(certain(tiny_model(overpaint_blocks=False)))
    else:
        text_to_image = tiny_pipeline(share_model(overpaint_blocks=False))
    parts: dict[str, Any] = {**text_to_image.components, **part}
    if pipeline is not StableDiffusionXLAdapterPipeline:
        parts["add_watermarker"] = False
    made: Any = pipeline(**parts, force_zeros_for_empty_prompt=False)
    made.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(asked.seed)
    call |= {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "num_inference_steps": asked.num_inference_steps,
        "guidance_scale": asked.guidance_scale,
        "generator": generator,
        "output_type": "np",
    }
    if asked.image is None:
        own = plan(asked, share_model(), Addons(nets=[None] * len(asked.controls))).plans[0]
        made.scheduler.set_timesteps(asked.num_inference_steps)
        noise = own.noise()() * math.sqrt(own.sigmas[0] ** 2 + 1)
        call["latents"] = noise / float(made.scheduler.init_noise_sigma)
    else:
        call["strength"] = asked.strength
    return np.asarray(made(**call, height=128, width=128).images, np.float64)


@pytest.mark.parametrize("layout", ["diffusers", "original", "folder"])
@pytest.mark.parametrize("kind", ["full", "mid", "small"])
def test_one_controlnet_matches_diffusers(kind: str, layout: str, tmp_path: Path) -> None:
    net = tiny_net(kind)
    path = tmp_path / "net.safetensors"
    path = write_folder(net, tmp_path / "net") if layout == "folder" else write(net, path, layout)
    asked = request(controls=(hint(1, scale=0.8),))
    reference = render_with_diffusers(
        asked,
        StableDiffusionXLControlNetPipeline,
        {"controlnet": net},
        image=drawn(1),
        controlnet_conditioning_scale=0.8,
    )
    assert_close(render_controlled(asked, [load_controlnet(path, share_model())]), reference)
    plain = request()
    assert (
        np.abs(render_controlled(plain, []) - reference).max() > 0.05
    )  # the net changes the picture


def test_three_controlnets_with_different_intervals_match_diffusers(tmp_path: Path) -> None:
    nets = [tiny_net("full", 1), tiny_net("small", 2), tiny_net("mid", 3)]
    paths = [write(net, tmp_path / f"{i}.safetensors") for i, net in enumerate(nets)]
    scales, starts, ends = [0.7, 1.0, 0.4], [0.0, 0.25, 0.0], [0.5, 1.0, 1.0]
    controls = tuple(
        hint(i, scale=scale, start=start, end=end)
        for i, (scale, start, end) in enumerate(zip(scales, starts, ends, strict=True))
    )
    asked = request(controls=controls)
    reference = render_with_diffusers(
        asked,
        StableDiffusionXLControlNetPipeline,
        {"controlnet": nets},
        image=[drawn(i) for i in range(3)],
        controlnet_conditioning_scale=scales,
        control_guidance_start=starts,
        control_guidance_end=ends,
    )
    model = share_model()
    assert_close(
        render_controlled(asked, [load_controlnet(path, model) for path in paths]), reference
    )


def test_guess_mode_matches_diffusers(tmp_path: Path) -> None:
    net = tiny_net()
    path = write(net, tmp_path / "net.safetensors")
    asked = request(controls=(hint(1, weighting="guess"),))
    reference = render_with_diffusers(
        asked,
        StableDiffusionXLControlNetPipeline,
        {"controlnet": net},
        image=drawn(1),
        guess_mode=True,
        controlnet_conditioning_scale=1.0,
    )
    assert_close(render_controlled(asked, [load_controlnet(path, share_model())]), reference)


@pytest.mark.parametrize(
    ("kind", "hints"),
    [
        ("union", ("canny",)),
        ("union", ("canny", "depth")),
        ("promax", ("tile",)),
        ("promax", ("tile", "depth")),
    ],
)
def test_union_controlnet_matches_diffusers(
    kind: str, hints: tuple[str, ...], tmp_path: Path
) -> None:
    net = tiny_net(kind)
    path = write(net, tmp_path / "net.safetensors")
    scales = [0.8, 0.5][: len(hints)]
    controls = tuple(
        hint(i, k, scale=s) for i, (k, s) in enumerate(zip(hints, scales, strict=True))
    )
    asked = request(controls=controls)
    types = {"canny": 3, "depth": 1, "tile": 6}
    reference = render_with_diffusers(
        asked,
        StableDiffusionXLControlNetUnionPipeline,
        {"controlnet": net},
        control_image=[drawn(i) for i in range(len(hints))],
        control_mode=[types[k] for k in hints],
        controlnet_conditioning_scale=scales,
    )
    loaded = load_controlnet(path, share_model())
    assert_close(render_controlled(asked, [loaded] * len(hints)), reference)


def test_control_lora_matches_diffusers(tmp_path: Path) -> None:
    path, net = write_control_lora(tmp_path / "lora.safetensors")
    asked = request(controls=(hint(1),))
    reference = render_with_diffusers(
        asked,
        StableDiffusionXLControlNetPipeline,
        {"controlnet": net},
        image=drawn(1),
        controlnet_conditioning_scale=1.0,
    )
    assert_close(render_controlled(asked, [load_controlnet(path, share_model())]), reference)


def test_t2i_adapter_matches_diffusers(tmp_path: Path) -> None:
    adapter = tiny_adapter()
    path = write(adapter, tmp_path / "adapter.safetensors")
    asked = request(controls=(hint(1, scale=0.7),))
    reference = render_with_diffusers(
        asked,
        StableDiffusionXLAdapterPipeline,
        {"adapter": adapter},
        image=drawn(1),
        adapter_conditioning_scale=0.7,
    )
    assert_close(render_controlled(asked, [load_controlnet(path, share_model())]), reference)


def test_controlnet_image_to_image_matches_diffusers(tmp_path: Path) -> None:
    net = tiny_net()
    path = write(net, tmp_path / "net.safetensors")
    asked = request(controls=(hint(1, scale=0.8),), **REPAINT)
    reference = render_with_diffusers(
        asked,
        StableDiffusionXLControlNetImg2ImgPipeline,
        {"controlnet": net},
        image=sketch(),
        control_image=drawn(1),
        controlnet_conditioning_scale=0.8,
    )
    assert_close(render_controlled(asked, [load_controlnet(path, share_model())]), reference)


def test_controlnet_inpainting_matches_diffusers(tmp_path: Path) -> None:
    net = tiny_net()
    path = write(net, tmp_path / "net.safetensors")
    mask = Image.new("L", (128, 128))
    mask.paste(255, (40, 16, 96, 80))
    asked = request(
        controls=(hint(1, scale=0.8),),
        mask=codec.read_picture(mask),
        crop="off",
        fill="original",
        **REPAINT,
    )
    reference = render_with_diffusers(
        asked,
        StableDiffusionXLControlNetInpaintPipeline,
        {"controlnet": net},
        image=sketch(),
        mask_image=mask,
        control_image=drawn(1),
        controlnet_conditioning_scale=0.8,
    )
    assert_close(render_controlled(asked, [load_controlnet(path, share_model())]), reference)
