"""Translation of AUTOMATIC1111's inputs to a `Request`."""

import re
from collections.abc import Collection, Sequence
from io import BytesIO
from typing import Any

from PIL import ImageOps

from overpaint.errors import RequestError, did_you_mean, quote_value
from overpaint.imaging import codec
from overpaint.picture import Picture
from overpaint.provenance.a1111_text import mark_embeddings
from overpaint.provenance.importers.a1111 import resolve_a1111_schedule
from overpaint.registry import SAMPLERS, Fill, resolve_sampler
from overpaint.request import Request
from overpaint.request_fields import Fit
from overpaint.request_parts import Control
from overpaint.server.api.a1111.protocol import (
    CONTROLNET_FIELD,
    LATENT_UPSCALER,
    PIXEL_UPSCALERS,
    ImageInputs,
    Options,
    TextInputs,
)
from overpaint.server.api.fields import (
    check_mask_size,
    decode_base64,
    decode_data_uri,
    with_checked_mask,
)

FIT_BY_RESIZE_MODE: dict[int, Fit] = {0: "stretch", 1: "cover", 2: "contain"}

FILL_BY_NUMBER: dict[int, Fill] = {0: "surroundings", 1: "original", 2: "noise", 3: "flat"}
"""`fill` for each `inpainting_fill`. The nearest to "latent nothing" (3) is a flat color."""

SAME_AS_FIRST_PASS = ("", "None", "Use same checkpoint", "Use same sampler", "Use same scheduler")
"""Values of the second pass's fields that stand for the value of the first pass."""

MASK_ROUNDING_LEVEL = 128
"""Gray level, 0 to 255, up to which a rounded mask becomes black."""

UNCHANGED_FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "width": "width",
    "height": "height",
}
"""Native name of each field whose value is used unchanged."""

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
    "high_noise_frac": "refiner_switch_at",
    "upscale": "hr_scale",
    "refine_strength": "denoising_strength",
    "refine_steps": "hr_second_pass_steps",
}
"""AUTOMATIC1111's name for each native field, for error messages."""


def to_request(
    given: TextInputs | ImageInputs,
    options: Options,
    *,
    controls: Sequence[Control] = (),
    refiners: Collection[str] = (),
    embeddings: Collection[str] = (),
) -> Request:
    """Translate inputs to a request.

    Args:
        given: the inputs.
        options: options that apply to the request.
        controls: controls that `alwayson_scripts` asks for.
        refiners: names that `refiner_checkpoint` accepts.
        embeddings: names of embeddings, which a prompt uses as plain words.

    Raises:
        RequestError: inputs contradict each other, or name something that the server does not
            have. The error names AUTOMATIC1111's field.
        PictureError: an image cannot be read.
    """
    try:
        fields = _map_fields(given, options, refiners, embeddings)
        return with_checked_mask(Request(**fields, controls=tuple(controls)))
    except RequestError as error:
        raise translate_error(error) from None


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
    sampler, schedule = resolve_sampler_and_schedule(
        given.sampler_name or given.sampler_index, given.scheduler
    )
    _check_eta(given.eta, sampler)
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
    if given.seed >= 0:
        fields["seed"] = given.seed
    if given.refiner_checkpoint not in (None, "", "None"):
        refiner = resolve_model_title("refiner_checkpoint", given.refiner_checkpoint, refiners)
        fields |= {"refiner": refiner, "high_noise_frac": given.refiner_switch_at}
        fields["refine"] = "ensemble"
    if isinstance(given, ImageInputs):
        return fields | _image_fields(given, options)
    return fields | _second_pass_fields(given)


def resolve_sampler_and_schedule(name: str, scheduler: str) -> tuple[str, str]:
    """Return the native names of a sampler and of its schedule.

    Raises:
        RequestError: a name is unknown, or the sampler's name includes another scheduler.
    """
    sampler, implied = resolve_sampler(name)
    if implied is None:
        return sampler, resolve_a1111_schedule(sampler, scheduler)
    if scheduler.lower() != "automatic" and resolve_a1111_schedule(sampler, scheduler) != implied:
        raise RequestError(
            "scheduler",
            f"{scheduler!r} contradicts the sampler {name!r}; use 'Automatic', or a sampler "
            "without a scheduler in its name.",
        )
    return sampler, implied


def _check_eta(eta: float | None, sampler: str) -> None:
    supported = 1.0 if SAMPLERS[sampler].stochastic else 0.0 if sampler == "ddim" else None
    if None not in (eta, supported) and eta != supported:
        raise RequestError(
            "eta", f"{eta} is not supported with the sampler {sampler}; use {supported}."
        )


