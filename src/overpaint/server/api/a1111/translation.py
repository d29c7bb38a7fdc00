"""Translation of AUTOMATIC1111's inputs to a `Request`."""

from collections.abc import Collection, Sequence
from typing import Any

from overpaint.errors import RequestError, quote_value
from overpaint.imaging import codec
from overpaint.provenance.a1111_text import mark_embeddings
from overpaint.provenance.importers.a1111 import resolve_a1111_schedule
from overpaint.registry import SAMPLERS, Fill, resolve_sampler
from overpaint.request import Request
from overpaint.request.fields import Fit
from overpaint.request.parts import Control
from overpaint.server.api.a1111.image_fields import decode_image, read_mask
from overpaint.server.api.a1111.model_titles import resolve_model_title
from overpaint.server.api.a1111.option_fields import Options
from overpaint.server.api.a1111.protocol import (
    CONTROLNET_FIELD,
    LATENT_UPSCALER,
    PIXEL_UPSCALERS,
    ImageInputs,
    TextInputs,
)
from overpaint.server.api.fields import mark_defaults, stretch_mask, with_checked_mask
from overpaint.server.api.ignored_fields import report_ignored

FIT_BY_RESIZE_MODE: dict[int, Fit] = {0: "stretch", 1: "cover", 2: "contain"}

FILL_BY_NUMBER: dict[int, Fill] = {0: "surroundings", 1: "original", 2: "noise", 3: "flat"}
"""`fill` for each `inpainting_fill`. The nearest to "latent nothing" (3) is a flat color."""

CHURNING_SAMPLERS = ("euler", "heun", "dpm2")
"""Samplers for which AUTOMATIC1111 uses `s_churn`."""

NO_MODEL = (None, "", "None", "none")
"""Titles that stand for no model."""

NO_VAE = ("automatic", "auto", "none", "")
"""Titles that stand for the model's own VAE."""

VAE_FIELD = "override_settings.sd_vae"

SAME_AS_FIRST_PASS = ("", "None", "Use same checkpoint", "Use same sampler", "Use same scheduler")
"""Values of the second pass's fields that stand for the value of the first pass."""

UNCHANGED_FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "width": "width",
    "height": "height",
    "subseed_strength": "subseed_strength",
}
"""Native name of each field whose value is used unchanged."""

SAMPLER_FIELDS = ("sampler_name", "sampler_index", "scheduler")
"""Fields that name the sampler or its schedule."""

SAMPLING_FIELDS = {
    "num_inference_steps": ("steps",),
    "guidance_scale": ("cfg_scale",),
    "sampler": SAMPLER_FIELDS,
    "schedule": SAMPLER_FIELDS,
}
"""The fields that each native field comes from which a few-step model sets."""

CLIENT_FIELDS = {native: client for client, native in UNCHANGED_FIELDS.items()} | {
    "image": "init_images",
    "strength": "denoising_strength",
    "sampler": "sampler_name",
    "schedule": "scheduler",
    "num_images": "batch_size",
    "loras": "prompt",
    "controls": CONTROLNET_FIELD,
    "crop": "inpaint_full_res_padding",
    "clip_skip": "override_settings.CLIP_stop_at_last_layers",
    "refiner": "refiner_checkpoint",
    "vae": VAE_FIELD,
    "decoder": "override_settings.sd_vae_decode_method",
    "high_noise_frac": "refiner_switch_at",
    "upscale": "hr_scale",
    "upscale_to": "hr_resize_x",
    "refine_strength": "denoising_strength",
    "refine_steps": "hr_second_pass_steps",
}
"""AUTOMATIC1111's name for each native field, for error messages."""


def to_requests(
    given: TextInputs | ImageInputs,
    options: Options,
    *,
    model: str = "",
    controls: Sequence[Control] = (),
    refiners: Collection[str] = (),
    embeddings: Collection[str] = (),
    vaes: Collection[str] = (),
) -> list[Request]:
    """Translate inputs to requests: one, or one for each image of several `init_images`.

    Args:
        given: the inputs.
        options: options that apply to the request.
        model: the name of the model of the request.
        controls: controls that `alwayson_scripts` asks for.
        refiners: names that `refiner_checkpoint` accepts.
        embeddings: names of embeddings, which a prompt uses as plain words.
        vaes: names that `sd_vae` accepts.

    Raises:
        RequestError: inputs contradict each other, or name something that the server does not
            have. The error names AUTOMATIC1111's field.
        PictureError: an image cannot be read.
    """
    try:
        fields = _map_fields(given, options, refiners, embeddings)
        fields["controls"] = tuple(controls)
        if options.sd_vae.lower() not in NO_VAE:
            fields["vae"] = resolve_model_title(VAE_FIELD, options.sd_vae, vaes)
        if options.sd_vae_decode_method == "TAESD":
            fields["decoder"] = "tiny"
        if isinstance(given, TextInputs):
            fields |= _second_pass_fields(given, model)
            return [_make_request(given, fields)]
        images = [_image_fields(given, options, image) for image in given.init_images]
        if len(images) == 1:
            return [_make_request(given, fields | images[0])]
        # The web UI numbers the seeds over all images, so that each of these jobs has its own.
        order = images * given.n_iter
        fields["num_images"] = len(order)
        whole = Request.model_validate(fields | images[0])
        requests: list[Request] = []
        for place, own in enumerate(order):
            fields["num_images"] = 1
            fields["seed"] = whole.picture_seeds[place]
            fields["subseed"] = whole.picture_subseeds[place]
            requests.append(_make_request(given, fields | own))
        return requests
    except RequestError as error:
        raise translate_error(error) from None


