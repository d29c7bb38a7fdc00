"""A request made concrete for a model: everything the loop needs, and nothing it must ask for."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from overpaint.diffusion import control_inputs, latents, prompt, stages
from overpaint.diffusion.constraint import Constraint, Free, Kept
from overpaint.diffusion.denoise import Conditioning, Network, UNet
from overpaint.diffusion.guidance import Guidance
from overpaint.diffusion.samplers import Noise, Sampler, sampler
from overpaint.diffusion.schedule import NoiseSchedule, Sigmas, start
from overpaint.diffusion.tiling.vae import Tiled
from overpaint.errors import ModelError
from overpaint.imaging import images, masks
from overpaint.imaging.canvas import Canvas, lay_out
from overpaint.models.adapters import weights_of
from overpaint.models.addons import NOTHING, Extras, check_second
from overpaint.nn.attention import Context
from overpaint.registry import SAMPLERS

if TYPE_CHECKING:
    from overpaint.models.model import Model
    from overpaint.request import Request

WINDOW_CELLS = 4 * 128 * 128
"""Latent cells, over all windows of a tiled stage, that an accelerator is given at once."""


@dataclass(frozen=True, eq=False)
class Plan:
    """One picture of a request, for one model. A value: it may be run again, to the same result.

    Attributes:
        network: evaluates the rows.
        shape: (channels, height, width) of the latent.
        sampler: the coroutine to run.
        sigmas: descending; the first is where the run starts, the last, 0, where it ends (or where
            the next stage takes over).
        seed: of this picture's own noise.
        init: the posterior of the picture to start from, for image to image.
        positive: what to draw.
        negative: what to steer away from; None without guidance.
        guidance: how strongly.
        constraint: what the latent must agree with.
        carried: the noisy latent that a stage before has left, to start from as it is.
        then: the next stage.
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
    carried: Tensor | None = None
    then: "Stage | None" = None

    @property
    def steps(self) -> int:
        """Steps that the sampler takes, in this stage and those that follow."""
        return len(self.sigmas) - 1 + (self.then.plan.steps if self.then else 0)

    def noise(self, generator: torch.Generator | None = None) -> Noise:
        """A source of unit noise [1, C, h, w]; by default this picture's own, from the beginning.

        Drawn on the CPU in fp32 by torch's generator in the latent's shape, as diffusers does
        when it is given a CPU generator: it depends on nothing but the seed and the shapes.
        """
        source = generator or torch.Generator().manual_seed(self.seed)
        device = self.network.device
        return lambda: torch.randn((1, *self.shape), generator=source).to(device)

    def start(self, noise: Noise) -> Tensor:
        """The first latent: noise over the picture, or over nothing.

        Pure noise has the variance that a noised latent of unit variance has, σ² + 1. At strength
        1 the picture leaves no trace.
        """
        if self.carried is not None:
            return self.carried
        sigma = self.sigmas[0]
        picture = None if self.init is None else self.init.mean + self.init.std * noise()
        drawn = noise()
        x = drawn * math.sqrt(sigma**2 + 1) if picture is None else picture + sigma * drawn
        return self.constraint.start(x, drawn, sigma)


@dataclass(frozen=True, eq=False)
class Stage:
    """What follows a plan.

    Attributes:
        plan: of the stage, but for what it starts from.
        begin: the plan, given itself and the latent that the stage before ended with.
    """

    plan: Plan
    begin: Callable[[Plan, Tensor], Plan]

    def after(self, latent: Tensor) -> Plan:
        """The plan, started from what the stage before ended with."""
        return self.begin(self.plan, latent)


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


def plan(request: "Request", model: "Model", extras: Extras = NOTHING) -> Planned:
    """Make a request concrete: sizes, prompts, the picture's latents, noise levels, stages.

    Picture i gets seed + i and shares everything else.

    Args:
        request: what to paint.
        model: to paint with.
        extras: what the request names.

    Raises:
        ModelError: the model cannot paint by itself, or the refiner does not go with it.
        RequestError: the model cannot draw this size or take this prompt.
        PictureError: the picture or the mask cannot be decoded.
        DeviceError: the picture's latents are not finite.
    """
    if not model.family.paints:
        raise ModelError(
            f"{model.name} is of the family {model.family.name}, which cannot paint by itself; "
            "give an SDXL base model or a fine-tune of it."
        )
    canvas = _canvas(request, model)
    notices = _notices(request, model, canvas)
    if request.effective_strength == 0 or canvas.blank:
        return Planned((), canvas, tuple(notices))
    drawn = _sigmas(request, model, request.num_inference_steps, request.effective_strength)
    first = _stage(request, model, canvas, drawn, notices, extras)
    if canvas.start and request.effective_strength < 1 and request.fill != "noise":
        first = replace(first, init=moments(model, canvas.start, notices))
    if request.staged:
        first = _followed(first, request, model, canvas, notices, extras)
    plans = (replace(first, seed=request.seed + i) for i in range(request.num_images))
    return Planned(tuple(plans), canvas, tuple(notices))


