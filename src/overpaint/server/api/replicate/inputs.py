"""The inputs of Replicate's SDXL model (stability-ai/sdxl), which cog's routes accept too.

Inputs mean the same as in that model, with these differences, which avoid its defects:

- A mask without an image is rejected.
- `width` and `height` apply to image to image too.
- A refiner takes over at any fraction, and leaves the area that the mask keeps unchanged.
- Image k of several equals the image that its seed makes alone.
- Unknown inputs are reported.

Inputs of Replicate's newer models have their names there: `size`, `aspect_ratio`, `strength`,
`output_format` and `output_quality`.
"""

import re
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from overpaint.errors import RequestError
from overpaint.imaging.sizing import round_to_multiple_of_8
from overpaint.request import Request
from overpaint.request.fields import MAX_SEED
from overpaint.request.parts import Lora
from overpaint.server.api.extended_fields import translate_error
from overpaint.server.api.fields import (
    mark_defaults,
    parse_pair,
    parse_size,
    stretch_mask,
    with_checked_mask,
)
from overpaint.server.api.ignored_fields import TolerantModel, report_ignored
from overpaint.server.api.image_inputs import find_remote_urls, load_image
from overpaint.server.api.results import get_file_kind
from overpaint.server.http.threads import run_in_picture_thread
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.settings import SDXL_SIDE_PX
from overpaint.server.store.job_rows import Job
from overpaint.server.store.origins import CogOrigin, OutputOptions, ReplicateOrigin

SchedulerName = Literal[
    "DDIM",
    "DPMSolverMultistep",
    "HeunDiscrete",
    "KarrasDPM",
    "K_EULER_ANCESTRAL",
    "K_EULER",
    "PNDM",
]

ASPECT_RATIO_PATTERN = re.compile(r"(\d{1,5}):(\d{1,5})")
"""`aspect_ratio`: width and height, without a unit."""

UNSIZED_ASPECT_RATIOS = ("match_input_image", "custom")
"""Values of `aspect_ratio` that leave the size to the other inputs."""

REFINE_BY_NAME = {"expert_ensemble_refiner": "ensemble", "base_image_refiner": "sequential"}


SAMPLING_INPUTS = {
    "num_inference_steps": ("num_inference_steps",),
    "guidance_scale": ("guidance_scale",),
    "sampler": ("scheduler",),
    "schedule": ("scheduler",),
}
"""The inputs that each native field comes from which a few-step model sets."""


def _number_properties(schema: dict[str, Any]) -> None:
    """Number the properties of a schema as cog does, so that forms show them in order."""
    for order, field in enumerate(schema["properties"].values()):
        field["x-order"] = order