def _make_request(given: TextInputs | ImageInputs, fields: dict[str, Any]) -> Request:
    return mark_defaults(with_checked_mask(Request.model_validate(fields)), given, SAMPLING_FIELDS)


def report_unused_fields(given: TextInputs | ImageInputs) -> None:
    """Report fields that have no effect beside the other ones of the same request."""
    unused: list[str] = []
    if isinstance(given, ImageInputs) and given.mask and given.inpaint_full_res:
        unused += ["width", "height"]
    if given.refiner_checkpoint in NO_MODEL:
        unused.append("refiner_switch_at")
    options = given.override_settings
    if "sd_vae" in options.model_fields_set and options.sd_vae.lower() in NO_VAE:
        report_ignored(VAE_FIELD)
    report_ignored(*(name for name in unused if name in given.model_fields_set))


def translate_error(error: RequestError) -> RequestError:
    """Replace the native field of an error by AUTOMATIC1111's field."""
    field = error.field.split(".")[0]
    return RequestError(CLIENT_FIELDS.get(field, error.field), error.message)


def _map_fields(
    given: TextInputs | ImageInputs,
    options: Options,
    refiners: Collection[str],
    embeddings: Collection[str],
) -> dict[str, Any]:
    sampler, schedule = resolve_sampler_and_schedule(get_sampler_name(given), given.scheduler)
    _check_sampler_noise(given, sampler)
    _check_noise_size(given)
    fields = {native: getattr(given, client) for client, native in UNCHANGED_FIELDS.items()}
    for field in ("prompt", "negative_prompt"):
        fields[field] = mark_embeddings(fields[field], embeddings)
    last_layer = given.clip_skip or options.CLIP_stop_at_last_layers
    fields |= {
        "sampler": sampler,
        "schedule": schedule,
        "num_images": given.batch_size * given.n_iter,
        "clip_skip": max(last_layer - 2, 0),
    }
    for field in ("seed", "subseed"):
        if (seed := getattr(given, field)) >= 0:
            fields[field] = seed
    if given.refiner_checkpoint not in NO_MODEL:
        refiner = resolve_model_title("refiner_checkpoint", given.refiner_checkpoint, refiners)
        fields |= {"refiner": refiner, "high_noise_frac": given.refiner_switch_at}
        fields["refine"] = "ensemble"
    return fields


def get_sampler_name(given: TextInputs | ImageInputs) -> str:
    """Return the name of the sampler that inputs ask for."""
    return given.sampler_name or given.sampler_index or "Euler"


def resolve_sampler_and_schedule(name: str, scheduler: str) -> tuple[str, str]:
    """Return the native names of a sampler and of its schedule.

    A schedule at the end of the sampler's name takes precedence, as in the web UI.

    Raises:
        RequestError: a name is unknown.
    """
    sampler, implied = resolve_sampler(name)
    if implied is None:
        return sampler, resolve_a1111_schedule(sampler, scheduler or "Automatic")
    if scheduler and scheduler.lower() != "automatic":
        report_ignored("scheduler")
    return sampler, implied


def _check_sampler_noise(given: TextInputs | ImageInputs, sampler: str) -> None:
    """Reject noise settings that the sampler has and Overpaint lacks; report those that it lacks.

    Raises:
        RequestError: a setting would change the image.
    """
    stochastic = SAMPLERS[sampler].stochastic
    supported = {
        "eta": 1.0 if stochastic else 0.0 if sampler == "ddim" else None,
        "s_churn": 0.0 if sampler in CHURNING_SAMPLERS else None,
        # The web UI does not give it to Euler a.
        "s_noise": 1.0 if stochastic and sampler != "euler_a" else None,
    }
    for field, only in supported.items():
        value = getattr(given, field)
        if only is None:
            report_ignored(*(name for name in (field,) if name in given.model_fields_set))
        elif value not in (None, only):
            raise RequestError(
                field, f"{value} is not supported with the sampler {sampler}; use {only}."
            )


