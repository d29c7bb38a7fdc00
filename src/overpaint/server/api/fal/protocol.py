"""The wire format of fal's SDXL apps: arguments, results, states and errors.

fal's own arguments are translated to fields of `Request`. Every other field of `Request` is
accepted under its native name.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from overpaint.errors import PictureError, RequestError
from overpaint.request import Request
from overpaint.request_fields import MAX_SEED
from overpaint.server.api.extended_fields import FieldMapping, build_request, get_field_error
from overpaint.server.api.image_inputs import load_image
from overpaint.server.api.inline_files import encode_file
from overpaint.server.api.results import (
    MEDIA_TYPES,
    format_progress,
    format_timestamp,
    result_url,
)
from overpaint.server.http.problems import describe_error
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.jobs import ENDED, Job
from overpaint.server.store.origins import FalOrigin

FAL_OWNER = "fal-ai"
"""Owner of fal's public apps. Its apps stand for the server's first model, unless the server has
a model of that name."""

SizeName = Literal[
    "square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"
]
SIZES_BY_NAME: dict[SizeName, tuple[int, int]] = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
"""Width and height in pixels of each named size."""

REQUIRED_ARGUMENTS_BY_TASK: dict[str, tuple[str, ...]] = {
    "": (),
    "text-to-image": (),
    "image-to-image": ("image_url",),
    "inpainting": ("image_url", "mask_url"),
}
"""Tasks that can follow the name of an app in a path, and the arguments that each requires."""

DEFAULT_STRENGTH = 0.95
"""Default of `strength` in fal's image-to-image apps."""

CANCELED_STATUS = 499
"""HTTP status of the result of a canceled request."""

BLOCKED_ERROR_TYPE = "content_policy_violation"
"""Error type for a request whose images were all flagged by the safety checker."""

ERROR_SCHEMA = {"type": "object", "required": ["detail"], "properties": {"detail": {}}}
"""JSON schema of an error response."""


class ImageSize(BaseModel):
    """Width and height of an image, in pixels."""

    model_config = ConfigDict(extra="forbid")

    width: int
    height: int


class LoraWeight(BaseModel):
    """A LoRA to apply."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    path: str = Field(min_length=1, max_length=100)
    """Name of the LoRA in this server's catalog (`loras[].name`)."""
    scale: float = Field(default=1.0, ge=-10, le=10)
    """Strength of the LoRA (`loras[].scale`)."""


