"""Protocol."""

import asyncio
import base64
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from overpaint.errors import FormatError, ModelNotFoundError, RequestError
from overpaint.imaging import codec
from overpaint.picture import Picture
from overpaint.request import Request
from overpaint.server.api.extended_fields import FieldMapping, build_request, get_field_error
from overpaint.server.api.fields import WebhookUrl, check_mask_size
from overpaint.server.api.results import result_url
from overpaint.server.http.problems import MIN_RETRY_AFTER_S, describe_error
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.jobs import Job
from overpaint.server.store.origins import OpenAIOrigin, OutputOptions

QUALITIES = {
    "low": 15,
    "medium": 30,
    "standard": 30,
    "high": 50,
    "hd": 50,
    "xhigh": 75,
    "max": 100,
}
"""How many sampler steps the dialect's words for quality are."""


KINDS = {
    401: ("invalid_request_error", "invalid_api_key"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}
"""Types and codes of errors, by their status; of others 4xx are `invalid_request_error`, 5xx
`server_error`."""


USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}
"""Nothing is counted by tokens, but their clients look."""


SIZE = re.compile(r"(\d+)x(\d+)")


THEIRS = re.compile(r"(gpt-image|chatgpt-image|dall-e)-.+")


NOT_AGAIN = {"x-should-retry": "false"}
"""Their clients send once more what was answered 409 or 5xx, unless told otherwise."""


MODELS_SINCE = 1_767_225_600  # 2026-01-01


class Blocked(HTTPException):
    """The safety checker flagged every picture."""


class Asked(BaseModel):
    """What all three of their calls take, and which of ours it is.

    What is not named here is a field of `Request`.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, ser_json_bytes="base64")

    model: str | None = Field(
        default=None,
        max_length=200,
        description="A model of this server; a name of OpenAI's own is its first.",
    )
    n: int | None = Field(default=None, ge=1, le=10, description="`num_images`; by default 1.")
    size: str | None = Field(
        default=None,
        max_length=20,
        description='"WIDTHxHEIGHT": `width` and `height`; "native", "keep": `size`; or "auto".',
    )
    response_format: Literal["url", "b64_json"] | None = Field(
        default=None, description="How pictures come; by default b64_json."
    )
    steps: int | Literal["exact", "truncate"] | None = Field(
        default=None, description="A number: `num_inference_steps`; a word: `steps`."
    )
    scheduler: str | None = Field(default=None, max_length=200, description="`sampler`.")
    webhook: WebhookUrl = Field(
        default=None, description="Where the answer is posted as well; then the job outlives you."
    )
    user: str | None = Field(default=None, description="Accepted; means nothing here.")
    safety_identifier: str | None = Field(default=None, description="Accepted; means nothing here.")


class Generation(Asked):
    """What makes pictures of a prompt."""

    prompt: str = Field(max_length=100_000, description="`prompt`.")
    quality: Literal["auto", "low", "medium", "standard", "high", "hd", "xhigh", "max"] | None = (
        Field(default=None, description="`num_inference_steps`: 15, 30, 30, 50, 50, 75, 100.")
    )
    background: Literal["auto", "opaque"] | None = Field(
        default=None, description="Accepted: pictures are opaque."
    )
    moderation: Literal["auto", "low"] | None = Field(
        default=None, description="Accepted: what is flagged is the server's to say."
    )
    output_format: Literal["png", "jpeg", "webp"] | None = Field(
        default=None, description="Of the files; by default png."
    )
    output_compression: int | None = Field(
        default=None, ge=0, le=100, description="Quality of JPEG and WebP; by default 95."
    )
    stream: bool | None = Field(default=None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        default=None, ge=0, le=3, description="Previews in the stream, at most."
    )


class Edit(Generation):
    """What repaints a picture."""

    image: bytes = Field(description="`image`: one picture.")
    mask: bytes | None = Field(
        default=None, description="`mask`: where it is transparent is repainted."
    )


class Variation(Asked):
    """What repaints a picture without a prompt."""

    image: bytes = Field(description="`image`: one picture.")


NAMED = {"prompt", "image", "mask", "size", "num_images", "steps"}


OWN = frozenset(Request.model_fields) - NAMED
"""Fields of `Request` that come under their own names."""


def _is_text(schema: Mapping[str, Any]) -> bool:
    kinds = (schema, *schema.get("anyOf", ()))
    return any(kind.get("type") == "string" and "enum" not in kind for kind in kinds)


TEXTS = {n for n, schema in Request.model_json_schema()["properties"].items() if _is_text(schema)}
"""Fields of `Request` that are free text, whatever it looks like."""


def wrong(message: str, kind: str, param: str | None = None, code: str | None = None) -> Any:
    """An error in their words."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: Exception) -> JSONResponse:
    """The answer to one of `problems.HANDLED_ERRORS`."""
    status, title, detail, headers = describe_error(error)
    param = code = None
    general = "invalid_request_error"
    match error:
        case Blocked():
            general, code = "image_generation_user_error", "moderation_blocked"
        case RequestError():
            param = error.field
        case FormatError():
            status, code = 400, "unsupported_file_mimetype"
        case ModelNotFoundError():
            status, param, code = 404, "model", "model_not_found"
        case RequestValidationError():
            places = [".".join(str(p) for p in e["loc"] if p != "body") for e in error.errors()]
            param = places[0] or None
            said = [e["msg"] for e in error.errors()]
            detail = "; ".join(map(": ".join, zip(places, said, strict=True)))
        case _:
            pass
    if status >= 500 and not isinstance(error, HTTPException):
        detail = f"{title}: {detail}"
    status = 400 if status == 422 else status
    general = "server_error" if status >= 500 else general
    kind, code = KINDS.get(status, (general, code))
    return JSONResponse(wrong(detail, kind, param, code), status, headers)


ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "object", "required": ["message", "type", "param", "code"]}},
}
"""The schema of an error in their words."""


