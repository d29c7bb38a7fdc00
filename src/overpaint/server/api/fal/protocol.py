"""The wire format of fal's SDXL apps: arguments, results, states and errors.

fal's own arguments are translated to fields of `Request`. Every other field of `Request` is
accepted under its native name.
"""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field

from overpaint.errors import PictureError, RequestError
from overpaint.request import Request
from overpaint.request.fields import MAX_SEED
from overpaint.server.api.extended_fields import get_field_error
from overpaint.server.api.ignored_fields import (
    Ignored,
    TolerantModel,
    UnsupportedExcept,
)
from overpaint.server.api.inline_files import encode_file
from overpaint.server.api.results import (
    MEDIA_TYPES,
    format_progress,
    format_timestamp,
    get_file_kind,
    result_url,
)
from overpaint.server.http.problems import describe_error
from overpaint.server.jobs.service import Service
from overpaint.server.store.job_rows import ENDED, Job
from overpaint.server.store.origins import FalOrigin

FAL_OWNER = "fal-ai"
"""Owner of fal's public apps. Its apps stand for the server's first model, unless the server has
a model of that name."""

FileFormat = Literal["png", "jpeg", "jpg", "webp"]

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
    "edit": ("image_url",),
    "inpainting": ("image_url", "mask_url"),
    "inpaint": ("image_url", "mask_url"),
    "dev": (),
    "schnell": (),
    "lightning": (),
}
"""Tasks that can follow the name of an app in a path, and the arguments that each requires."""

CANCELED_STATUS = 499
"""HTTP status of the result of a canceled request."""

BLOCKED_ERROR_TYPE = "content_policy_violation"
"""Error type for a request whose images were all flagged by the safety checker."""

ERROR_SCHEMA = {"type": "object", "required": ["detail"], "properties": {"detail": {}}}
"""JSON schema of an error response."""


class ImageSize(TolerantModel):
    """Width and height of an image, in pixels."""

    width: int
    height: int


class LoraWeight(TolerantModel):
    """A LoRA to apply."""

    model_config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True)

    path: str = Field(min_length=1, max_length=100)
    """Name of the LoRA in this server's catalog (`loras[].name`)."""
    scale: float = Field(default=1.0, ge=-10, le=10)
    """Strength of the LoRA (`loras[].scale`)."""


class Arguments(TolerantModel):
    """Arguments of fal's SDXL apps.

    Arguments that this model does not define are native fields of `Request`.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, use_attribute_docstrings=True)

    prompt: str = Field(max_length=100_000)
    """Text that describes the image."""
    negative_prompt: str = Field(default="", max_length=100_000)
    """Text that describes what the image must not show."""
    image_url: str | None = Field(default=None, min_length=1)
    """The image to repaint (`image`): a URL, a data: URI or an upload to /v1/files."""
    image_urls: list[str] = Field(default_factory=list[str], max_length=64)
    """Images (`image`), of which the first one is repainted if image_url is absent."""
    mask_url: str | None = Field(default=None, min_length=1)
    """The mask (`mask`): a URL, a data: URI or an upload. White areas are repainted."""
    strength: float | None = Field(default=None, ge=0, le=1)
    """How much of the image is repainted, 0 to 1; 0.95 by default."""
    image_size: SizeName | ImageSize | None = None
    """Size of the result (`width`, `height`): pixels or a name; by default the model's native
    size."""
    size: str | None = Field(default=None, max_length=20, min_length=1)
    """"native" or "keep" (`size`). Without image_size, also pixels as "WIDTHxHEIGHT" (`width`,
    `height`), as OpenAI's clients send them."""
    num_inference_steps: int = Field(default=25, ge=1, le=1000)
    """Number of denoising steps."""
    guidance_scale: float = Field(default=7.5, ge=0, le=50)
    """How closely the image follows the prompt."""
    seed: int | None = Field(default=None, ge=-MAX_SEED, le=MAX_SEED)
    """Seed of the first image; random by default, and if it is negative."""
    num_images: int = Field(default=1, ge=1, le=64)
    """Number of images."""
    scheduler: str | None = Field(default=None, max_length=200, min_length=1)
    """Name of the sampler (`sampler`)."""
    loras: list[LoraWeight] = Field(default_factory=list[LoraWeight], max_length=32)
    """LoRAs to apply."""
    format: FileFormat | None = None
    """File format of the images; png by default."""
    output_format: FileFormat | None = None
    """Another name of format, if that is absent."""
    sync_mode: bool = False
    """Return images as data: URIs instead of links."""
    enable_safety_checker: bool = True
    """Check images for unsafe content. A server that checks every image rejects `false`."""
    safety_checker_version: Ignored = None
    expand_prompt: Annotated[Any, UnsupportedExcept(False)] = False
    """Prompts are never expanded; `true` is rejected."""
    embeddings: Annotated[Any, UnsupportedExcept()] = None
    """Embeddings by URL are rejected; name one of the server in the prompt."""
    controlnets: Annotated[Any, UnsupportedExcept()] = None
    """ControlNets by URL are rejected; use `controls`."""
    ip_adapter: Annotated[Any, UnsupportedExcept()] = None
    """Image prompts are rejected."""

    @property
    def repainted_url(self) -> str | None:
        """The image to repaint; None for text to image."""
        return self.image_url or next(iter(self.image_urls), None)

    @property
    def file_kind(self) -> str:
        """The file name ending of the images."""
        return get_file_kind(self.format or self.output_format or "png")


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
