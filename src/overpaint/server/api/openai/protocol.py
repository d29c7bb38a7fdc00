"""The wire format of OpenAI's images API: its fields, responses and errors.

OpenAI's own fields are translated to fields of `Request`. Every other field of `Request` is
accepted under its native name; OpenAI's clients send those in `extra_body`.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from overpaint.errors import FormatError, ModelNotFoundError, RequestError, did_you_mean
from overpaint.request import Request
from overpaint.server.api.extended_fields import get_field_error
from overpaint.server.api.fields import WebhookUrl
from overpaint.server.api.ignored_fields import (
    Ignored,
    TolerantModel,
    UnsupportedExcept,
)
from overpaint.server.api.inline_files import encode_file
from overpaint.server.api.results import result_url
from overpaint.server.http.problems import describe_error
from overpaint.server.jobs.service import Service
from overpaint.server.store.job_rows import Job
from overpaint.server.store.origins import OpenAIOrigin

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

NO_RETRY_HEADERS = {"x-should-retry": "false"}
"""Headers that stop OpenAI's clients from repeating a request after 409 or 5xx."""

MODEL_CREATED_AT_S = 1_767_225_600
"""Creation time that every model reports: 2026-01-01, in seconds since 1970."""


class ModerationBlockedError(HTTPException):
    """The safety checker flagged every image of a job."""


OPENAI_MODEL_PATTERN = re.compile(r"(gpt-image|chatgpt-image|dall-e)-.+")
"""OpenAI's names of models, which stand for the server's first model."""

LINK_MODELS = ("dall-e-2", "dall-e-3")
"""OpenAI's models whose images are links unless the client asks for base64."""


class ImageFields(TolerantModel):
    """Fields that all three image routes accept.

    Fields that this model does not define are native fields of `Request`.
    """

    model_config = ConfigDict(
        extra="allow",
        allow_inf_nan=False,
        ser_json_bytes="base64",
        use_attribute_docstrings=True,
    )

    model: str | None = Field(default=None, max_length=200, min_length=1)
    """Name of a model of this server. OpenAI's model names stand for the server's first model."""
    n: int | None = Field(default=None, ge=1, le=10)
    """Number of images (`num_images`); 1 by default."""
    size: str | None = Field(default=None, max_length=20, min_length=1)
    """Pixels as "WIDTHxHEIGHT" (`width`, `height`), "native" or "keep" (`size`), or "auto"."""
    response_format: Literal["url", "b64_json"] | None = None
    """Return images as links or as base64. The default is links for the models dall-e-2 and
    dall-e-3, and base64 for others. A stream has base64."""
    steps: int | Literal["exact", "truncate"] | None = None
    """A number of sampler steps (`num_inference_steps`), or a mode of counting (`steps`)."""
    scheduler: str | None = Field(default=None, max_length=200, min_length=1)
    """Name of the sampler (`sampler`)."""
    webhook: WebhookUrl = None
    """URL to post the response to as well. The job then continues if the client disconnects."""
    user: Ignored = None
    safety_identifier: Ignored = None


class Generation(ImageFields):
    """Fields of `POST /v1/images/generations`, which makes images from a prompt."""

    prompt: str = Field(max_length=100_000)
    """Text that describes the image."""
    quality: Literal["auto", "low", "medium", "standard", "high", "hd", "xhigh", "max"] | None = (
        None
    )
    """Sampler steps (`num_inference_steps`): low 15, medium and standard 30, high and hd 50,
    xhigh 75, max 100."""
    background: Annotated[Any, UnsupportedExcept("auto", "opaque")] = None
    """Images are opaque; `transparent` is rejected."""
    style: Ignored = None
    moderation: Ignored = None
    frame_count: Annotated[Any, UnsupportedExcept(0, 1)] = None
    """Images have one frame; more are rejected."""
    output_format: Literal["png", "jpeg", "webp"] | None = None
    """File format of the images; png by default."""
    output_compression: int | None = Field(default=None, ge=0, le=100)
    """Quality of JPEG and WebP files; 95 by default. For PNG files only 100 is accepted."""
    stream: bool | None = None
    """Respond with server-sent events."""
    partial_images: int | None = Field(default=None, ge=0, le=3)
    """Maximum number of previews in the event stream of a single image."""


