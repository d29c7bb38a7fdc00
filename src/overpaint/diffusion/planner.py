"""Compile a request for a model into plans: sizes, prompts, latents, noise levels and stages."""

import hashlib
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from overpaint.diffusion import control_inputs, latents, prompt, stages
from overpaint.diffusion.conditioning import Conditioning, Network
from overpaint.diffusion.constraint import Constraint, MaskConstraint, Unconstrained
from overpaint.diffusion.guidance import Guidance, embed_guidance_scale
from overpaint.diffusion.langevin import FreeConstraint, add_langevin_steps
from overpaint.diffusion.noise import Variation
from overpaint.diffusion.plan import Plan, Planned, Stage
from overpaint.diffusion.samplers import get_sampler
from overpaint.diffusion.schedule import Sigmas, make_sigmas_for_strength
from overpaint.diffusion.tiling.network import TiledNetwork
from overpaint.diffusion.unet import get_network
from overpaint.errors import ModelError
from overpaint.imaging import codec, masks, sizing
from overpaint.imaging.canvas import Canvas, lay_out
from overpaint.models.addons import NO_ADDONS, Addons, check_refiner
from overpaint.models.model import Model
from overpaint.nn.attention import Context
from overpaint.registry import SAMPLERS
from overpaint.request import Request
from overpaint.request.foreign_syntax import describe_foreign_syntax
from overpaint.system.abandon import check_abandoned

TILED_CALL_MAX_CELLS = 4 * 128 * 128
"""The maximum number of latent cells per network call of a tiled stage on an accelerator."""


def plan(request: Request, model: Model, addons: Addons = NO_ADDONS) -> Planned:
    """Compile a request for a model.

    Each picture gets its own seed and subseed; the pictures share everything else.

    Args:
        request: the request.
        model: the base model.
        addons: the loaded refiner, ControlNets, LoRAs and embeddings of the request.

    Raises:
        ModelError: the model cannot paint by itself, or the refiner does not fit it.
        RequestError: the model cannot draw this size or read this prompt.
        PictureError: the picture or the mask cannot be decoded.
        DeviceError: the picture's latents are not finite.
    """
    if not model.family.paints:
        raise ModelError(
            f"{model.name} belongs to the family {model.family.name}, which cannot paint by "
            "itself. Use an SDXL base model or a fine-tune of it."
        )
    canvas = get_canvas(request, model)
    notices = _list_notices(request, model, canvas)
    strength = request.effective_strength
    if strength == 0 or canvas.blank:
        return Planned((), canvas, tuple(notices))
    first = _plan_canvas(request, model, canvas, notices, addons)
    plans = (
        replace(first, seed=seed, variation=Variation(subseed, request.subseed_strength))
        for seed, subseed in zip(request.picture_seeds, request.picture_subseeds, strict=True)
    )
    return Planned(tuple(plans), canvas, tuple(notices))


def _plan_canvas(
    request: Request, model: Model, canvas: Canvas, notices: list[str], addons: Addons
) -> Plan:
    """Return the stages that paint a canvas, and those of the windows that follow it."""
    strength = request.effective_strength
    sigmas = _select_sigmas(request, model, request.num_inference_steps, strength)
    first = _plan_stage(request, model, canvas, sigmas, notices, addons)
    if canvas.start and strength < 1 and request.fill != "noise":
        first = replace(first, init=encode_picture(model, canvas.start, notices))
    if request.staged:
        first = _append_second_stage(first, request, model, canvas, notices, addons)
    if canvas.extension is None:
        return first

    def begin(plan: Plan, latent: Tensor) -> Plan:
        del plan  # it only counts the steps
        window, _ = latents.decode_latent(model, latent)
        return _plan_canvas(request, model, canvas.lay_out_next(window), [], addons)

    own, chain = first, first
    for _ in canvas.extension.windows:
        chain = stages.append_stage(own, Stage(chain, begin))
    return chain


