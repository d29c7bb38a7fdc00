"""Compare requests that no diffusers pipeline supports with a loop that is written out here.

The loop shares only the weights, the seed and the order of noise draws with Overpaint. The modules
are diffusers' classes, and its pipeline encodes prompts and computes noise levels. Rows run one by
one. Residuals, guidance, Euler's step, the mask and the refiner are plain arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from overpaint.diffusion.planner import plan
from overpaint.imaging import codec
from overpaint.models.addons import Addons
from overpaint.models.controlnet import load_controlnet
from overpaint.request import Request
from overpaint.request.parts import Control
from tests.test_parity import REPAINT, request, run_plans, sketch
from tests.test_parity_control import drawn
from tests.tiny import WIDTHS, tiny_model, tiny_pipeline, tiny_refiner
from tests.tiny_control import tiny_adapter, tiny_net, write

# diffusers' schedulers use functions that numpy 2.4 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")

CLOSE = 1e-4
"""Largest accepted difference between latents, whose values are around 1."""

UNION_TYPES = {"depth": 1, "canny": 3}
BOX = (40, 16, 96, 80)
"""The region that the masks repaint: left, top, right and bottom in pixels."""


@dataclass(frozen=True)
class Steer:
    """A ControlNet and its control images: one, or several for a union ControlNet.

    Attributes:
        net: the kind of the ControlNet.
        kinds: the kinds of the control images.
        scales: the scale of each control image.
        start: the fraction of the denoising range at which the ControlNet begins to act.
        end: the fraction at which it stops.
    """

    net: str
    kinds: tuple[str, ...]
    scales: tuple[float, ...]
    start: float = 0.0
    end: float = 1.0

    @cached_property
    def module(self) -> Any:
        return tiny_adapter() if self.net == "adapter" else tiny_net(self.net)

    @property
    def asked(self) -> list[Control]:
        times: dict[str, Any] = {"start": self.start, "end": self.end}
        return [
            Control(kind=kind, hint=codec.read_picture(self.shown(i)), scale=scale, **times)
            for i, (kind, scale) in enumerate(zip(self.kinds, self.scales, strict=True))
        ]

    def shown(self, index: int) -> Image.Image:
        return drawn(10 * len(self.net) + index)


CANNY = Steer("full", ("canny",), (0.8,))
DEPTH = Steer("union", ("depth",), (0.7,))
FUSED = Steer("union", ("canny", "depth"), (0.7, 0.4))
SKETCHED = Steer("adapter", ("lineart",), (0.6,))

CASES: dict[str, tuple[tuple[Steer, ...], dict[str, Any]]] = {
    "a net, image to image, a refiner": ((CANNY,), {"refiner": "tiny", **REPAINT}),
    "a net, text to image, a refiner": ((CANNY,), {"refiner": "tiny"}),
    "union and plain": ((DEPTH, CANNY), {}),
    "union and plain, image to image": ((DEPTH, CANNY), REPAINT),
    "several of a union's, plain, a mask": ((FUSED, CANNY), {"mask": BOX, **REPAINT}),
    "an adapter, a net, a mask": ((SKETCHED, CANNY), {"mask": BOX, **REPAINT}),
    "an adapter, a net, image to image": ((SKETCHED, CANNY), REPAINT),
    "an adapter, union, plain, a mask, a refiner": (
        (SKETCHED, FUSED, CANNY),
        {"mask": BOX, "refiner": "tiny", **REPAINT},
    ),
    "the same, each at its own time": (
        (
            Steer("adapter", ("lineart",), (0.6,), end=0.6),
            Steer("union", ("depth",), (0.9,), start=0.5),
            Steer("small", ("softedge",), (1.2,), start=0.55, end=0.75),
        ),
        {"mask": BOX, "refiner": "tiny", "high_noise_frac": 0.85, **REPAINT},
    ),
}


def asked_for(steers: Sequence[Steer], fields: dict[str, Any]) -> Request:
    if "mask" in fields:
        mask = Image.new("L", (128, 128))
        mask.paste(255, BOX)
        fields = {**fields, "mask": codec.read_picture(mask), "crop": "off", "fill": "original"}
    controls = tuple(control for steer in steers for control in steer.asked)
    return request(controls=controls, num_inference_steps=10, **fields)


def pixels(picture: Image.Image) -> Tensor:
    """Return a picture as a tensor [1, 3, height, width] in 0..1."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


