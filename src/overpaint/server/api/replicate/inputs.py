"""The inputs of Replicate's SDXL model (stability-ai/sdxl), which cog's routes accept too.

Inputs mean the same as in that model, with these differences, which avoid its defects:

- A mask without an image is rejected.
- `width` and `height` apply to image to image too.
- A refiner takes over at any fraction, and leaves the area that the mask keeps unchanged.
- Image k of several equals the image that its seed makes alone.
- Unknown inputs are rejected.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from overpaint.errors import RequestError
from overpaint.request import Request
from overpaint.request_fields import MAX_SEED
from overpaint.request_parts import Lora
from overpaint.server.api.fields import with_checked_mask
from overpaint.server.api.image_inputs import find_remote_urls, load_image
from overpaint.server.http.threads import run_in_picture_thread
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.jobs import Job
from overpaint.server.store.origins import CogOrigin, ReplicateOrigin

SchedulerName = Literal[
    "DDIM",
    "DPMSolverMultistep",
    "HeunDiscrete",
    "KarrasDPM",
    "K_EULER_ANCESTRAL",
    "K_EULER",
    "PNDM",
]

REFINE_BY_NAME = {"expert_ensemble_refiner": "ensemble", "base_image_refiner": "sequential"}


def _number_properties(schema: dict[str, Any]) -> None:
    """Number the properties of a schema as cog does, so that forms show them in order."""
    for order, field in enumerate(schema["properties"].values()):
        field["x-order"] = order


class Input(BaseModel):
    """Inputs of Replicate's SDXL model (stability-ai/sdxl)."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra=_number_properties,
        use_attribute_docstrings=True,
    )

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
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    """Seed of the first image; random by default."""
    refine: Literal["no_refiner", "expert_ensemble_refiner", "base_image_refiner"] = "no_refiner"
    """Second stage to run."""
    high_noise_frac: float = Field(default=0.8, ge=0, le=1)
    """Fraction of the denoising range after which an ensemble's refiner takes over."""
    refine_steps: int | None = Field(default=None, ge=1, le=500)
    """Steps of a base image refiner; by default the same number as the first stage."""
    apply_watermark: bool = True
    """Mark images with an invisible watermark, if the operator of the server enables it."""
    lora_scale: float = Field(default=0.6, ge=0, le=1)
    """Strength of the LoRA that replicate_weights names (`loras[].scale`)."""
    replicate_weights: str | None = None
    """Name of a LoRA in this server's catalog (`loras[].name`)."""
    disable_safety_checker: bool = False
    """Skip the safety check. A server that checks every image rejects `true`."""


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
    if service.settings.watermark and not given.apply_watermark:
        raise RequestError(
            "apply_watermark", "this server watermarks every image; leave the input out."
        )
    if job := await service.repeated(key, token, body):
        return job
    urls = find_remote_urls({"image": given.image, "mask": given.mask})
    async with service.sources(key, urls) as sources:
        request, inputs = await run_in_picture_thread(
            _read_inputs, given, service, sources, origin.base_url
        )
    checked = service.checked("disable_safety_checker", not given.disable_safety_checker)
    stored = origin.model_copy(update={"input": inputs, "check_safety": checked})
    try:
        return await service.submit(
            request, origin=stored, key=key, token=token, body=body, **options
        )
    except RequestError as error:
        if not error.field.startswith("loras."):
            raise
        # The request lists replicate_weights first, then the LoRAs of the prompt's tags.
        is_weights = error.field.startswith("loras.0.") and given.replicate_weights
        field = "replicate_weights" if is_weights else "prompt"
        raise RequestError(field, error.message) from None


def _read_inputs(
    given: Input, service: Service, sources: ImageSources, base_url: str
) -> tuple[Request, dict[str, Any]]:
    """Return the request and the inputs to store."""
    request = to_request(given, sources, service.settings.refiner)
    inputs = given.model_dump(mode="json", exclude_unset=True)
    for field, image in (("image", request.image), ("mask", request.mask)):
        if image and inputs[field].startswith("data:"):
            # `Service.submit` stores the image under this name.
            inputs[field] = f"{base_url}/v1/files/{image.sha256}"
    return request, inputs


def to_request(given: Input, sources: ImageSources, refiner: str | None) -> Request:
    """Translate inputs to a request.

    Args:
        given: the inputs.
        sources: uploads and fetched images.
        refiner: name of the model for second stages; None if the server has none.

    Raises:
        RequestError: inputs contradict each other, or need a model that the server does not have.
        PictureError: an image cannot be read.
    """
    if given.mask and not given.image:
        raise RequestError("mask", "a mask needs an image to repaint; send image too.")
    sides = {name: side for name in ("width", "height") if (side := getattr(given, name))}
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
    if given.seed is not None:
        fields["seed"] = given.seed
    if given.image:
        fields["image"] = load_image("image", given.image, sources)
        fields["strength"] = given.prompt_strength
        fields["steps"] = "truncate"
        if not sides:
            fields["size"] = "keep"
    if given.mask:
        fields["mask"] = load_image("mask", given.mask, sources)
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
            fields["refine_steps"] = given.refine_steps
    return with_checked_mask(Request(**fields))