def _check_noise_size(given: TextInputs | ImageInputs) -> None:
    """Reject noise of another size than the result. The web UI ignores sides of 0 and below.

    Raises:
        RequestError: the size differs.
    """
    names = ("seed_resize_from_w", "seed_resize_from_h")
    sides = [getattr(given, name) for name in names]
    size = [given.width, given.height]
    for name, side, own in zip(names, sides, size, strict=True):
        if min(sides) > 0 and side // 8 * 8 != own:
            raise RequestError(
                name, f"{side} is not the result's size; noise of another size is not supported."
            )
    report_ignored(*(name for name in names if name in given.model_fields_set))


def _second_pass_fields(given: TextInputs, model: str) -> dict[str, Any]:
    if not given.enable_hr:
        return {}
    _check_second_pass(given, model)
    strength = given.denoising_strength
    fields: dict[str, Any] = {
        "refine": "sequential",
        "refine_strength": 0.75 if strength is None else strength,
        "refine_steps": given.hr_second_pass_steps or None,
    }
    if size := _compute_second_size(given):
        fields["upscale_to"] = size
    else:
        fields["upscale"] = given.hr_scale
    if given.hr_upscaler == LATENT_UPSCALER and (size or given.hr_scale != 1):
        fields["upscale_in"] = "latents"
    return fields


def _compute_second_size(given: TextInputs) -> tuple[int, int] | None:
    """Return the size after the second pass that hr_resize_x and hr_resize_y ask for.

    Returns:
        None if they leave the size to hr_scale.
    """
    x, y = given.hr_resize_x, given.hr_resize_y
    if not x and not y:
        return None
    if not (x and y):
        if (given.width is None) != (given.height is None):
            field = "hr_resize_x" if x else "hr_resize_y"
            raise RequestError(field, "It needs width and height, or neither of them.")
        width, height = given.width or 1, given.height or 1  # the native size is a square
        x, y = x or y * width // height, y or x * height // width
    return x // 8 * 8, y // 8 * 8


def _check_second_pass(given: TextInputs, model: str) -> None:
    """Reject fields of the second pass that Overpaint cannot honor."""
    title = given.override_settings.sd_model_checkpoint or ""
    for field, first in {
        "hr_checkpoint_name": title if given.hr_checkpoint_name == title else model,
        "hr_sampler_name": get_sampler_name(given),
        "hr_scheduler": given.scheduler,
        "hr_prompt": given.prompt,
        "hr_negative_prompt": given.negative_prompt,
    }.items():
        value = getattr(given, field)
        if value not in SAME_AS_FIRST_PASS and value.casefold() != first.casefold():
            raise RequestError(
                field, f"{quote_value(value)} differs from the first pass; leave the field out."
            )
    if given.hr_upscaler not in (LATENT_UPSCALER, *PIXEL_UPSCALERS):
        known = ", ".join((LATENT_UPSCALER, *PIXEL_UPSCALERS))
        message = f"unknown upscaler {quote_value(given.hr_upscaler)}. Known: {known}."
        raise RequestError("hr_upscaler", message)
    if given.refiner_checkpoint not in NO_MODEL:
        raise RequestError("refiner_checkpoint", "It contradicts enable_hr; send one of the two.")


def _image_fields(given: ImageInputs, options: Options, text: str) -> dict[str, Any]:
    """Return the fields of a request that repaints one image.

    Args:
        given: the inputs.
        options: options that apply to the request.
        text: one of `init_images`.
    """
    image = codec.receive_picture(decode_image("init_images", text), "init_images")
    fields: dict[str, Any] = {
        "image": image,
        "strength": given.denoising_strength,
        "steps": "truncate",
        "fit": FIT_BY_RESIZE_MODE[given.resize_mode],
    }
    if not given.mask:
        if options.img2img_color_correction:
            fields["match_image_colors"] = True
        return fields
    mask = read_mask(decode_image("mask", given.mask), "mask", rounded=given.mask_round)
    mask = stretch_mask(mask, image)
    fields |= {
        "mask": mask,
        "mask_invert": given.inpainting_mask_invert,
        "mask_blur": 2 * _get_mask_blur(given),  # the native blur is two standard deviations
        "fill": FILL_BY_NUMBER[given.inpainting_fill],
        "match_colors": options.img2img_color_correction,
        "crop": given.inpaint_full_res_padding if given.inpaint_full_res else "off",
    }
    if given.inpaint_full_res:
        fields |= {"width": None, "height": None, "size": "keep"}
    return fields


def _get_mask_blur(given: ImageInputs) -> int:
    """Return the standard deviation of the mask's blur.

    Raises:
        RequestError: the horizontal and the vertical one differ.
    """
    if given.mask_blur is not None:
        return given.mask_blur
    if given.mask_blur_x != given.mask_blur_y:
        raise RequestError(
            "mask_blur_x",
            f"{given.mask_blur_x} differs from mask_blur_y, {given.mask_blur_y}; send mask_blur.",
        )
    return given.mask_blur_x
