"""A request made concrete for a model: everything the loop needs, and nothing it must ask for."""

import hashlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from overpaint import images, masks
from overpaint.canvas import Canvas, lay_out
from overpaint.diffusion import latents, prompt
from overpaint.diffusion.constraint import Constraint, Free, Kept
from overpaint.diffusion.denoise import Conditioning, Network, UNet
from overpaint.diffusion.guidance import Guidance
from overpaint.diffusion.samplers import Noise, Sampler, sampler
from overpaint.diffusion.schedule import NoiseSchedule, Sigmas, start
from overpaint.errors import ModelError
from overpaint.names import SAMPLERS
from overpaint.nn.attention import Context

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.models.model import Model
    from overpaint.request import Pair, Request

REMEMBERED = 8
"""Canvases, and encoded pictures, kept per model."""


@dataclass(frozen=True, eq=False)
class Plan:
    """One picture of a request, for one model. A value: it may be run again, to the same result.

    Attributes:
        network: evaluates the rows.
        shape: (channels, height, width) of the latent.
        sampler: the coroutine to run.
        sigmas: descending, ending in 0; the first is where the run starts.
        seed: of this picture's own noise.
        init: the posterior of the picture to start from, for image to image.
        positive: what to draw.
        negative: what to steer away from; None without guidance.
        guidance: how strongly.
        constraint: what the latent must agree with.
    """

    network: Network
    shape: tuple[int, int, int]
    sampler: Sampler
    sigmas: Sigmas
    seed: int
    init: latents.Moments | None
    positive: Conditioning
    negative: Conditioning | None
    guidance: Guidance
    constraint: Constraint = field(default_factory=Free)

    @property
    def steps(self) -> int:
        """Steps that the sampler takes."""
        return len(self.sigmas) - 1

    def noise(self) -> Noise:
        """This picture's own source of unit noise [1, C, h, w], from the beginning.

        Drawn on the CPU in fp32 by torch's generator in the latent's shape, as diffusers does
        when it is given a CPU generator: it depends on nothing but the seed and the shape.
        """
        generator = torch.Generator().manual_seed(self.seed)
        device = self.network.device
        return lambda: torch.randn((1, *self.shape), generator=generator).to(device)

    def start(self, noise: Noise) -> Tensor:
        """The first latent: noise over the picture, or over nothing.

        Pure noise has the variance that a noised latent of unit variance has, σ² + 1. At strength
        1 the picture leaves no trace.
        """
        sigma = self.sigmas[0]
        if self.init is None:
            drawn = noise()
            x = drawn * math.sqrt(sigma**2 + 1)
        else:
            picture = self.init.mean + self.init.std * noise()
            drawn = noise()
            x = picture + sigma * drawn
        return self.constraint.start(x, drawn, sigma)


@dataclass(frozen=True)
class Planned:
    """A request's pictures, planned.

    Attributes:
        plans: one per picture; empty where there is nothing to paint.
        canvas: what they paint on.
        notices: what the user should be told.
    """

    plans: tuple[Plan, ...]
    canvas: Canvas
    notices: tuple[str, ...]