def _append_second_stage(
    first: Plan,
    request: Request,
    model: Model,
    canvas: Canvas,
    notices: list[str],
    addons: Addons,
) -> Plan:
    """Return the first stage, followed by the second one.

    "ensemble": both stages share one schedule (arXiv 2307.01952, section 2.5). "sequential": the
    second stage repaints the result of the first, with another strength, and can be larger.
    Control images and LoRAs act in a second stage of the same model. A refiner ignores them.
    """
    second = addons.refiner or model
    if second is not model:
        check_refiner(model, second)
        addons = Addons(embeddings=addons.embeddings)
    if request.refine == "ensemble":
        noisy, clean = stages.split_sigmas(first.sigmas, request.high_noise_frac)
        if len(clean) == 1:
            return first
        last = _plan_stage(request, second, canvas, clean, notices, addons, all_sigmas=first.sigmas)
        if len(noisy) == 1:
            return replace(last, init=first.init)
        return replace(first, sigmas=noisy, then=Stage(last, stages.carry_latent))
    if request.upscale_to:
        larger = canvas.crop_to(request.upscale_to)
    else:
        larger = canvas.scale(request.upscale)
    steps = request.refine_steps or request.num_inference_steps
    sigmas = _select_sigmas(request, second, steps, request.refine_strength)
    last = _plan_stage(request, second, larger, sigmas, notices, addons)
    if larger is canvas:
        begin = stages.renoise_latent
    else:
        begin = stages.make_enlarger(model, request.upscale_in, larger.fit)
    return replace(first, then=Stage(last, begin))


def _select_sigmas(request: Request, model: Model, steps: int, strength: float) -> Sigmas:
    """Return the noise levels of a stage that starts at a strength."""
    return make_sigmas_for_strength(
        request.schedule,
        steps,
        strength,
        get_network(model).schedule,
        mode=request.steps,
        drop_penultimate=SAMPLERS[request.sampler].drops_penultimate,
    )


