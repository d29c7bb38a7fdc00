"""The wire format of OpenAI's images API: its fields, responses and errors.

OpenAI's own fields are translated to fields of `Request`. Every other field of `Request` is
accepted under its native name; OpenAI's clients send those in `extra_body`.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from overpaint.errors import FormatError, ModelNotFoundError, RequestError, did_you_mean
from overpaint.imaging import codec
from overpaint.picture import Picture
from overpaint.request import Request
from overpaint.server.api.extended_fields import FieldMapping, build_request, get_field_error
from overpaint.server.api.fields import WebhookUrl, check_mask_size
from overpaint.server.api.inline_files import encode_file
from overpaint.server.api.results import result_url
from overpaint.server.http.problems import MIN_RETRY_AFTER_S, describe_error
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.jobs import Job
from overpaint.server.store.origins import OpenAIOrigin, OutputOptions

STEPS_BY_QUALITY = {
    "low": 15,
    "medium": 30,
    "standard": 30,
    "high": 50,
    "hd": 50,
    "xhigh": 75,
    "max": 100,
}
"""Sampler steps for each value of `quality`; "auto" keeps the default of `Request`."""

ERROR_TYPE_AND_CODE_BY_STATUS = {
    401: ("invalid_request_error", "invalid_api_key"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}
"""OpenAI's error type and code for a status. Other errors are `invalid_request_error` below 500
and `server_error` from 500."""

ZERO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""Token usage for OpenAI's clients, which read it. Overpaint does not count tokens."""

ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": ["message", "type", "param", "code"]}},
}
"""JSON schema of an error response."""

SIZE_PATTERN = re.compile(r"(\d+)x(\d+)")

NO_RETRY_HEADERS = {"x-should-retry": "false"}
"""Headers that stop OpenAI's clients from repeating a request after 409 or 5xx."""

MODEL_CREATED_AT_S = 1_767_225_600
"""Creation time that every model reports: 2026-01-01, in seconds since 1970."""


class ModerationBlockedError(HTTPException):
    """The safety checker flagged every image of a job."""


class ImageFields(BaseModel):
    """Fields that all three image routes accept.

    Fields that this model does not define are native fields of `Request`.
    """

    model_config = ConfigDict(
        extra="allow",
        allow_inf_nan=False,
        ser_json_bytes="base64",
        use_attribute_docstrings=True,
    )

    model: str | None = Field(default=None, max_length=200)
    """Name of a model of this server. OpenAI's model names stand for the server's first model."""
    n: int | None = Field(default=None, ge=1, le=10)
    """Number of images (`num_images`); 1 by default."""
    size: str | None = Field(default=None, max_length=20)
    """Pixels as "WIDTHxHEIGHT" (`width`, `height`), "native" or "keep" (`size`), or "auto"."""
    response_format: Literal["url", "b64_json"] | None = None
    """Return images as links or as base64; base64 by default."""
    steps: int | Literal["exact", "truncate"] | None = None
    """A number of sampler steps (`num_inference_steps`), or a mode of counting (`steps`)."""
    scheduler: str | None = Field(default=None, max_length=200)
    """Name of the sampler (`sampler`)."""
    webhook: WebhookUrl = None
    """URL to post the response to as well. The job then continues if the client disconnects."""
    user: str | None = None
    """Accepted without effect."""
    safety_identifier: str | None = None
    """Accepted without effect."""


class Generation(ImageFields):
    """Fields of `POST /v1/images/generations`, which makes images from a prompt."""

    prompt: str = Field(max_length=100_000)
    """Text that describes the image."""
    quality: Literal["auto", "low", "medium", "standard", "high", "hd", "xhigh", "max"] | None = (
        None
    )
    """Sampler steps (`num_inference_steps`): low 15, medium and standard 30, high and hd 50,
    xhigh 75, max 100."""
    background: Literal["auto", "opaque"] | None = None
    """Accepted without effect: images are opaque."""
    moderation: Literal["auto", "low"] | None = None
    """Accepted without effect: the operator of the server configures the safety checker."""
    output_format: Literal["png", "jpeg", "webp"] | None = None
    """File format of the images; png by default."""
    output_compression: int | None = Field(default=None, ge=0, le=100)
    """Quality of JPEG and WebP files; 95 by default."""
    stream: bool | None = None
    """Respond with server-sent events."""
    partial_images: int | None = Field(default=None, ge=0, le=3)
    """Maximum number of previews in the event stream."""


class Edit(Generation):
    """Form fields of `POST /v1/images/edits`, which repaints an image."""

    image: bytes
    """The image to repaint; exactly one."""
    mask: bytes | None = None
    """An image whose transparent pixels mark the area to repaint; same size as the image."""