def _followed(
    first: Plan,
    request: "Request",
    model: "Model",
    canvas: Canvas,
    notices: list[str],
    extras: Extras,
) -> Plan:
    """The first stage with the second one behind it.

    An ensemble shares one schedule (arXiv 2307.01952, section 2.5); otherwise the second stage
    repaints what the first has finished, with a strength of its own, perhaps larger. Hints and
    LoRAs are there in a second stage of the same model; a refiner goes on without.
    """
    second = extras.refiner or model
    if second is not model:
        check_second(model, second)
        extras = Extras(embeddings=extras.embeddings)
    if request.refine == "ensemble":
        above, below = stages.cut(first.sigmas, request.high_noise_frac)
        if len(below) == 1:
            return first
        last = _stage(request, second, canvas, below, notices, extras, whole=first.sigmas)
        if len(above) == 1:
            return replace(last, init=first.init)
        return replace(first, sigmas=above, then=Stage(last, stages.carry))
    larger = canvas.scaled(request.upscale)
    steps = request.refine_steps or request.num_inference_steps
    drawn = _sigmas(request, second, steps, request.refine_strength)
    last = _stage(request, second, larger, drawn, notices, extras)
    begin = stages.renoise if larger is canvas else stages.enlarge(model, request.upscale_in)
    return replace(first, then=Stage(last, begin))


def _sigmas(request: "Request", model: "Model", steps: int, strength: float) -> Sigmas:
    """The noise levels of a stage that starts at a strength."""
    return start(
        request.schedule,
        steps,
        strength,
        network(model).schedule,
        mode=request.steps,
        drop_penultimate=SAMPLERS[request.sampler].drops_penultimate,
    )


