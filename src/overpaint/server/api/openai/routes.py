"""The routes of OpenAI's images API.

| Route | Effect |
|---|---|
| `POST /v1/images/generations` | make images from a prompt |
| `POST /v1/images/edits` | repaint an image; a form |
| `POST /v1/images/variations` | repaint an image without a prompt; a form |
| `GET /v1/models/{name}` | describe a model |

Replicate's `GET /v1/models` also contains OpenAI's list of models.
"""

import re
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, HTTPException, Response
from fastapi import Request as Incoming
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.background import BackgroundTask
from starlette.datastructures import FormData, UploadFile

from overpaint.errors import RequestError
from overpaint.request import Request
from overpaint.server.api.deps import IdempotencyKey, ServiceDep, get_base_url
from overpaint.server.api.event_stream import event_stream_response
from overpaint.server.api.extended_fields import find_extra_urls, translate_error
from overpaint.server.api.fields import hash_body
from overpaint.server.api.openai.protocol import (
    ERROR_SCHEMA,
    NATIVE_FIELDS,
    TEXT_FIELDS,
    Edit,
    Generation,
    ImageFields,
    Variation,
    error_response,
    get_model_or_404,
    image_response,
    job_error,
    output_options,
    shutdown_error,
    to_request,
)
from overpaint.server.api.openai.stream import job_events
from overpaint.server.api.results import EVENT_STREAM_RESPONSES, wait_until_ended
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.json_body import check_json_size, parse_json
from overpaint.server.http.problems import error_responses
from overpaint.server.http.threads import run_in_picture_thread
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.settings import Limits
from overpaint.server.store.jobs import ENDED, Job
from overpaint.server.store.origins import OpenAIOrigin

MAX_FORM_FILES = 64

OPENAI_MODEL_PATTERN = re.compile(r"(gpt-image|chatgpt-image|dall-e)-.+")

router = APIRouter(
    prefix="/v1",
    tags=["OpenAI"],
    route_class=make_route_class(error_response),
    responses=error_responses(ERROR_SCHEMA),
)


# Forms

FieldsT = TypeVar("FieldsT", bound=ImageFields)


async def parse_form(incoming: Incoming, model: type[FieldsT]) -> FieldsT:
    """Read and validate the fields of a form.

    An empty value counts as absent, except for the prompt. Values of native fields are JSON,
    unless the field is text.

    Raises:
        HTTPException: 400, 413 or 415: the body is not a form, or is too large.
        RequestError: a field occurs more than once.
        RequestValidationError: a field is missing or invalid.
    """
    if not incoming.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "This route needs a form; send Content-Type: multipart/form-data.")
    async with incoming.form(max_files=MAX_FORM_FILES) as form:
        values = await _read_values(form, model, incoming.app.state.settings.limits)
    fields: dict[str, Any] = {}
    for name, sent in values.items():
        plain = name.removesuffix("[]")
        is_list = name.endswith("[]") and plain != "image"
        if plain in fields or (len(sent) > 1 and not is_list):
            remedy = "send exactly one image." if plain == "image" else "send it once."
            raise RequestError(plain, f"the field occurs more than once; {remedy}")
        fields[plain] = sent if is_list else sent[0]
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


async def _read_values(
    form: FormData, model: type[ImageFields], limits: Limits
) -> dict[str, list[Any]]:
    """Return the values of a form by field name, files as bytes."""
    check_json_size(limits, *(value for _, value in form.multi_items() if isinstance(value, str)))
    values: dict[str, list[Any]] = {}
    for name, value in form.multi_items():
        plain = name.removesuffix("[]")
        if "[" in plain:
            plain = plain.partition("[")[0]
            raise RequestError(plain, "a form cannot nest fields; send the value as JSON text.")
        if isinstance(value, UploadFile):
            read = await value.read(limits.upload_bytes + 1)
            if len(read) > limits.upload_bytes:
                message = f"The file {plain} is larger than {limits.upload_bytes:,} bytes."
                raise HTTPException(413, message)
        elif not value and plain != "prompt":
            continue
        else:
            read = value if plain in model.model_fields else _parse_value(plain, value)
        values.setdefault(name, []).append(read)
    return values


def _parse_value(name: str, text: str) -> Any:
    if name in TEXT_FIELDS:
        return text
    try:
        return parse_json(text)
    except (ValueError, RecursionError):
        return text