def to_request(given: Asked, sources: ImageSources) -> tuple[Request, dict[str, str]]:
    """What the fields ask for, and by which of their words what of ours was given.

    Raises:
        RequestError: they contradict each other, are unknown or out of range; in their words.
        PictureError: a picture cannot be read.
    """
    return build_request(given, _words(given), OWN, sources)


def _words(given: Asked) -> list[FieldMapping]:
    """Fields of the dialect that were given, and the fields and values of ours that they are."""
    found: list[FieldMapping] = [("n", "num_images", given.n or 1)]
    if given.size in ("native", "keep"):
        found.append(("size", "size", given.size))
    elif given.size not in (None, "auto"):
        sides = SIZE.fullmatch(given.size)
        if sides is None:
            raise RequestError("size", f'{given.size!r} is neither like "1024x1024" nor "auto".')
        found += [("size", "width", int(sides[1])), ("size", "height", int(sides[2]))]
    if given.steps is not None:
        name = "num_inference_steps" if isinstance(given.steps, int) else "steps"
        found.append(("steps", name, given.steps))
    if given.scheduler is not None:
        found.append(("scheduler", "sampler", given.scheduler))
    if isinstance(given, Generation):
        found.append(("prompt", "prompt", given.prompt))
        if given.quality in QUALITIES:
            found.append(("quality", "num_inference_steps", QUALITIES[given.quality]))
    if isinstance(given, Edit | Variation):
        image = codec.receive_picture(given.image, "image")
        found.append(("image", "image", image))
        if isinstance(given, Edit) and given.mask is not None:
            found.append(("mask", "mask", _mask(given.mask, image)))
    return found


def _mask(data: bytes, image: Picture) -> Picture:
    """A mask by its transparency alone: theirs say nothing by brightness, as others' do."""
    mask = codec.receive_picture(data, "mask")
    check_mask_size(image, mask)
    with codec.open_image(data, "the mask") as opened:
        opaque = codec.extract_alpha(opened)
    if opaque is None:
        raise RequestError("mask", "is opaque everywhere; what is transparent is repainted.")
    return mask