def _plan_stage(
    request: Request,
    model: Model,
    canvas: Canvas,
    sigmas: Sigmas,
    notices: list[str],
    addons: Addons,
    all_sigmas: Sigmas | None = None,
) -> Plan:
    """Return the plan of one stage: a model on a canvas over some sigmas.

    The plan starts from pure noise. The caller sets `init` or `carried` for another start.

    Args:
        request: the request.
        model: of this stage.
        canvas: of this stage.
        sigmas: of this stage.
        notices: the function appends messages for the user.
        addons: those of the request, or for a refiner only its embeddings.
        all_sigmas: the sigmas of all stages that a gray mask divides; by default `sigmas`.
    """
    check_abandoned()
    positive, negative = _encode_conditioning(request, model, canvas, notices, addons)
    constraint: Constraint = Unconstrained()
    sampler = get_sampler(request.sampler)
    if region := canvas.region:
        kept = encode_picture(model, region.original, notices).mean
        masked = MaskConstraint(kept, _mask_cells(region.mask, model), all_sigmas or sigmas)
        constraint = masked
        if request.langevin_steps:
            sampler = add_langevin_steps(sampler, masked, request.langevin_steps)
            constraint = FreeConstraint(masked)
    channels: int = model.vae.config["latent_channels"]
    width, height = canvas.size
    tiled = max(canvas.size) > 2 * model.native_size
    return Plan(
        _get_tiled_network(model) if tiled else get_network(model),
        (channels, height // model.vae_factor, width // model.vae_factor),
        sampler,
        sigmas,
        request.seed,
        None,
        positive,
        negative,
        Guidance(request.guidance_scale, request.guidance_rescale, request.guidance_interval),
        constraint,
        canvas=canvas,
    )


def get_canvas(request: Request, model: Model) -> Canvas:
    """Return the request's canvas, cached by the fields that it depends on."""
    fields = ("width", "height", "size", "fit", "extend", "fill", "crop", "match_colors")
    fields = (*fields, "match_image_colors")
    mask_fields = ("mask_from", "mask_invert", "mask_grow", "mask_blur")
    pictures = (p and p.sha256 for p in (request.image, request.mask))
    # Without an image, the size follows from the control images.
    given = () if request.image else ((c.kind, c.hint or c.image) for c in request.controls)
    controls = tuple((kind, shown and shown.sha256) for kind, shown in given)
    key = (*pictures, controls, *(getattr(request, name) for name in (*fields, *mask_fields)))
    return model.remember("canvas", key, lambda: lay_out(request, model.native_size))


def encode_picture(
    model: Model, picture: Image.Image, notices: list[str], hidden: masks.Mask | None = None
) -> latents.Moments:
    """Return the VAE posterior of a picture, cached by its pixels.

    Args:
        model: encodes the picture.
        picture: as large as the canvas.
        notices: the function appends messages for the user.
        hidden: [height, width] in 0..1. Where it is 1, the picture becomes mid-gray.
    """

    def encode() -> tuple[latents.Moments, str | None]:
        pixels = codec.to_array(picture)
        return latents.encode_pixels(model, pixels if hidden is None else pixels * (1 - hidden))

    content = (picture.tobytes(), b"" if hidden is None else hidden.tobytes())
    key = (picture.size, *(hashlib.sha256(part).digest() for part in content))
    moments, notice = model.remember("moments", key, encode)
    if notice and notice not in notices:
        notices.append(notice)
    return moments


def _get_tiled_network(model: Model) -> Network:
    """Return the model's network for pictures larger than the sizes that it draws.

    Each model has one tiled network object, so that plans of one model can share a network call.
    """
    cells = TILED_CALL_MAX_CELLS if model.device.type != "cpu" else 1

    def make() -> Network:
        side = model.native_size // model.vae_factor
        return TiledNetwork(get_network(model), side, model.vae_factor, cells=cells)

    return model.make_once("tiled network", make)


def _list_notices(request: Request, model: Model, canvas: Canvas) -> list[str]:
    notices = [*model.notices, *canvas.notices]
    if canvas.blank:
        notices.append("the mask is black: there is nothing to paint, and the picture is returned.")
    elif outside := sizing.describe_untrained_size(canvas.size, model.native_size):
        notices.append(outside)
    region = canvas.region if canvas.extension is None else None
    if region and (scale := region.describe_scale(canvas.size)):
        notices.append(scale)
    if model.guidance_width:
        notices.append(
            f"{model.name} takes guidance_scale {request.guidance_scale} as an input of its "
            "network. It uses no negative_prompt, guidance_rescale or guidance_interval."
        )
    elif (request.negative_prompt or request.negative_prompt_2) and not request.guided:
        notices.append(
            f"negative_prompt is not used: guidance_scale {request.guidance_scale} over "
            f"guidance_interval {request.guidance_interval} leaves no guidance."
        )
    if foreign := describe_foreign_syntax(request.prompts.values()):
        notices.append(foreign)
    return notices


def _encode_conditioning(
    request: Request, model: Model, canvas: Canvas, notices: list[str], addons: Addons
) -> tuple[Conditioning, Conditioning | None]:
    """Return the conditioning of the prompt and, if the request is guided, of the negative one."""
    guidance: Tensor | None = None
    prompts = request
    if model.guidance_width:
        guidance = embed_guidance_scale(request.guidance_scale, model.guidance_width)
        prompts = request.model_copy(update={"guidance_scale": 1.0})  # no unconditional row
    positive, negative = prompt.encode_prompt_pair(
        model, prompts, addons.adapters, addons.embeddings
    )
    width, height = canvas.size
    whole = (height, width)
    original = request.original_size or whole
    crop = request.crops_coords_top_left
    scored = model.family.has_aesthetic_score
    target = (request.aesthetic_score,) if scored else request.target_size or whole
    channels = _encode_channels(model, canvas, notices)
    controls = control_inputs.prepare_control_inputs(
        request, model, canvas, addons.nets, addons.estimators, notices
    )
    conditioned = Conditioning(
        Context(positive.tokens, addons.adapters),
        positive.pooled,
        _size_ids(model, original, crop, target),
        channels,
        controls,
        addons.adapters,
        guidance,
    )
    if negative is None:
        return conditioned, None
    ids = _size_ids(
        model,
        request.negative_original_size or original,
        request.negative_crops_coords_top_left or crop,
        (request.negative_aesthetic_score,) if scored else request.negative_target_size or target,
    )
    negative_controls = tuple(control for control in controls if control.weighting != "guess")
    adapters = addons.adapters
    tokens = Context(negative.tokens, adapters)
    return conditioned, Conditioning(
        tokens, negative.pooled, ids, channels, negative_controls, adapters
    )


def _size_ids(model: Model, *values: tuple[float, ...]) -> Tensor:
    ids = [[number for pair in values for number in pair]]
    return torch.tensor(ids, dtype=torch.float32, device=model.device)


def _encode_channels(model: Model, canvas: Canvas, notices: list[str]) -> Tensor | None:
    """Return an inpainting network's additional channels: the mask and the masked picture's latent.

    The masked picture is mid-gray where it will be repainted; without a mask, everywhere.
    """
    if not model.family.sees_mask:
        return None
    if region := canvas.region:
        picture, hidden = region.original, (region.mask > 0).astype(np.float32)
    else:
        width, height = canvas.size
        picture, hidden = Image.new("RGB", canvas.size), np.ones((height, width), np.float32)
    kept = encode_picture(model, picture, notices, hidden).mean
    return torch.cat([_mask_cells(hidden, model), kept], dim=1)


def _mask_cells(mask: masks.Mask, model: Model) -> Tensor:
    """Return a mask of pixels as a mask of latent cells, [1, 1, h, w]."""
    return torch.from_numpy(masks.to_latent_cells(mask, model.vae_factor))[None, None].to(
        model.device
    )
