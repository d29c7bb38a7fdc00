"""Inputs."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from overpaint.errors import RequestError
from overpaint.request import Request
from overpaint.request_fields import MAX_SEED
from overpaint.request_parts import Lora
from overpaint.server.api.fields import run_in_reader_pool, with_checked_mask
from overpaint.server.api.image_inputs import find_remote_urls, load_image
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.jobs import Job
from overpaint.server.store.origins import CogOrigin, ReplicateOrigin

Scheduler = Literal[
    "DDIM",
    "DPMSolverMultistep",
    "HeunDiscrete",
    "KarrasDPM",
    "K_EULER_ANCESTRAL",
    "K_EULER",
    "PNDM",
]


REFINES = {"expert_ensemble_refiner": "ensemble", "base_image_refiner": "sequential"}


def _ordered(schema: dict[str, Any]) -> None:
    """Number a schema's properties, as cog does: forms show them in that order."""
    for order, field in enumerate(schema["properties"].values()):
        field["x-order"] = order


class Input(BaseModel):
    """The inputs of Replicate's SDXL model (stability-ai/sdxl), and which of ours they are."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=_ordered
    )

    prompt: str = Field(default="", max_length=100_000, description="What to draw.")
    negative_prompt: str = Field(
        default="", max_length=100_000, description="What to steer away from."
    )
    image: str | None = Field(
        default=None,
        description="Picture to repaint: a URL, a data: URI or an upload.",
        json_schema_extra={"format": "uri"},
    )
    mask: str | None = Field(
        default=None,
        description="What of the image is repainted: white is, black is kept.",
        json_schema_extra={"format": "uri"},
    )
    width: int | None = Field(
        default=None, ge=8, le=8192, description="Of the result; by default the model's own."
    )
    height: int | None = Field(default=None, ge=8, le=8192, description="Likewise.")
    num_outputs: int = Field(default=1, ge=1, le=4, description="Pictures to make: `num_images`.")
    scheduler: Scheduler = Field(
        default="K_EULER", description="`sampler`, with a `schedule` of its own."
    )
    num_inference_steps: int = Field(default=50, ge=1, le=500, description="Denoising steps.")
    guidance_scale: float = Field(default=7.5, ge=1, le=50, description="How strongly to guide.")
    prompt_strength: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="`strength`: how much of the image is repainted; 1 is all of it.",
    )
    seed: int | None = Field(
        default=None, ge=0, le=MAX_SEED, description="By default drawn at random."
    )
    refine: Literal["no_refiner", "expert_ensemble_refiner", "base_image_refiner"] = Field(
        default="no_refiner", description="Which second stage follows."
    )
    high_noise_frac: float = Field(
        default=0.8, ge=0, le=1, description="Where an ensemble's refiner takes over."
    )
    refine_steps: int | None = Field(
        default=None, ge=1, le=500, description="Of a base image refiner; by default as many."
    )
    apply_watermark: bool = Field(
        default=True, description="Whether there is one is the server's to say, and it says so."
    )
    lora_scale: float = Field(
        default=0.6, ge=0, le=1, description="`loras[].scale`, of what replicate_weights names."
    )
    replicate_weights: str | None = Field(
        default=None, description="`loras[].name`: a LoRA of this server's catalogue."
    )
    disable_safety_checker: bool = Field(
        default=False, description="Refused where the server checks every picture."
    )


async def accept(
    service: Service,
    given: Input,
    *,
    origin: ReplicateOrigin | CogOrigin,
    key: str,
    token: str | None,
    body: str,
    **others: Any,
) -> Job:
    """Accept what the inputs ask for.

    Args:
        service: to accept it.
        given: the inputs, which are remembered, data: URIs among them as links to uploads.
        origin: what else is, with the base URL of links.
        key: as of `Service.submit`.
        token: likewise.
        body: likewise.
        others: likewise.

    Raises:
        RequestError: as `to_request`, or they name what is not here; in their words.
        PictureError, IdempotencyError, QueueFullError, OSError: as `Service.submit`.
    """
    if service.settings.watermark and not given.apply_watermark:
        raise RequestError("apply_watermark", "this server marks every picture; leave it out.")
    if job := await service.repeated(key, token, body):
        return job
    urls = find_remote_urls({"image": given.image, "mask": given.mask})
    async with service.sources(key, urls) as sources:
        request, asked = await run_in_reader_pool(_read, given, service, sources, origin.base_url)
    checked = service.checked("disable_safety_checker", not given.disable_safety_checker)
    kept = origin.model_copy(update={"input": asked, "check_safety": checked})
    try:
        return await service.submit(request, origin=kept, key=key, token=token, body=body, **others)
    except RequestError as error:
        if not error.field.startswith("loras."):
            raise
        first = error.field.startswith("loras.0.") and given.replicate_weights
        field = "replicate_weights" if first else "prompt"
        raise RequestError(field, error.message) from None


def _read(
    given: Input, service: Service, sources: ImageSources, base: str
) -> tuple[Request, dict[str, Any]]:
    """What the inputs ask for, and what is remembered of them."""
    request = to_request(given, sources, service.settings.refiner)
    asked = given.model_dump(mode="json", exclude_unset=True)
    for field, sent in (("image", request.image), ("mask", request.mask)):
        if sent and asked[field].startswith("data:"):
            asked[field] = f"{base}/v1/files/{sent.sha256}"  # where `Service.submit` keeps it
    return request, asked


def to_request(given: Input, sources: ImageSources, refiner: str | None) -> Request:
    """What the inputs ask for.

    Args:
        given: the inputs.
        sources: where uploads are, and what was fetched.
        refiner: the model of a second stage, where there is one.

    Raises:
        RequestError: they contradict each other, or ask for what this server does not have.
        PictureError: a picture cannot be read.
    """
    if given.mask and not given.image:
        raise RequestError("mask", "there is no image to repaint a part of; give it too.")
    sizes = {name: side for name in ("width", "height") if (side := getattr(given, name))}
    fields: dict[str, Any] = {
        "prompt": given.prompt,
        "negative_prompt": given.negative_prompt,
        "num_images": given.num_outputs,
        "sampler": given.scheduler,
        "num_inference_steps": given.num_inference_steps,
        "guidance_scale": given.guidance_scale,
        **sizes,
    }
    if given.scheduler != "KarrasDPM":
        fields["schedule"] = "normal"
    if given.seed is not None:
        fields["seed"] = given.seed
    if given.image:
        fields["image"] = load_image("image", given.image, sources)
        fields["strength"] = given.prompt_strength
        fields["steps"] = "truncate"
        if not sizes:
            fields["size"] = "keep"
    if given.mask:
        fields["mask"] = load_image("mask", given.mask, sources)
        fields["fill"] = "original"
    if given.replicate_weights:
        fields["loras"] = (Lora(name=given.replicate_weights, scale=given.lora_scale),)
    if given.refine in REFINES:
        if refiner is None:
            raise RequestError(
                "refine", f"{given.refine!r} needs a refiner, and this server was given none."
            )
        fields |= {"refiner": refiner, "refine": REFINES[given.refine]}
        if given.refine == "expert_ensemble_refiner":
            fields["high_noise_frac"] = given.high_noise_frac
        else:
            fields["refine_steps"] = given.refine_steps
    return with_checked_mask(Request(**fields))