class EditFields(Generation):
    """Fields of `POST /v1/images/edits`, which repaints an image, beside the image and its mask."""

    input_fidelity: Annotated[Any, UnsupportedExcept("low")] = None
    """`high` is rejected; a low `strength` keeps more of the image."""
    markup: Annotated[Any, UnsupportedExcept()] = None
    """Rejected: drawings on the image are not understood; send a mask."""


class Edit(EditFields):
    """Form fields of `POST /v1/images/edits`."""

    image: bytes
    """The image to repaint: the first one, if there are several."""
    mask: bytes | None = Field(default=None, min_length=1)
    """An image whose transparent pixels mark the area to repaint; same size as the image. Without
    one, transparent pixels of the image itself are repainted."""


class ImageReference(BaseModel):
    """An image in JSON: a link or an upload."""

    image_url: str | None = None
    """A URL, or a data: URI."""
    file_id: str | None = Field(default=None, max_length=200)
    """The id of an upload to `/v1/files`."""

    @model_validator(mode="before")
    @classmethod
    def _accept_text(cls, value: Any) -> Any:
        return {"image_url": value} if isinstance(value, str) else value


REFERENCE_SCHEMA = {
    "type": "object",
    "properties": {"image_url": {"type": "string"}, "file_id": {"type": "string"}},
}
Reference = Annotated[ImageReference, WithJsonSchema(REFERENCE_SCHEMA)]


class JsonEdit(EditFields):
    """JSON fields of `POST /v1/images/edits`."""

    images: list[Reference] = Field(
        min_length=1, max_length=16, validation_alias=AliasChoices("images", "image")
    )
    """Links (`image_url`) or uploads (`file_id`). The first image is repainted."""
    mask: Reference | None = None
    """A link or an upload, as for `images`: an image whose transparent pixels mark the area to
    repaint."""

    @field_validator("mask", mode="before")
    @classmethod
    def _drop_empty_mask(cls, value: Any) -> Any:
        """Return no mask for an object without a link and an upload."""
        is_empty = isinstance(value, dict) and not any(cast(dict[str, Any], value).values())
        return None if is_empty else value

    @field_validator("images", mode="before")
    @classmethod
    def _accept_one(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]


class Variation(ImageFields):
    """Form fields of `POST /v1/images/variations`, which repaints an image without a prompt."""

    image: bytes
    """The image to repaint: the first one, if there are several."""


TRANSLATED_FIELDS = {"prompt", "image", "mask", "size", "steps"}
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


def resolve_model(service: Service, name: str | None) -> str | None:
    """Return the name of a model of this server; None stands for the first one.

    OpenAI's model names stand for the first one too, unless the server has a model of that name.
    """
    if name and name not in service.settings.models and OPENAI_MODEL_PATTERN.fullmatch(name):
        return None
    return name or None


def get_model_or_404(service: Service, name: str) -> dict[str, Any]:
    """Return the JSON object of a model that requests can name.

    Raises:
        ModelNotFoundError: the server has no model of that name.
    """
    models = service.settings.models
    if resolve_model(service, name) not in (None, *models):
        raise ModelNotFoundError(f"There is no model {name!r}.{did_you_mean(name, models)}")
    return model_object(name)


def model_object(model: str) -> dict[str, Any]:
    """Return the JSON object of a model."""
    return {"id": model, "object": "model", "created": MODEL_CREATED_AT_S, "owned_by": "overpaint"}


def model_list(service: Service) -> dict[str, Any]:
    """Return OpenAI's part of the response to `GET /v1/models`."""
    return {"object": "list", "data": [model_object(model) for model in service.settings.models]}