def _stage(
    request: "Request",
    model: "Model",
    canvas: Canvas,
    drawn: Sigmas,
    notices: list[str],
    extras: Extras,
    whole: Sigmas | None = None,
) -> Plan:
    """The plan of one stage of a request: a model on a canvas over some sigmas.

    It starts from pure noise; whoever wants another start replaces `init` or `carried`.

    Args:
        request: what to paint.
        model: of this stage.
        canvas: likewise.
        drawn: the sigmas of this stage.
        notices: what the user should be told is appended.
        extras: of the request, if it is a stage of the base.
        whole: the sigmas of all stages that a grey mask divides; by default of this one.
    """
    positive, negative = _conditionings(request, model, canvas, notices, extras)
    constraint: Constraint = Free()
    if part := canvas.part:
        kept = moments(model, part.kept, notices).mean
        constraint = Kept(kept, _cells(part.mask, model), whole or drawn)
    channels: int = model.vae.config["latent_channels"]
    width, height = canvas.size
    beyond = max(canvas.size) > 2 * model.native_size
    return Plan(
        _tiled(model) if beyond else network(model),
        (channels, height // model.vae_factor, width // model.vae_factor),
        sampler(request.sampler),
        drawn,
        request.seed,
        None,
        positive,
        negative,
        Guidance(request.guidance_scale, request.guidance_rescale, request.guidance_interval),
        constraint,
    )


def _canvas(request: "Request", model: "Model") -> Canvas:
    """The request's canvas, kept for requests that differ in what is painted on it only."""
    fields = ("width", "height", "size", "fit", "extend", "fill", "crop", "match_colours")
    masks = ("mask_from", "mask_invert", "mask_grow", "mask_blur")
    pictures = (p and p.sha256 for p in (request.image, request.mask))
    key = (*pictures, *(getattr(request, name) for name in (*fields, *masks)))
    return model.remember("canvas", key, lambda: lay_out(request, model.native_size))


def moments(
    model: "Model", picture: Image.Image, notices: list[str], hidden: masks.Mask | None = None
) -> latents.Moments:
    """The posterior of a picture, mid-grey where it is hidden, kept by its pixels."""

    def encode() -> tuple[latents.Moments, str | None]:
        pixels = images.to_array(picture)
        return latents.encode(model, pixels if hidden is None else pixels * (1 - hidden))

    content = (picture.tobytes(), b"" if hidden is None else hidden.tobytes())
    key = (picture.size, *(hashlib.sha256(part).digest() for part in content))
    found, notice = model.remember("moments", key, encode)
    if notice and notice not in notices:
        notices.append(notice)
    return found


def network(model: "Model") -> Network:
    """The model's network; always the same one, so that plans of one model share their steps."""

    def make() -> Network:
        schedule = NoiseSchedule(model.noise)
        return UNet(model.unet, schedule, model.noise.prediction, weights_of(model))

    return model.once("network", make)


def _tiled(model: "Model") -> Network:
    """The same, for pictures beyond the sizes that the model draws."""
    cells = WINDOW_CELLS if model.device.type != "cpu" else 1

    def make() -> Network:
        side = model.native_size // model.vae_factor
        return Tiled(network(model), side, model.vae_factor, cells=cells)

    return model.once("tiled network", make)


def _notices(request: "Request", model: "Model", canvas: Canvas) -> list[str]:
    notices = list(model.notices)
    if canvas.blank:
        notices.append("the mask is black: there is nothing to paint, and the picture is returned.")
    elif outside := images.outside_trained(canvas.size, model.native_size):
        notices.append(outside)
    if (part := canvas.part) and (said := part.cropped(canvas.size)):
        notices.append(said)
    if (request.negative_prompt or request.negative_prompt_2) and not request.guided:
        notices.append(
            f"negative_prompt is not used: guidance_scale {request.guidance_scale} over "
            f"guidance_interval {request.guidance_interval} leaves no guidance."
        )
    return notices


def _conditionings(
    request: "Request", model: "Model", canvas: Canvas, notices: list[str], extras: Extras
) -> tuple[Conditioning, Conditioning | None]:
    positive, negative = prompt.encode_pair(model, request, extras.adapters, extras.embeddings)
    width, height = canvas.size
    whole = (height, width)
    original = request.original_size or whole
    crop = request.crops_coords_top_left
    scored = model.family.scored
    target = (request.aesthetic_score,) if scored else request.target_size or whole
    channels = _channels(model, canvas, notices)
    controls = control_inputs.controls(
        request, model, canvas, extras.nets, extras.estimators, notices
    )
    conditioned = Conditioning(
        Context(positive.tokens, extras.adapters),
        positive.pooled,
        _size_ids(model, original, crop, target),
        channels,
        controls,
        extras.adapters,
    )
    if negative is None:
        return conditioned, None
    ids = _size_ids(
        model,
        request.negative_original_size or original,
        request.negative_crops_coords_top_left or crop,
        (request.negative_aesthetic_score,) if scored else request.negative_target_size or target,
    )
    both = tuple(control for control in controls if control.weighting != "guess")
    adapters = extras.adapters
    tokens = Context(negative.tokens, adapters)
    return conditioned, Conditioning(tokens, negative.pooled, ids, channels, both, adapters)


def _size_ids(model: "Model", *values: tuple[float, ...]) -> Tensor:
    ids = [[number for pair in values for number in pair]]
    return torch.tensor(ids, dtype=torch.float32, device=model.device)


def _channels(model: "Model", canvas: Canvas, notices: list[str]) -> Tensor | None:
    """An inpainting network's further inputs: the mask, and the latent of what is kept.

    What is to be repainted is mid-grey in it; without a mask, that is everything.
    """
    if not model.family.sees_mask:
        return None
    if part := canvas.part:
        picture, hidden = part.kept, (part.mask > 0).astype(np.float32)
    else:
        width, height = canvas.size
        picture, hidden = Image.new("RGB", canvas.size), np.ones((height, width), np.float32)
    kept = moments(model, picture, notices, hidden).mean
    return torch.cat([_cells(hidden, model), kept], dim=1)


def _cells(mask: masks.Mask, model: "Model") -> Tensor:
    """A mask of pixels as one of latent cells, [1, 1, h, w]."""
    return torch.from_numpy(masks.cells(mask, model.vae_factor))[None, None].to(model.device)
