"""Translation."""

import re
from collections.abc import Collection, Sequence
from io import BytesIO
from typing import Any

from PIL import ImageOps

from overpaint.errors import RequestError, did_you_mean, quote_value
from overpaint.imaging import codec
from overpaint.picture import Picture
from overpaint.provenance.importers.a1111 import resolve_a1111_schedule
from overpaint.registry import SAMPLERS, Fill, resolve_sampler
from overpaint.request import Request
from overpaint.request_fields import Fit
from overpaint.request_parts import Control
from overpaint.server.api.a1111.protocol import (
    CONTROL_NET,
    LATENT_UPSCALER,
    UPSCALERS,
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

RESIZE: dict[int, Fit] = {0: "stretch", 1: "cover", 2: "contain"}
"""Their `resize_mode`."""


FILLS: dict[int, Fill] = {0: "surroundings", 1: "original", 2: "noise", 3: "flat"}
"""Their `inpainting_fill`; "latent nothing" is our nearest, one colour."""


SAME = ("", "None", "Use same checkpoint", "Use same sampler", "Use same scheduler")
"""What a second pass calls its being like the first."""


FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "width": "width",
    "height": "height",
}
"""Fields that are taken as they are, by their name: ours."""


THEIRS = {ours: theirs for theirs, ours in FIELDS.items()} | {
    "image": "init_images",
    "strength": "denoising_strength",
    "sampler": "sampler_name",
    "schedule": "scheduler",
    "num_images": "batch_size",
    "loras": "prompt",
    "controls": CONTROL_NET,
    "crop": "inpaint_full_res_padding",
    "clip_skip": "override_settings.CLIP_stop_at_last_layers",
    "refiner": "refiner_checkpoint",
    "high_noise_frac": "refiner_switch_at",
    "upscale": "hr_scale",
    "refine_strength": "denoising_strength",
    "refine_steps": "hr_second_pass_steps",
}
"""What a field of ours is called there, where something is wrong with it."""


def to_request(
    given: TextInputs | ImageInputs,
    options: Options,
    *,
    controls: Sequence[Control] = (),
    refiners: Collection[str] = (),
    embeddings: Collection[str] = (),
) -> Request:
    """What the inputs ask for.

    Args:
        given: the inputs.
        options: that hold for them.
        controls: what `alwayson_scripts` ask for.
        refiners: what `refiner_checkpoint` may name.
        embeddings: whose names in a prompt stand for themselves.

    Raises:
        RequestError: they contradict each other, or ask for what is not here; in their words.
        PictureError: a picture cannot be read.
    """
    try:
        fields = _fields(given, options, refiners, embeddings)
        return with_checked_mask(Request(**fields, controls=tuple(controls)))
    except RequestError as error:
        raise in_their_words(error) from None


def in_their_words(error: RequestError) -> RequestError:
    """An error that names their field in place of ours."""
    field = error.field.split(".")[0]
    return RequestError(THEIRS.get(field, error.field), error.message)


def _fields(
    given: TextInputs | ImageInputs,
    options: Options,
    refiners: Collection[str],
    embeddings: Collection[str],
) -> dict[str, Any]:
    sampler, schedule = sampler_of(given.sampler_name or given.sampler_index, given.scheduler)
    _check_eta(given.eta, sampler)
    fields = {ours: getattr(given, theirs) for theirs, ours in FIELDS.items()}
    for field in ("prompt", "negative_prompt"):
        fields[field] = with_embeddings(fields[field], embeddings)
    skipped = given.clip_skip or options.CLIP_stop_at_last_layers
    fields |= {
        "sampler": sampler,
        "schedule": schedule,
        "num_images": given.batch_size * given.n_iter,
        "clip_skip": max(skipped - 2, 0),
    }
    if given.seed >= 0:
        fields["seed"] = given.seed
    if given.refiner_checkpoint not in (None, "", "None"):
        refiner = named("refiner_checkpoint", given.refiner_checkpoint, refiners)
        fields |= {"refiner": refiner, "high_noise_frac": given.refiner_switch_at}
        fields["refine"] = "ensemble"
    if isinstance(given, ImageInputs):
        return fields | _of_image(given, options)
    return fields | _second_pass(given)


def sampler_of(name: str, scheduler: str) -> tuple[str, str]:
    """Our names of a sampler and a schedule.

    Raises:
        RequestError: there are none by these names, or they contradict each other.
    """
    sampler, implied = resolve_sampler(name)
    if implied is None:
        return sampler, resolve_a1111_schedule(sampler, scheduler)
    if scheduler.lower() != "automatic" and resolve_a1111_schedule(sampler, scheduler) != implied:
        raise RequestError("scheduler", f"{scheduler!r} contradicts the sampler {name!r}.")
    return sampler, implied