def residuals(
    steers: Sequence[Steer], x: Tensor, t: Tensor, seen: dict[str, Any]
) -> dict[str, Any]:
    """Return the residuals that the ControlNets add to the UNet at a timestep."""
    total: list[Tensor] = []
    keywords: dict[str, Any] = {}
    progress = 1 - float(t) / 999
    for steer in steers:
        if not (steer.start <= progress and (progress < steer.end or steer.end == 1)):
            continue
        hints = [pixels(steer.shown(i)) for i in range(len(steer.kinds))]
        if steer.net == "adapter":
            features = [steer.scales[0] * feature for feature in steer.module(hints[0])]
            keywords["down_intrablock_additional_residuals"] = features
            continue
        shown: dict[str, Any] = {"controlnet_cond": hints[0]}
        scale = steer.scales[0]
        if steer.net == "union":
            types = [UNION_TYPES[kind] for kind in steer.kinds]
            marks = torch.tensor([[float(i in types) for i in range(6)]])
            fused = len(types) > 1  # then the scales are weighed inside
            shown = {
                "controlnet_cond": hints,
                "control_type": marks,
                "control_type_idx": types,
                "conditioning_scale": list(steer.scales) if fused else [1.0],
            }
            scale = 1.0 if fused else scale
        down, middle = steer.module(x, t, **shown, **seen, return_dict=False)
        own = [scale * part for part in (*down, middle)]
        total = [a + b for a, b in zip(total, own, strict=True)] if total else own
    if total:
        keywords["down_block_additional_residuals"] = total[:-1]
        keywords["mid_block_additional_residual"] = total[-1]
    return keywords


@torch.no_grad()
def by_hand(asked: Request, steers: Sequence[Steer]) -> Tensor:
    """Return the final latent of a request."""
    base, refiner = tiny_model(overpaint_blocks=False), tiny_refiner(overpaint_blocks=False)
    pipeline: Any = tiny_pipeline(base)
    tokens, no_tokens, pooled, no_pooled = pipeline.encode_prompt(
        prompt=asked.prompt, negative_prompt=asked.negative_prompt
    )
    whole = (128.0, 128, 0, 0)
    sizes, scores = torch.tensor([[*whole, 128, 128]]), (6.0, 2.5)

    pipeline.scheduler.set_timesteps(asked.num_inference_steps)
    timesteps, sigmas = pipeline.scheduler.timesteps, pipeline.scheduler.sigmas
    generator = torch.Generator().manual_seed(asked.seed)
    shape = (1, 4, 16, 16)
    if asked.image:
        kept = int(asked.num_inference_steps * (asked.strength or 0))
        timesteps, sigmas = timesteps[-kept:], sigmas[-kept - 1 :]
        vae: Any = base.vae
        posterior = vae.encode(pixels(sketch()) * 2 - 1).latent_dist
        factor = vae.config["scaling_factor"]
        picture = factor * posterior.mean
        start = picture + factor * posterior.std * torch.randn(shape, generator=generator)
        noise = torch.randn(shape, generator=generator)
        x = start + sigmas[0] * noise
    else:
        picture = torch.zeros(shape)
        noise = torch.randn(shape, generator=generator)
        x = noise * (sigmas[0] ** 2 + 1) ** 0.5
    inside = torch.ones(1, 1, 16, 16)
    if asked.mask:
        left, top, right, bottom = (side // 8 for side in BOX)
        inside = torch.zeros(1, 1, 16, 16)
        inside[..., top:bottom, left:right] = 1
        x = torch.where(inside > 0, x, picture + sigmas[0] * noise)

    for i, t in enumerate(timesteps):
        refining = asked.refiner and 1 - float(t) / 999 >= asked.high_noise_frac
        predictions: list[Tensor] = []
        for text, embedding, score in zip(
            (tokens, no_tokens), (pooled, no_pooled), scores, strict=True
        ):
            seen_x = x / (sigmas[i] ** 2 + 1) ** 0.5
            if refining:
                ids = torch.tensor([[*whole, score]])
                seen: dict[str, Any] = {
                    "encoder_hidden_states": text[..., WIDTHS[0] :],
                    "added_cond_kwargs": {"text_embeds": embedding, "time_ids": ids},
                }
                predictions.append(refiner.unet(seen_x, t, **seen).sample)
            else:
                seen = {
                    "encoder_hidden_states": text,
                    "added_cond_kwargs": {"text_embeds": embedding, "time_ids": sizes},
                }
                added = residuals(steers, seen_x, t, seen)
                predictions.append(base.unet(seen_x, t, **seen, **added).sample)
        positive, negative = predictions
        guided = negative + asked.guidance_scale * (positive - negative)
        x = x + (sigmas[i + 1] - sigmas[i]) * guided
        x = inside * x + (1 - inside) * (picture + sigmas[i + 1] * noise)
    return x


@torch.no_grad()
def ours(asked: Request, steers: Sequence[Steer], folder: Path) -> Tensor:
    model = tiny_model()
    nets = [
        load_controlnet(write(steer.module, folder / f"{steer.net}.safetensors"), model)
        for steer in steers
    ]
    each = [net for net, steer in zip(nets, steers, strict=True) for _ in steer.kinds]
    return run_plans(plan(asked, model, Addons(tiny_refiner(), each)).plans)[0]


@pytest.mark.parametrize("name", CASES)
def test_request_gives_the_latent_of_a_loop_written_out(name: str, tmp_path: Path) -> None:
    steers, fields = CASES[name]
    asked = asked_for(steers, fields)
    wanted = by_hand(asked, steers)
    assert wanted.std() > 0.3
    torch.testing.assert_close(ours(asked, steers, tmp_path), wanted, atol=CLOSE, rtol=0)
    for less in range(len(steers)):  # each of them does steer
        others = (*steers[:less], *steers[less + 1 :])
        assert (by_hand(asked_for(others, fields), others) - wanted).abs().max() > 1e-2