def resolve_model_title(field: str, title: str | None, known: Collection[str]) -> str:
    """Return the name of the model with a title: "name", "name [hash]" or "name.safetensors".

    Args:
        field: the field that contains the title, for the error.
        title: the title.
        known: names of models.

    Raises:
        RequestError: no model has that title.
    """
    bare = re.sub(r" \[[0-9a-f]+\]$", "", title or "").removesuffix(".safetensors")
    for name in (title, bare):
        if name in known:
            return name or ""
    hint = did_you_mean(bare, known) if known else ""
    raise RequestError(field, f"there is no model {quote_value(title)}.{hint}")


def _second_pass_fields(given: TextInputs) -> dict[str, Any]:
    if not given.enable_hr:
        return {}
    _check_second_pass(given)
    strength = given.denoising_strength
    fields: dict[str, Any] = {
        "refine": "sequential",
        "upscale": given.hr_scale,
        "refine_strength": 0.75 if strength is None else strength,
        "refine_steps": given.hr_second_pass_steps or None,
    }
    if given.hr_scale != 1 and given.hr_upscaler == LATENT_UPSCALER:
        fields["upscale_in"] = "latents"
    return fields


def _check_second_pass(given: TextInputs) -> None:
    """Reject fields of the second pass that Overpaint cannot honor."""
    for field in ("hr_resize_x", "hr_resize_y"):
        if value := getattr(given, field):
            raise RequestError(field, f"{value} is not supported; use hr_scale.")
    for field, first in {
        "hr_checkpoint_name": "",
        "hr_sampler_name": given.sampler_name or given.sampler_index,
        "hr_scheduler": given.scheduler,
        "hr_prompt": given.prompt,
        "hr_negative_prompt": given.negative_prompt,
    }.items():
        value = getattr(given, field)
        if value not in (*SAME_AS_FIRST_PASS, first):
            raise RequestError(
                field, f"{quote_value(value)} differs from the first pass; leave the field out."
            )
    if given.hr_upscaler not in (LATENT_UPSCALER, *PIXEL_UPSCALERS):
        known = ", ".join((LATENT_UPSCALER, *PIXEL_UPSCALERS))
        message = f"unknown upscaler {quote_value(given.hr_upscaler)}. Known: {known}."
        raise RequestError("hr_upscaler", message)
    if given.refiner_checkpoint not in (None, "", "None"):
        raise RequestError("refiner_checkpoint", "contradicts enable_hr; send one of the two.")


def _image_fields(given: ImageInputs, options: Options) -> dict[str, Any]:
    image = codec.receive_picture(decode_image("init_images", given.init_images[0]), "init_images")
    fields: dict[str, Any] = {
        "image": image,
        "strength": given.denoising_strength,
        "steps": "truncate",
        "fit": FIT_BY_RESIZE_MODE[given.resize_mode],
    }
    if not given.mask:
        if options.img2img_color_correction:
            raise RequestError(
                "override_settings.img2img_color_correction",
                "color correction needs a mask; send a mask, or leave the option out.",
            )
        return fields
    for field in ("mask_blur_x", "mask_blur_y"):
        if (value := getattr(given, field)) not in (None, given.mask_blur):
            raise RequestError(
                field, f"{value} differs from mask_blur, {given.mask_blur}; leave the field out."
            )
    mask = decode_image("mask", given.mask)
    check_mask_size(image, codec.receive_picture(mask, "mask"))
    fields |= {
        "mask": read_mask(mask, rounded=given.mask_round),
        "mask_invert": given.inpainting_mask_invert,
        "mask_blur": 2 * given.mask_blur,  # the native blur is two standard deviations
        "fill": FILL_BY_NUMBER[given.inpainting_fill],
        "match_colors": options.img2img_color_correction,
        "crop": given.inpaint_full_res_padding if given.inpaint_full_res else "off",
    }
    if given.inpaint_full_res:
        fields |= {"width": None, "height": None, "size": "keep"}
    return fields


def decode_image(field: str, text: str) -> bytes:
    """Return the bytes of an image that is base64 or a data: URI.

    Raises:
        RequestError: the text is neither.
    """
    text = text.strip()
    if "," not in text:
        return decode_base64(field, text)
    if not text.startswith("data:"):
        raise RequestError(field, "the value is neither base64 nor a data: URI.")
    return decode_data_uri(field, text)


def read_mask(data: bytes, *, rounded: bool) -> Picture:
    """Return a grayscale mask in which white is repainted.

    Args:
        data: the file of the mask. If it has transparency, opaque pixels become white.
        rounded: whether gray pixels become black or white.

    Raises:
        PictureError: the file is not an image.
    """
    with codec.open_image(data, "the mask") as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        gray = codec.extract_alpha(image) or image.convert("L")
    if rounded:
        gray = gray.point([255 * (level > MASK_ROUNDING_LEVEL) for level in range(256)])
    file = BytesIO()
    gray.save(file, "PNG")
    return Picture(data=file.getvalue())
