"""Measure a picture with a ControlNet in the first half of denoising, against diffusers.

Both use the same random net and weights. The timesteps are evenly spaced, since diffusers ends a
net by steps and Overpaint by noise level, which then agree. diffusers calls the net at every step,
also after its end. Overpaint calls it only where it acts, and encodes the control image once.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl import (
    StableDiffusionXLControlNetPipeline,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from safetensors.torch import save_file
from torch import nn

from benchmarks.harness import print_line
from benchmarks.painting import GUIDANCE, PROMPT, Meter, compare_runs, draw_gradient
from benchmarks.peer import load_pairs
from overpaint.imaging import codec
from overpaint.painter import Painter
from overpaint.request import Request
from overpaint.request.parts import Control

END, SCALE = 0.5, 0.8
SMALL, LARGE = (128, 30), (512, 8)
"""The side in pixels and the steps, for the miniature and for layers of SDXL's sizes."""


def measure(*, quick: bool) -> dict[str, Any]:
    """Measure each model at its native size, or at half of it for the larger one."""
    found: dict[str, Any] = {}
    for name, painter, pipeline in load_pairs(quick=quick):
        side, steps = SMALL if name == "miniature" else LARGE
        rounds = 9 if name == "miniature" and not quick else 3
        found[name] = compare(painter, pipeline, side, steps=steps, rounds=rounds)
    return found


def compare(
    painter: Painter, pipeline: Any, side: int, *, steps: int, rounds: int
) -> dict[str, Any]:
    """Time both; print and return seconds, ratios, and the calls of each net."""
    net = make_random_net(pipeline.unet)
    with tempfile.TemporaryDirectory(prefix="overpaint-bench-") as temporary:
        path = Path(temporary) / "net.safetensors"
        save_file({key: value.contiguous() for key, value in net.state_dict().items()}, path)
        asked = Request(
            prompt=PROMPT,
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            sampler="euler",
            schedule="trailing",
            seed=0,
            width=side,
            height=side,
            controls=(
                Control(
                    kind="canny",
                    net=str(path),
                    hint=codec.read_picture(draw_gradient(side)),
                    scale=SCALE,
                    end=END,
                ),
            ),
        )
        # The file stays until the end: each request looks whether it changed.
        return compare_requests(painter, pipeline, net, asked, rounds=rounds)


def compare_requests(
    painter: Painter, pipeline: Any, net: Any, asked: Request, *, rounds: int
) -> dict[str, Any]:
    """Time a request with a ControlNet, and the same picture by diffusers."""
    [loaded] = painter.addon_loader.load(asked).nets
    assert loaded is not None

    def run_overpaint() -> object:
        painter.model.cache.clear()
        return painter.run(asked)

    calls = Meter(loaded.module), Meter(net)
    meters = Meter(painter.model.unet), Meter(pipeline.unet)
    run = (
        calls[0].metered(run_overpaint),
        calls[1].metered(make_diffusers_run(pipeline, net, asked)),
    )
    name = f"a ControlNet until {END}, {asked.width}², {asked.num_inference_steps} steps"
    result = compare_runs(name, *run, meters, rounds=rounds)
    mine, other = (meter.calls[-1] for meter in calls)
    print_line(f"  calls of the net: {mine}, diffusers {other}")
    return result | {"net_calls": mine, "diffusers_net_calls": other}


def make_random_net(unet: Any) -> Any:
    """Return a net of the UNet's shape whose zero convolutions are not zero."""
    torch.manual_seed(0)
    net: Any = ControlNetModel.from_unet(unet)
    for name, parameter in net.named_parameters():
        if name.startswith("controlnet_") and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return net.to(unet.dtype).eval().requires_grad_(False)


def make_diffusers_run(pipeline: Any, net: Any, asked: Request) -> Callable[[], object]:
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    parts["scheduler"] = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
    )
    made: Any = StableDiffusionXLControlNetPipeline(
        **parts, controlnet=net, force_zeros_for_empty_prompt=False, add_watermarker=False
    )
    made.set_progress_bar_config(disable=True)
    fields: dict[str, Any] = {
        "prompt": asked.prompt,
        "image": draw_gradient(asked.width or 0),
        "num_inference_steps": asked.num_inference_steps,
        "guidance_scale": asked.guidance_scale,
        "controlnet_conditioning_scale": SCALE,
        "control_guidance_end": END,
        "width": asked.width,
        "height": asked.height,
    }
    return lambda: made(**fields, generator=torch.Generator().manual_seed(0))