class Arguments(BaseModel):
    """Arguments of fal's SDXL apps.

    Arguments that this model does not define are native fields of `Request`.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, use_attribute_docstrings=True)

    prompt: str = Field(max_length=100_000)
    """Text that describes the image."""
    negative_prompt: str = Field(default="", max_length=100_000)
    """Text that describes what the image must not show."""
    image_url: str | None = None
    """The image to repaint (`image`): a URL, a data: URI or an upload to /v1/files."""
    mask_url: str | None = None
    """The mask (`mask`): a URL, a data: URI or an upload. White areas are repainted."""
    strength: float | None = Field(default=None, ge=0, le=1)
    """How much of the image is repainted, 0 to 1; 0.95 by default."""
    image_size: SizeName | ImageSize | None = None
    """Size of the result (`width`, `height`): pixels or a name; by default the model's native
    size."""
    num_inference_steps: int = Field(default=25, ge=1, le=1000)
    """Number of denoising steps."""
    guidance_scale: float = Field(default=7.5, ge=0, le=50)
    """How closely the image follows the prompt."""
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    """Seed of the first image; random by default."""
    num_images: int = Field(default=1, ge=1, le=64)
    """Number of images."""
    scheduler: str | None = Field(default=None, max_length=200)
    """Name of the sampler (`sampler`)."""
    loras: list[LoraWeight] = Field(default_factory=list[LoraWeight], max_length=32)
    """LoRAs to apply."""
    format: Literal["png", "jpeg"] = "png"
    """File format of the images."""
    sync_mode: bool = False
    """Return images as data: URIs instead of links."""
    enable_safety_checker: bool = True
    """Check images for unsafe content. A server that checks every image rejects `false`."""
    safety_checker_version: Literal["v1", "v2"] = "v1"
    """Accepted without effect: the operator of the server configures the safety checker."""
    expand_prompt: Literal[False] = False
    """Prompts are never expanded; `true` is rejected."""


NATIVE_FIELDS = frozenset(Request.model_fields) - set(Arguments.model_fields) - {"image", "mask"}
"""Fields of `Request` that clients send under their native names."""


@dataclass(frozen=True)
class App:
    """An app and a task, as a URL names them."""

    name: str
    """`OWNER/APP`."""

    model: str
    """Name of the model of this server that the app stands for."""

    required: tuple[str, ...]
    """Arguments that the task requires."""


# Errors


def error_details(field: str, message: str, kind: str = "value_error") -> list[dict[str, Any]]:
    """Return the `detail` of an error that concerns an argument ("" for the whole body)."""
    return [{"loc": ["body", *_split_path(field)], "msg": message, "type": kind}]


def _split_path(field: str) -> list[str | int]:
    parts = (part for part in field.split(".") if part)
    # A longer number is a name: Python refuses to parse very long ones.
    return [int(part) if part.isdecimal() and len(part) < 10 else part for part in parts]


def error_response(error: Exception) -> JSONResponse:
    """Make the response to one of `problems.HANDLED_ERRORS`."""
    status, title, detail, headers = describe_error(error)
    if isinstance(error, RequestError):
        detail = error_details(error.field, error.message)
    elif isinstance(error, PictureError) or (status == 422 and isinstance(detail, str)):
        status, detail = 422, error_details("", detail)
    elif status >= 500 and not isinstance(error, HTTPException):
        detail = f"{title}: {detail}"
    return JSONResponse({"detail": detail}, status, headers)


# Arguments to a request


def to_request(
    given: Arguments, sources: ImageSources, required: Sequence[str] = ()
) -> tuple[Request, dict[str, str]]:
    """Translate arguments to a request.

    Args:
        given: the arguments that the client sent.
        sources: uploads and fetched images.
        required: arguments that the task requires.

    Returns:
        The request, and the argument that each translated field of `Request` came from.

    Raises:
        RequestError: an argument is unknown, missing, out of range or contradicts another one. The
            error names the argument.
        PictureError: an image cannot be read.
    """
    for name in required:
        if getattr(given, name) is None:
            raise RequestError(name, "this task requires the argument; send it.")
    if given.mask_url is not None and given.image_url is None:
        raise RequestError("mask_url", "a mask needs an image to repaint; send image_url too.")
    try:
        return build_request(given, _map_fields(given, sources), NATIVE_FIELDS, sources)
    except RequestError as error:
        raise translate_nested_error(error, given) from None


def translate_nested_error(error: RequestError, given: Arguments) -> RequestError:
    """Name the argument in an error about a LoRA or a webhook; other errors stay unchanged."""
    head, _, rest = error.field.partition(".")
    if head == "webhook":
        field = "fal_webhook"
    elif head == "loras":
        index, _, part = rest.partition(".")
        listed = index.isdecimal() and int(index) < len(given.loras)
        # The request also lists the LoRAs of the prompt's <lora:…> tags, after the others.
        field = f"loras.{index}.{'path' if part == 'name' else part}" if listed else "prompt"
    else:
        return error
    return RequestError(field, error.message)


def _map_fields(given: Arguments, sources: ImageSources) -> list[FieldMapping]:
    same = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "num_images")
    mapped: list[FieldMapping] = [(name, name, getattr(given, name)) for name in same]
    mapped += [(n, n, v) for n in ("seed", "strength") if (v := getattr(given, n)) is not None]
    if given.scheduler is not None:
        mapped.append(("scheduler", "sampler", given.scheduler))
    if (size := given.image_size) is not None:
        sides = (size.width, size.height) if isinstance(size, ImageSize) else SIZES_BY_NAME[size]
        mapped += [("image_size", n, v) for n, v in zip(("width", "height"), sides, strict=True)]
    if loras := [{"name": lora.path, "scale": lora.scale} for lora in given.loras]:
        mapped.append(("loras", "loras", loras))
    if given.image_url is not None:
        mapped.append(("image_url", "image", load_image("image_url", given.image_url, sources)))
        defaults: dict[str, Any] = {"steps": "truncate"}
        if given.strength is None:
            defaults["strength"] = DEFAULT_STRENGTH
        if given.mask_url is not None:
            mapped.append(("mask_url", "mask", load_image("mask_url", given.mask_url, sources)))
            defaults["fill"] = "original"
        native = given.model_extra or {}
        mapped += [(name, name, value) for name, value in defaults.items() if name not in native]
    return mapped


# A job to a response


def job_result(service: Service, job: Job) -> dict[str, Any]:
    """Return the result of a job: its images, each with its seed.

    Raises:
        HTTPException: 400, the job has not ended; 422, every image was flagged; 499, the job was
            canceled; 500, the job failed.
        RequestError: the job failed because of an argument.
    """
    if job.state == "canceled":
        raise HTTPException(CANCELED_STATUS, f"Request {job.id} was canceled.")
    if job.state == "failed" and job.flagged:
        raise HTTPException(422, error_details("prompt", job.error or "", BLOCKED_ERROR_TYPE))
    if job.state == "failed":
        raise get_field_error(job) or HTTPException(
            500, error_details("", job.error or "The job failed.", "error")
        )
    if job.state not in ENDED or job.result is None:
        raise HTTPException(400, "Request is still in progress")  # fal's own message
    origin = job.origin_as(FalOrigin)
    images: list[dict[str, Any]] = []
    files = zip(job.result["files"], job.result["seeds"], job.result["sizes"], strict=True)
    for name, seed, (width, height) in files:
        kind = MEDIA_TYPES[name.rpartition(".")[2]]
        if origin.sync_mode:
            file = encode_file(service.files.get_results_folder(job.id) / name)
            url = f"data:{kind};base64,{file}"
        else:
            path = f"{origin.base_url}/api/jobs/{job.id}/results"
            url = result_url(service, job, path, name)
        image = {"url": url, "content_type": kind, "width": width, "height": height}
        images.append(image | {"seed": seed})
    return {
        "images": images,
        "timings": {"inference": _inference_seconds(job)},
        "seed": job.request["seed"],
        "has_nsfw_concepts": [False] * len(images) + [True] * len(job.flagged),
        "prompt": origin.prompt,
    }


def _inference_seconds(job: Job) -> float:
    return (job.ended or 0.0) - (job.started or job.ended or 0.0)


def request_links(job: Job) -> dict[str, str]:
    """Return the id of a request and the URLs of its result, status and cancellation."""
    origin = job.origin_as(FalOrigin)
    url = f"{origin.base_url}/fal/queue/{origin.app}/requests/{job.id}"
    return {
        "request_id": job.id,
        "response_url": url,
        "status_url": f"{url}/status",
        "cancel_url": f"{url}/cancel",
    }


def request_status(service: Service, job: Job, logs: bool) -> dict[str, Any]:
    """Return the status of a request: IN_QUEUE, IN_PROGRESS or COMPLETED.

    Args:
        service: the running server.
        job: the job of the request.
        logs: whether to include log lines.
    """
    status = request_links(job) | {"logs": log_lines(service, job) if logs else None}
    if job.state == "queued":
        ahead = service.jobs.get_queue_position(job.id)
        return status | {"status": "IN_QUEUE", "queue_position": ahead[0] if ahead else 0}
    if job.state not in ENDED:
        return status | {"status": "IN_PROGRESS"}
    status |= {"status": "COMPLETED", "metrics": {"inference_time": _inference_seconds(job)}}
    if job.state == "failed":
        kind = "bad_request" if get_field_error(job) else "error"
        status |= {"error": job.error, "error_type": BLOCKED_ERROR_TYPE if job.flagged else kind}
    elif job.state == "canceled":
        status |= {"error": "The request was canceled.", "error_type": "client_cancelled"}
    return status


def log_lines(service: Service, job: Job) -> list[dict[str, Any]]:
    """Return the log lines of a job: its notices and its current progress."""
    history = service.jobs.list_history(job.id)
    lines = [(each.at, str(each.body["message"])) for each in history if each.kind == "notice"]
    if step := service.feed.progress(job.id).step:
        lines.append((time.time(), format_progress(step.done, step.total)))
    return [
        {"timestamp": format_timestamp(at), "level": "INFO", "source": "USER", "message": message}
        for at, message in lines
    ]


async def webhook_payload(service: Service, job: Job) -> dict[str, Any]:
    """Return the result or the error of an ended job, with the id of the request."""
    body: dict[str, Any] = {"request_id": job.id, "gateway_request_id": job.id}
    try:
        payload = await asyncio.to_thread(job_result, service, job)
    except (HTTPException, RequestError) as error:
        payload = json.loads(bytes(error_response(error).body))
        return {**body, "status": "ERROR", "error": job.error or "canceled", "payload": payload}
    return {**body, "status": "OK", "payload": payload}


async def final_result(service: Service, job: Job) -> dict[str, Any]:
    """Return the result of a job as it is now, or the body of the error that replaces it."""
    current = await asyncio.to_thread(service.jobs.get, job.id) or job
    try:
        return await asyncio.to_thread(job_result, service, current)
    except (HTTPException, RequestError) as error:
        return json.loads(bytes(error_response(error).body))