def form_schema(model: type[ImageFields]) -> dict[str, Any]:
    """Return the OpenAPI description of a form."""
    content = {"multipart/form-data": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


async def parse_edit(incoming: Incoming) -> Edit:
    """Read the form of an edit."""
    return await parse_form(incoming, Edit)


async def parse_variation(incoming: Incoming) -> Variation:
    """Read the form of a variation."""
    return await parse_form(incoming, Variation)


# Images


def resolve_model(service: Service, name: str | None) -> str | None:
    """Return the name of a model of this server; None stands for the first one.

    OpenAI's model names stand for the first one too, unless the server has a model of that name.
    """
    if name and name not in service.settings.models and OPENAI_MODEL_PATTERN.fullmatch(name):
        return None
    return name or None


async def accept_job(
    service: Service, key: str, base_url: str, given: ImageFields, token: str | None
) -> Job:
    """Accept a job, or return the job that the same idempotency key made before."""

    def read(sources: ImageSources) -> tuple[Request, OpenAIOrigin]:
        request, names = to_request(given, sources)
        generation = given if isinstance(given, Generation) else None
        origin = OpenAIOrigin(
            output=output_options(given, request),
            base_url=base_url,
            field_names=names,
            response_format=given.response_format or "b64_json",
            output_format=(generation and generation.output_format) or "png",
            quality=(generation and generation.quality) or "auto",
        )
        return request, origin

    body = await hash_body(token, given)
    if job := await service.repeated(key, token, body):
        return job
    urls = await run_in_picture_thread(find_extra_urls, given, NATIVE_FIELDS)
    async with service.sources(key, urls) as sources:
        request, origin = await run_in_picture_thread(read, sources)
    try:
        return await service.submit(
            request,
            model=resolve_model(service, given.model),
            key=key,
            origin=origin,
            webhook=given.webhook,
            webhook_events=("completed",),
            token=token,
            body=body,
        )
    except RequestError as error:
        raise translate_error(error, origin.field_names) from None


async def create_images(
    service: Service, key: str, incoming: Incoming, given: ImageFields, token: str | None
) -> Response:
    """Run a job and return its images, or its events while it runs.

    The job is canceled when the client disconnects, because no route returns its result later.
    A job with an idempotency key or a webhook continues.
    """
    job = await accept_job(service, key, get_base_url(incoming), given, token)
    headers = {"X-Request-ID": job.id}
    outlives_client = token is not None or given.webhook is not None
    if isinstance(given, Generation) and given.stream:
        prefix = "image_edit" if isinstance(given, Edit) else "image_generation"
        return event_stream_response(
            job_events(service, job, prefix, given.partial_images or 0),
            headers=headers,
            background=None if outlives_client else BackgroundTask(service.cancel, job.id),
        )
    job = await wait_until_ended(service, job, incoming)
    if job.state not in ENDED:
        if not outlives_client:
            await service.cancel(job.id)
        raise shutdown_error(job)
    if error := job_error(job):
        raise error
    return JSONResponse(await image_response(service, job), headers=headers)


@router.post("/images/generations", responses=EVENT_STREAM_RESPONSES)
async def generate_images(
    body: Generation,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make images from a prompt.

    The job is canceled when the client disconnects, unless the request has an `Idempotency-Key`
    or a `webhook`.
    """
    return await create_images(service, key, incoming, body, idempotency_key)


@router.post("/images/edits", responses=EVENT_STREAM_RESPONSES, openapi_extra=form_schema(Edit))
async def edit_image(
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    body: Annotated[Edit, Depends(parse_edit)],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Repaint an image, or the area of it that a mask marks.

    The job is canceled when the client disconnects, unless the request has an `Idempotency-Key`
    or a `webhook`.
    """
    return await create_images(service, key, incoming, body, idempotency_key)


@router.post("/images/variations", openapi_extra=form_schema(Variation))
async def vary_image(
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    body: Annotated[Variation, Depends(parse_variation)],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Repaint an image without a prompt.

    The job is canceled when the client disconnects, unless the request has an `Idempotency-Key`
    or a `webhook`.
    """
    return await create_images(service, key, incoming, body, idempotency_key)


# Models


@router.get("/models/{name}")
async def retrieve_model(name: str, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """Describe a model."""
    return get_model_or_404(service, name)