def plan(request: "Request", model: "Model") -> Planned:
    """Make a request concrete: sizes, prompts, the picture's latents, noise levels.

    Picture i gets seed + i and shares everything else.

    Raises:
        ModelError: the model cannot paint by itself.
        RequestError: the model cannot draw this size or take this prompt.
        PictureError: the picture cannot be decoded.
        DeviceError: the picture's latents are not finite.
    """
    if not model.family.paints:
        raise ModelError(
            f"{model.name} is of the family {model.family.name}, which cannot paint by itself; "
            "give an SDXL base model or a fine-tune of it."
        )
    canvas = _canvas(request, model)
    notices = _notices(request, model, canvas)
    if request.strength == 0 or canvas.blank:
        return Planned((), canvas, tuple(notices))

    net = network(model)
    sigmas = start(
        request.schedule,
        request.num_inference_steps,
        1.0 if request.strength is None else request.strength,
        net.schedule,
        mode=request.steps,
        drop_penultimate=SAMPLERS[request.sampler].drops_penultimate,
    )
    guidance = Guidance(request.guidance_scale, request.guidance_rescale, request.guidance_interval)
    positive, negative = _conditionings(request, model, canvas.size)
    init = None
    if canvas.start and request.strength != 1 and request.fill != "noise":
        init = _moments(model, canvas.start, notices)
    constraint: Constraint = Free()
    if part := canvas.part:
        kept = _moments(model, part.kept, notices).mean
        cells = torch.from_numpy(masks.cells(part.mask, model.vae_factor))
        constraint = Kept(kept, cells[None, None].to(model.device), sigmas)
    channels: int = model.vae.config["latent_channels"]
    width, height = canvas.size
    shape = (channels, height // model.vae_factor, width // model.vae_factor)
    plans = tuple(
        Plan(
            net,
            shape,
            sampler(request.sampler),
            sigmas,
            request.seed + i,
            init,
            positive,
            negative,
            guidance,
            constraint,
        )
        for i in range(request.num_images)
    )
    return Planned(plans, canvas, tuple(notices))


def _canvas(request: "Request", model: "Model") -> Canvas:
    """The request's canvas, kept for requests that differ in what is painted on it only."""
    fields = ("width", "height", "size", "fit", "extend", "fill", "crop", "match_colours")
    masks = ("mask_from", "mask_invert", "mask_grow", "mask_blur")
    pictures = (p and p.sha256 for p in (request.image, request.mask))
    key = (*pictures, *(getattr(request, name) for name in (*fields, *masks)))
    return model.remember("canvas", key, lambda: lay_out(request, model.native_size), REMEMBERED)


def _moments(model: "Model", picture: "Image", notices: list[str]) -> latents.Moments:
    """The posterior of a picture, kept by its pixels."""
    key = (picture.size, hashlib.sha256(picture.tobytes()).digest())
    made = model.remember("moments", key, lambda: latents.encode(model, picture), REMEMBERED)
    moments, notice = made
    if notice and notice not in notices:
        notices.append(notice)
    return moments


def network(model: "Model") -> Network:
    """The model's network; always the same one, so that plans of one model share their steps."""

    def make() -> Network:
        return UNet(model.unet, NoiseSchedule(model.noise), model.noise.prediction)

    return model.remember("network", (), make, 1)


def _notices(request: "Request", model: "Model", canvas: Canvas) -> list[str]:
    notices = list(model.notices)
    if canvas.blank:
        notices.append("the mask is black: there is nothing to paint, and the picture is returned.")
    elif outside := images.outside_trained(canvas.size, model.native_size):
        notices.append(outside)
    if (request.negative_prompt or request.negative_prompt_2) and not request.guided:
        notices.append(
            f"negative_prompt is not used: guidance_scale {request.guidance_scale} over "
            f"guidance_interval {request.guidance_interval} leaves no guidance."
        )
    return notices


def _conditionings(
    request: "Request", model: "Model", size: tuple[int, int]
) -> tuple[Conditioning, Conditioning | None]:
    positive, negative = prompt.encode_pair(model, request)
    whole = (size[1], size[0])
    original = request.original_size or whole
    crop = request.crops_coords_top_left
    target = request.target_size or whole
    conditioned = Conditioning(
        Context(positive.tokens), positive.pooled, _size_ids(model, original, crop, target)
    )
    if negative is None:
        return conditioned, None
    ids = _size_ids(
        model,
        request.negative_original_size or original,
        request.negative_crops_coords_top_left or crop,
        request.negative_target_size or target,
    )
    return conditioned, Conditioning(Context(negative.tokens), negative.pooled, ids)


def _size_ids(model: "Model", original: "Pair", crop: "Pair", target: "Pair") -> Tensor:
    return torch.tensor([[*original, *crop, *target]], dtype=torch.float32, device=model.device)