def _check_eta(eta: float | None, sampler: str) -> None:
    wanted = 1.0 if SAMPLERS[sampler].stochastic else 0.0 if sampler == "ddim" else None
    if None not in (eta, wanted) and eta != wanted:
        raise RequestError("eta", f"{eta} cannot be honoured with {sampler}, which has {wanted}.")


def with_embeddings(prompt: str, names: Collection[str]) -> str:
    """A prompt whose embeddings' bare names are marked, as ours are."""
    if not names:
        return prompt
    longest = sorted(names, key=len, reverse=True)
    found = "|".join(map(re.escape, longest))
    known = {name.lower(): name for name in names}

    def marked(match: re.Match[str]) -> str:
        name = known.get(match[0].lower())  # not where it has what only resembles a letter: mıni
        return f"<embedding:{name}>" if name else match[0]

    return re.sub(rf"(?<![\w<:-])({found})(?![\w>-])", marked, prompt, flags=re.IGNORECASE)


def named(field: str, title: str | None, known: Collection[str]) -> str:
    """The name of a model that a title is of: "name", "name [hash]" or "name.safetensors".

    Raises:
        RequestError: there is none.
    """
    bare = re.sub(r" \[[0-9a-f]+\]$", "", title or "").removesuffix(".safetensors")
    for name in (title, bare):
        if name in known:
            return name or ""
    hint = did_you_mean(bare, known) if known else ""
    raise RequestError(field, f"there is no model {quote_value(title)} here.{hint}")


def _second_pass(given: TextInputs) -> dict[str, Any]:
    if not given.enable_hr:
        return {}
    for field in ("hr_resize_x", "hr_resize_y"):
        if value := getattr(given, field):
            raise RequestError(field, f"{value} cannot be honoured; give hr_scale.")
    for field, first in {
        "hr_checkpoint_name": "",
        "hr_sampler_name": given.sampler_name or given.sampler_index,
        "hr_scheduler": given.scheduler,
        "hr_prompt": given.prompt,
        "hr_negative_prompt": given.negative_prompt,
    }.items():
        value = getattr(given, field)
        if value not in (*SAME, first):
            raise RequestError(
                field, f"{quote_value(value)} is not the first pass's; leave it out."
            )
    if given.hr_upscaler not in (LATENT_UPSCALER, *UPSCALERS):
        known = ", ".join((LATENT_UPSCALER, *UPSCALERS))
        raise RequestError(
            "hr_upscaler", f"unknown {quote_value(given.hr_upscaler)}. Known: {known}."
        )
    if given.refiner_checkpoint not in (None, "", "None"):
        raise RequestError("refiner_checkpoint", "contradicts enable_hr; give one of the two.")
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


def _of_image(given: ImageInputs, options: Options) -> dict[str, Any]:
    image = codec.receive_picture(picture_data("init_images", given.init_images[0]), "init_images")
    fields: dict[str, Any] = {
        "image": image,
        "strength": given.denoising_strength,
        "steps": "truncate",
        "fit": RESIZE[given.resize_mode],
    }
    if not given.mask:
        if options.img2img_color_correction:
            raise RequestError(
                "override_settings.img2img_color_correction", "needs a mask; leave it out."
            )
        return fields
    for field in ("mask_blur_x", "mask_blur_y"):
        if getattr(given, field) not in (None, given.mask_blur):
            raise RequestError(field, "cannot differ from mask_blur; leave it out.")
    mask = picture_data("mask", given.mask)
    check_mask_size(image, codec.receive_picture(mask, "mask"))
    fields |= {
        "mask": mask_of(mask, rounded=given.mask_round),
        "mask_invert": given.inpainting_mask_invert,
        "mask_blur": 2 * given.mask_blur,  # ours reaches over two sigmas
        "fill": FILLS[given.inpainting_fill],
        "match_colors": options.img2img_color_correction,
        "crop": given.inpaint_full_res_padding if given.inpaint_full_res else "off",
    }
    if given.inpaint_full_res:
        fields |= {"width": None, "height": None, "size": "keep"}
    return fields


def picture_data(field: str, text: str) -> bytes:
    """The bytes of a picture that is given as base64 or as a data: URI.

    Raises:
        RequestError: it is neither.
    """
    text = text.strip()
    if "," not in text:
        return decode_base64(field, text)
    if not text.startswith("data:"):
        raise RequestError(field, "is neither base64 nor a data: URI.")
    return decode_data_uri(field, text)


def mask_of(data: bytes, *, rounded: bool) -> Picture:
    """A mask as they mean it: where it has transparency, what is opaque is repainted.

    Raises:
        PictureError: it is no picture.
    """
    with codec.open_image(data, "the mask") as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        gray = codec.extract_alpha(image) or image.convert("L")
    if rounded:
        gray = gray.point([255 * (level > 128) for level in range(256)])
    file = BytesIO()
    gray.save(file, "PNG")
    return Picture(data=file.getvalue())
