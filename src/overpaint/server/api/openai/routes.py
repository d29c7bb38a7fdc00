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
from overpaint.server.api.ignored_fields import report_ignored, report_ignored_fields
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
    resolve_model,
    shutdown_error,
)
from overpaint.server.api.openai.stream import job_events
from overpaint.server.api.openai.translation import (
    output_options,
    resolve_response_format,
    to_request,
)
from overpaint.server.api.results import EVENT_STREAM_RESPONSES, wait_until_ended
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.json_body import check_json_size, parse_json
from overpaint.server.http.problems import error_responses
from overpaint.server.http.threads import run_in_picture_thread
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.settings import Limits
from overpaint.server.store.job_rows import ENDED, Job
from overpaint.server.store.origins import OpenAIOrigin

MAX_FORM_FILES = 64

LIST_NAME = re.compile(r"(\w+)\[\d*\]")
"""A form field that is an item of a list: `image[]` or `image[0]`."""

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
    unless the field is text. Of several images, only the first one is read.

    Raises:
        HTTPException: 400, 413 or 415: the body is not a form, or is too large.
        RequestError: a field occurs more than once.
        RequestValidationError: a field is missing or invalid.
    """
    if not incoming.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise HTTPException(415, "This route needs a form; send Content-Type: multipart/form-data.")
    async with incoming.form(max_files=MAX_FORM_FILES) as form:
        fields = await _read_fields(form, model, incoming.app.state.settings.limits)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


async def _read_fields(form: FormData, model: type[ImageFields], limits: Limits) -> dict[str, Any]:
    """Return the values of a form by field name, files as bytes."""
    check_json_size(limits, *(value for _, value in form.multi_items() if isinstance(value, str)))
    fields: dict[str, Any] = {}
    lists: set[str] = set()
    images = 0
    for name, value in form.multi_items():
        item = LIST_NAME.fullmatch(name)
        plain = item[1] if item else name
        if "[" in plain:
            plain = plain.partition("[")[0]
            raise RequestError(plain, "a form cannot nest fields; send the value as JSON text.")
        if plain == "image":
            images += 1
            if images > 1:
                report_ignored(f"image[{images - 1}]")
                continue
        read = await _read_value(plain, value, model, limits)
        if not read and isinstance(read, str | bytes) and plain not in ("prompt", "image"):
            report_ignored(plain)
        elif item and plain not in model.model_fields and plain in lists:
            fields[plain].append(read)
        elif plain in fields:
            raise RequestError(plain, "the field occurs more than once; send it once.")
        elif item and plain not in model.model_fields:
            lists.add(plain)
            fields[plain] = [read]
        else:
            fields[plain] = read
    return fields


async def _read_value(
    name: str, value: str | UploadFile, model: type[ImageFields], limits: Limits
) -> Any:
    if isinstance(value, UploadFile):
        read = await value.read(limits.upload_bytes + 1)
        if len(read) > limits.upload_bytes:
            message = f"The file {name} is larger than {limits.upload_bytes:,} bytes."
            raise HTTPException(413, message)
        return read
    return _parse_value(name, value) if value and name not in model.model_fields else value


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
            response_format=resolve_response_format(service, given),
            output_format=(generation and generation.output_format) or "png",
            quality=(generation and generation.quality) or "auto",
        )
        return request, origin

    report_ignored_fields(given)
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