class Input(TolerantModel):
    """Inputs of Replicate's SDXL model (stability-ai/sdxl), and some of newer models."""

    model_config = ConfigDict(
        strict=True,
        allow_inf_nan=False,
        json_schema_extra=_number_properties,
        use_attribute_docstrings=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _read_whole_numbers(cls, value: Any) -> Any:
        """Return 50 for 50.0: JSON has one type of numbers."""
        return int(value) if isinstance(value, float) and value.is_integer() else value

    prompt: str = Field(default="", max_length=100_000)
    """Text that describes the image."""
    negative_prompt: str = Field(default="", max_length=100_000)
    """Text that describes what the image must not show."""
    image: str | None = Field(default=None, json_schema_extra={"format": "uri"})
    """The image to repaint: a URL, a data: URI or an upload."""
    mask: str | None = Field(default=None, json_schema_extra={"format": "uri"})
    """The area of the image to repaint: white is repainted, black is kept."""
    width: int | None = Field(default=None, ge=8, le=8192)
    """Width of the result in pixels; by default the model's native width."""
    height: int | None = Field(default=None, ge=8, le=8192)
    """Height of the result in pixels; by default the model's native height."""
    size: str | None = Field(default=None, max_length=20, min_length=1)
    """Pixels as "WIDTHxHEIGHT" (`width`, `height`), if those inputs are absent."""
    aspect_ratio: str | None = Field(default=None, max_length=20, min_length=1)
    """Aspect ratio as "WIDTH:HEIGHT" at the area of the model's native size (`width`, `height`), if
    there is no image and no other size."""
    num_outputs: int = Field(default=1, ge=1, le=4)
    """Number of images (`num_images`)."""
    scheduler: SchedulerName = "K_EULER"
    """Sampler and its schedule of noise levels (`sampler`, `schedule`)."""
    num_inference_steps: int = Field(default=50, ge=1, le=500)
    """Number of denoising steps."""
    guidance_scale: float = Field(default=7.5, ge=1, le=50)
    """How closely the image follows the prompt."""
    prompt_strength: float = Field(default=0.8, ge=0, le=1)
    """How much of the image is repainted (`strength`), 0 to 1; 1 repaints everything."""
    strength: float | None = Field(default=None, ge=0, le=1)
    """Another name of prompt_strength (`strength`), if that is absent."""
    seed: int | None = Field(default=None, ge=-MAX_SEED, le=MAX_SEED)
    """Seed of the first image; random by default, and if it is negative."""
    refine: Literal["no_refiner", "expert_ensemble_refiner", "base_image_refiner"] = "no_refiner"
    """Second stage to run."""
    high_noise_frac: float = Field(default=0.8, ge=0, le=1)
    """Fraction of the denoising range after which an ensemble's refiner takes over."""
    refine_steps: int | None = Field(default=None, ge=0, le=500)
    """Steps of a base image refiner; by default, and if it is 0, the same number as the first
    stage."""
    apply_watermark: bool = True
    """Mark images with an invisible watermark, if the operator of the server enables it."""
    lora_scale: float = Field(default=0.6, ge=0, le=1)
    """Strength of the LoRA that replicate_weights names (`loras[].scale`)."""
    replicate_weights: str | None = None
    """Name of a LoRA in this server's catalog (`loras[].name`)."""
    disable_safety_checker: bool = False
    """Skip the safety check. A server that checks every image rejects `true`."""
    output_format: Literal["png", "jpg", "jpeg", "webp"] = "png"
    """File format of the images."""
    output_quality: int | None = Field(default=None, ge=0, le=100)
    """Quality of JPEG and WebP files; 95 by default."""


async def accept_job(
    service: Service,
    given: Input,
    *,
    origin: ReplicateOrigin | CogOrigin,
    key: str,
    token: str | None,
    body: str,
    **options: Any,
) -> Job:
    """Accept a job, or return the job that the same idempotency key made before.

    Args:
        service: the running server.
        given: the inputs. The job stores them, with links to uploads in place of data: URIs.
        origin: origin of the job, with the base URL of links.
        key: digest of the API key.
        token: the idempotency key.
        body: hash of the request body, which a repeated idempotency key must match.
        options: other arguments of `Service.submit`.

    Raises:
        RequestError: an input is invalid, or names a model or LoRA that the server does not have.
        PictureError: an image cannot be read.
        IdempotencyError: the idempotency key was used with another body.
        QueueFullError: the queue is full.
        OSError: the disk is full.
    """
    report_unused_inputs(given)
    if service.settings.watermark and not given.apply_watermark:
        raise RequestError(
            "apply_watermark", "This server watermarks every image; leave the input out."
        )
    if job := await service.repeated(key, token, body):
        return job
    urls = find_remote_urls({"image": given.image, "mask": given.mask})
    async with service.sources(key, urls) as sources:
        request, inputs = await run_in_picture_thread(
            _read_inputs, given, service, sources, origin.base_url, options.get("model")
        )
    checked = service.checked("disable_safety_checker", not given.disable_safety_checker)
    changes = {"input": inputs, "check_safety": checked, "output": output_options(given)}
    stored = origin.model_copy(update=changes)
    try:
        return await service.submit(
            request, origin=stored, key=key, token=token, body=body, **options
        )
    except RequestError as error:
        if not error.field.startswith("loras."):
            raise translate_size_error(error, given) from None
        # The request lists replicate_weights first, then the LoRAs of the prompt's tags.
        is_weights = error.field.startswith("loras.0.") and given.replicate_weights
        field = "replicate_weights" if is_weights else "prompt"
        raise RequestError(field, error.message) from None


def report_unused(*names: str) -> None:
    """Report inputs without effect. A body has them in `input`."""
    report_ignored(*(f"input.{name}" for name in names))


def report_unused_inputs(given: Input) -> None:
    """Report inputs that have no effect without another one."""
    used = {
        "prompt_strength": bool(given.image),
        "strength": bool(given.image),
        "lora_scale": bool(given.replicate_weights),
        "high_noise_frac": given.refine == "expert_ensemble_refiner",
        "refine_steps": given.refine == "base_image_refiner",
        "seed": given.seed is None or given.seed >= 0,
    }
    report_unused(*(name for name in used if name in given.model_fields_set and not used[name]))


def _read_inputs(
    given: Input, service: Service, sources: ImageSources, base_url: str, model: str | None
) -> tuple[Request, dict[str, Any]]:
    """Return the request and the inputs to store."""
    request = to_request(given, sources, service.settings.refiner, service.native_side_px(model))
    inputs = given.model_dump(mode="json", exclude_unset=True)
    for field, image in (("image", request.image), ("mask", request.mask)):
        if image and inputs[field].startswith("data:"):
            # `Service.submit` stores the image under this name.
            inputs[field] = f"{base_url}/v1/files/{image.sha256}"
    return request, inputs


def find_size_input(given: Input) -> str | None:
    """Return the input that sets width and height, if it has another name.

    Pixels come before a ratio. An image keeps its own aspect ratio, as in Replicate's models.
    """
    if given.width or given.height:
        return None
    if given.size is not None:
        return "size"
    if given.aspect_ratio in (None, *UNSIZED_ASPECT_RATIOS) or given.image:
        return None
    return "aspect_ratio"


def resolve_size(given: Input, native: int) -> dict[str, int]:
    """Return the sides that the inputs ask for, in pixels, and report inputs without effect.

    Args:
        given: the inputs.
        native: side in pixels of the square that the model was trained on.

    Raises:
        RequestError: an input is not a size.
    """
    source = find_size_input(given)
    for name in ("size", "aspect_ratio"):
        if getattr(given, name) is not None and name != source:
            report_unused(name)
    if given.size is not None and source == "size":
        width, height = parse_size("size", given.size)
    elif given.aspect_ratio is not None and source == "aspect_ratio":
        sides = parse_pair("aspect_ratio", given.aspect_ratio, ASPECT_RATIO_PATTERN, '"16:9"')
        root = (sides[0] / sides[1]) ** 0.5
        width, height = round_to_multiple_of_8(native * root), round_to_multiple_of_8(native / root)
    else:
        return {name: side for name in ("width", "height") if (side := getattr(given, name))}
    return {"width": width, "height": height}


def translate_size_error(error: RequestError, given: Input) -> RequestError:
    """Name the input in an error about a side; other errors stay unchanged."""
    source = find_size_input(given)
    return translate_error(error, {"width": source, "height": source}) if source else error


def output_options(given: Input) -> OutputOptions:
    """Return the file format and the encoder options that the inputs ask for."""
    kind = get_file_kind(given.output_format)
    if given.output_quality is None:
        return OutputOptions(kind=kind)
    if kind == "png":
        report_unused("output_quality")
        return OutputOptions(kind=kind)
    return OutputOptions(kind=kind, options={"quality": given.output_quality})


def to_request(
    given: Input, sources: ImageSources, refiner: str | None, native: int = SDXL_SIDE_PX
) -> Request:
    """Translate inputs to a request.

    Args:
        given: the inputs.
        sources: uploads and fetched images.
        refiner: name of the model for second stages; None if the server has none.
        native: side in pixels of the square that the model was trained on.

    Raises:
        RequestError: inputs contradict each other, or need a model that the server does not have.
        PictureError: an image cannot be read.
    """
    if given.mask and not given.image:
        raise RequestError("mask", "A mask needs an image to repaint; send image too.")
    sides = resolve_size(given, native)
    fields: dict[str, Any] = {
        "prompt": given.prompt,
        "negative_prompt": given.negative_prompt,
        "num_images": given.num_outputs,
        "sampler": given.scheduler,
        "num_inference_steps": given.num_inference_steps,
        "guidance_scale": given.guidance_scale,
        **sides,
    }
    if given.scheduler != "KarrasDPM":
        fields["schedule"] = "normal"
    if given.seed is not None and given.seed >= 0:
        fields["seed"] = given.seed
    if given.image:
        fields["image"] = load_image("image", given.image, sources)
        fields["strength"] = _resolve_strength(given)
        fields["steps"] = "truncate"
        if not sides:
            fields["size"] = "keep"
    if given.mask:
        mask = load_image("mask", given.mask, sources)
        fields["mask"] = stretch_mask(mask, fields["image"])
        fields["fill"] = "original"
    if given.replicate_weights:
        fields["loras"] = (Lora(name=given.replicate_weights, scale=given.lora_scale),)
    if given.refine in REFINE_BY_NAME:
        if refiner is None:
            raise RequestError(
                "refine",
                f"{given.refine!r} needs a refiner, but this server has none; leave refine out.",
            )
        fields |= {"refiner": refiner, "refine": REFINE_BY_NAME[given.refine]}
        if given.refine == "expert_ensemble_refiner":
            fields["high_noise_frac"] = given.high_noise_frac
        else:
            fields["refine_steps"] = given.refine_steps or None
    try:
        request = with_checked_mask(Request.model_validate(fields))
        return mark_defaults(request, given, SAMPLING_INPUTS)
    except RequestError as error:
        raise translate_size_error(error, given) from None


def _resolve_strength(given: Input) -> float:
    """Return the strength, and report its other name if it is not used."""
    if given.strength is None:
        return given.prompt_strength
    if "prompt_strength" in given.model_fields_set:
        report_unused("strength")
        return given.prompt_strength
    return given.strength