class Variation(ImageFields):
    """Form fields of `POST /v1/images/variations`, which repaints an image without a prompt."""

    image: bytes
    """The image to repaint; exactly one."""


TRANSLATED_FIELDS = {"prompt", "image", "mask", "size", "num_images", "steps"}
NATIVE_FIELDS = frozenset(Request.model_fields) - TRANSLATED_FIELDS
"""Fields of `Request` that clients send under their native names."""


def _accepts_text(schema: Mapping[str, Any]) -> bool:
    variants = (schema, *schema.get("anyOf", ()))
    return any(each.get("type") == "string" and "enum" not in each for each in variants)


TEXT_FIELDS = {
    name
    for name, schema in Request.model_json_schema()["properties"].items()
    if _accepts_text(schema)
}
"""Fields of `Request` whose form values are text; other form values are parsed as JSON."""


# Errors


def error_response(error: Exception) -> JSONResponse:
    """Make the response to one of `problems.HANDLED_ERRORS`."""
    status, title, detail, headers = describe_error(error)
    param = code = None
    kind = "invalid_request_error"
    match error:
        case ModerationBlockedError():
            kind, code = "image_generation_user_error", "moderation_blocked"
        case RequestError():
            param = error.field
        case FormatError():
            status, code = 400, "unsupported_file_mimetype"
        case ModelNotFoundError():
            status, param, code = 404, "model", "model_not_found"
        case RequestValidationError():
            fields = [".".join(str(p) for p in e["loc"] if p != "body") for e in error.errors()]
            param = fields[0] or None
            messages = [e["msg"] for e in error.errors()]
            detail = "; ".join(map(": ".join, zip(fields, messages, strict=True)))
        case _:
            pass
    if status >= 500 and not isinstance(error, HTTPException):
        detail = f"{title}: {detail}"
    status = 400 if status == 422 else status
    kind = "server_error" if status >= 500 else kind
    kind, code = ERROR_TYPE_AND_CODE_BY_STATUS.get(status, (kind, code))
    body = {"message": detail, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": body}, status, headers)


def shutdown_error(job: Job) -> HTTPException:
    """Make the error for a server that shuts down before a job ends."""
    message = f"The server is shutting down before job {job.id} ends; try again in a minute."
    return HTTPException(503, message, {"Retry-After": str(MIN_RETRY_AFTER_S)})


def job_error(job: Job) -> HTTPException | RequestError | None:
    """Return why an ended job has no images; None if it has images or has not ended."""
    if job.state == "canceled":
        return HTTPException(409, f"Job {job.id} was canceled.", NO_RETRY_HEADERS)
    if job.state != "failed":
        return None
    if job.flagged:
        return ModerationBlockedError(400, job.error)
    return get_field_error(job) or HTTPException(
        500, job.error or "The job failed.", NO_RETRY_HEADERS
    )


# Client fields to a request


def to_request(given: ImageFields, sources: ImageSources) -> tuple[Request, dict[str, str]]:
    """Translate a client's fields to a request.

    Args:
        given: the fields that the client sent.
        sources: uploads and fetched images.

    Returns:
        The request, and the client's name for each translated field of `Request`.

    Raises:
        RequestError: a field is unknown, out of range or contradicts another one. The error names
            the client's field.
        PictureError: an image cannot be read.
    """
    return build_request(given, _map_fields(given), NATIVE_FIELDS, sources)


def _map_fields(given: ImageFields) -> list[FieldMapping]:
    mapped: list[FieldMapping] = [("n", "num_images", given.n or 1)]
    if given.size in ("native", "keep"):
        mapped.append(("size", "size", given.size))
    elif given.size not in (None, "auto"):
        sides = SIZE_PATTERN.fullmatch(given.size)
        if sides is None:
            raise RequestError(
                "size", f'{given.size!r} is not a size; write "1024x1024", or leave size out.'
            )
        mapped += [("size", "width", int(sides[1])), ("size", "height", int(sides[2]))]
    if given.steps is not None:
        native = "num_inference_steps" if isinstance(given.steps, int) else "steps"
        mapped.append(("steps", native, given.steps))
    if given.scheduler is not None:
        mapped.append(("scheduler", "sampler", given.scheduler))
    if isinstance(given, Generation):
        mapped.append(("prompt", "prompt", given.prompt))
        if given.quality in STEPS_BY_QUALITY:
            mapped.append(("quality", "num_inference_steps", STEPS_BY_QUALITY[given.quality]))
    if isinstance(given, Edit | Variation):
        image = codec.receive_picture(given.image, "image")
        mapped.append(("image", "image", image))
        if isinstance(given, Edit) and given.mask is not None:
            mapped.append(("mask", "mask", _read_mask(given.mask, image)))
    return mapped


def _read_mask(data: bytes, image: Picture) -> Picture:
    """Read a mask. It needs transparency: in this dialect, brightness marks nothing."""
    mask = codec.receive_picture(data, "mask")
    check_mask_size(image, mask)
    with codec.open_image(data, "the mask") as opened:
        opacity = codec.extract_alpha(opened)
    if opacity is None:
        raise RequestError(
            "mask", "the mask is opaque everywhere; make the area to repaint transparent."
        )
    return mask


def output_options(given: ImageFields, request: Request) -> OutputOptions:
    """Return the file format, the encoder options and the preview interval of a job.

    Raises:
        RequestError: fields contradict each other.
    """
    if not isinstance(given, Generation):
        return OutputOptions()
    kind = given.output_format or "png"
    options: dict[str, int] = {}
    if given.output_compression is not None:
        if kind == "png":
            raise RequestError(
                "output_compression",
                "this field has no effect on PNG files; leave it out, or choose jpeg or webp.",
            )
        options["quality"] = given.output_compression
    previews = given.partial_images or 0
    if previews and not given.stream:
        raise RequestError(
            "partial_images", "previews are sent only in a stream; set stream to true."
        )
    if previews and request.num_images > 1:
        raise RequestError(
            "partial_images",
            f"previews need a single image, but n is {request.num_images}; set n to 1, or leave "
            "partial_images out.",
        )
    if given.stream and given.response_format == "url":
        raise RequestError(
            "response_format",
            "a stream cannot contain links ('url'); use b64_json, or leave stream out.",
        )
    every = max(1, request.steps_to_run // (previews + 1)) if previews else 0
    kind = "jpg" if kind == "jpeg" else kind
    return OutputOptions(kind=kind, options=options, preview_every=every)


# A job to a response


def image_attributes(job: Job) -> dict[str, Any]:
    """Return the attributes of a job's images that every response and event contains."""
    origin = job.origin_as(OpenAIOrigin)
    return {
        "background": "opaque",
        "output_format": origin.output_format,
        "quality": origin.quality,
    } | ({"flagged": job.flagged} if job.flagged else {})


def image_data(service: Service, job: Job) -> list[dict[str, Any]]:
    """Return the images of a job, each with its seed; an empty list unless it succeeded."""
    result = job.result if job.state == "succeeded" and job.result else {"files": [], "seeds": []}
    origin = job.origin_as(OpenAIOrigin)
    data: list[dict[str, Any]] = []
    for name, seed in zip(result["files"], result["seeds"], strict=True):
        if origin.response_format == "url":
            base = f"{origin.base_url}/api/jobs/{job.id}/results"
            image = {"url": result_url(service, job, base, name)}
        else:
            path = service.files.get_results_folder(job.id) / name
            image = {"b64_json": encode_file(path)}
        data.append({**image, "seed": seed})
    return data


def image_size(job: Job) -> str | None:
    """Return the size of a job's images as "WIDTHxHEIGHT"; None while there are no images."""
    sizes = (job.result or {}).get("sizes", ())
    return "x".join(str(side) for side in sizes[0]) if sizes else None


async def image_response(service: Service, job: Job) -> dict[str, Any]:
    """Return the JSON body of the response for a job that succeeded."""
    data = await asyncio.to_thread(image_data, service, job)
    body = {"created": int(job.created), "data": data, "usage": ZERO_USAGE}
    return {**body, **image_attributes(job), "size": image_size(job)}


async def webhook_payload(service: Service, job: Job) -> dict[str, Any]:
    """Return the response or the error of an ended job, with the job's id."""
    if error := job_error(job):
        body: dict[str, Any] = json.loads(bytes(error_response(error).body))
    else:
        body = await image_response(service, job)
    return {"id": job.id, **body}


# Models


def get_model_or_404(service: Service, name: str) -> dict[str, Any]:
    """Return the JSON object of a model.

    Raises:
        ModelNotFoundError: the server has no model of that name.
    """
    models = service.settings.models
    if name not in models:
        raise ModelNotFoundError(f"There is no model {name!r}.{did_you_mean(name, models)}")
    return model_object(name)


def model_object(model: str) -> dict[str, Any]:
    """Return the JSON object of a model."""
    return {"id": model, "object": "model", "created": MODEL_CREATED_AT_S, "owned_by": "overpaint"}


def model_list(service: Service) -> dict[str, Any]:
    """Return OpenAI's part of the response to `GET /v1/models`."""
    return {"object": "list", "data": [model_object(model) for model in service.settings.models]}