def output_of(given: Asked, request: Request) -> OutputOptions:
    """What files and previews to make.

    Raises:
        RequestError: fields contradict each other.
    """
    if not isinstance(given, Generation):
        return OutputOptions()
    kind = given.output_format or "png"
    options: dict[str, int] = {}
    if given.output_compression is not None:
        if kind == "png":
            raise RequestError("output_compression", "means nothing for png; leave it out.")
        options["quality"] = given.output_compression
    previews = given.partial_images or 0
    if previews and not given.stream:
        raise RequestError("partial_images", "come in a stream alone; set stream too.")
    if previews and request.num_images > 1:
        raise RequestError("partial_images", "are of one picture; leave them out, or set n to 1.")
    if given.stream and given.response_format == "url":
        raise RequestError("response_format", "'url' is not for streams, which hold b64_json.")
    every = max(1, request.steps_to_run // (previews + 1)) if previews else 0
    kind = "jpg" if kind == "jpeg" else kind
    return OutputOptions(kind=kind, options=options, preview_every=every)


def model_of(service: Service, name: str | None) -> str | None:
    """The model that a name stands for; None is the first.

    A name of OpenAI's own is the first too, unless this server has one by that name.
    """
    if name and name not in service.settings.models and THEIRS.fullmatch(name):
        return None
    return name or None


def told_of(job: Job) -> dict[str, Any]:
    """What every answer and event says of a job's pictures."""
    origin = job.origin_as(OpenAIOrigin)
    return {
        "background": "opaque",
        "output_format": origin.output_format,
        "quality": origin.quality,
    } | ({"flagged": job.flagged} if job.flagged else {})


def made(service: Service, job: Job) -> list[dict[str, Any]]:
    """A job's pictures in their words, and of each its seed; none while there are none."""
    result = job.result if job.state == "succeeded" and job.result else {"files": [], "seeds": []}
    data: list[dict[str, Any]] = []
    origin = job.origin_as(OpenAIOrigin)
    for name, seed in zip(result["files"], result["seeds"], strict=True):
        if origin.response_format == "url":
            path = f"{origin.base_url}/api/jobs/{job.id}/results"
            picture = {"url": result_url(service, job, path, name)}
        else:
            picture = {"b64_json": encoded((service.files.results(job.id) / name).read_bytes())}
        data.append({**picture, "seed": seed})
    return data


def encoded(data: bytes) -> str:
    """Bytes as base64."""
    return base64.b64encode(data).decode()


def size_of(job: Job) -> str | None:
    """The size of a job's pictures."""
    sizes = (job.result or {}).get("sizes", ())
    return "x".join(str(side) for side in sizes[0]) if sizes else None


def failure(job: Job) -> HTTPException | RequestError | None:
    """Why a job made no pictures, if it has ended; in their words."""
    if job.state == "canceled":
        return HTTPException(409, f"job {job.id} was canceled.", NOT_AGAIN)
    if job.state != "failed":
        return None
    if job.flagged:
        return Blocked(400, job.error)
    return get_field_error(job) or HTTPException(500, job.error or "the job failed.", NOT_AGAIN)


async def shown(service: Service, job: Job) -> dict[str, Any]:
    """A job in their words."""
    data = await asyncio.to_thread(made, service, job)
    known = {"created": int(job.created), "data": data, "usage": USAGE}
    return {**known, **told_of(job), "size": size_of(job)}


async def webhook_payload(service: Service, job: Job) -> dict[str, Any]:
    """What is posted to a webhook: the answer, or what is wrong, with the job's id."""
    if error := failure(job):
        body: dict[str, Any] = json.loads(bytes(error_response(error).body))
    else:
        body = await shown(service, job)
    return {"id": job.id, **body}


def unfinished(job: Job) -> HTTPException:
    """What is answered where the server ends before a job does."""
    message = f"this server ends before job {job.id} does; try again in a minute."
    return HTTPException(503, message, {"Retry-After": str(MIN_RETRY_AFTER_S)})


def described(model: str) -> dict[str, Any]:
    """A model in their words."""
    return {"id": model, "object": "model", "created": MODELS_SINCE, "owned_by": "overpaint"}


def listing(service: Service) -> dict[str, Any]:
    """All models in their words; `GET /v1/models` says this beside Replicate's."""
    return {"object": "list", "data": [described(model) for model in service.settings.models]}
