"""The routes of OpenAI's images API.

| Route | Effect |
|---|---|
| `POST /v1/images/generations` | make images from a prompt |
| `POST /v1/images/edits` | repaint an image; a form or JSON |
| `POST /v1/images/variations` | repaint an image without a prompt; a form |
| `GET /v1/models/{name}` | describe a model |

Replicate's `GET /v1/models` also contains OpenAI's list of models. The routes of images also have
the paths of Azure: `/openai/deployments/{model}/images/…` and `/openai/v1/images/…`.
"""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi import Request as Incoming
from fastapi.responses import JSONResponse
from starlette.background import BackgroundTask

from overpaint.errors import RequestError
from overpaint.request import Request
from overpaint.server.api.deps import CountListener, IdempotencyKey, ServiceDep, get_base_url
from overpaint.server.api.event_stream import event_stream_response
from overpaint.server.api.extended_fields import find_extra_urls, translate_error
from overpaint.server.api.fields import hash_body
from overpaint.server.api.ignored_fields import report_ignored_fields
from overpaint.server.api.openai.bodies import form_schema, parse_edit, parse_variation
from overpaint.server.api.openai.protocol import (
    ERROR_SCHEMA,
    NATIVE_FIELDS,
    Edit,
    EditFields,
    Generation,
    ImageFields,
    JsonEdit,
    Variation,
    error_response,
    get_model_or_404,
    image_response,
    job_error,
    resolve_model,
)
from overpaint.server.api.openai.stream import job_events
from overpaint.server.api.openai.translation import (
    find_image_urls,
    output_options,
    resolve_response_format,
    to_request,
)
from overpaint.server.api.results import EVENT_STREAM_RESPONSES, wait_until_ended
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.problems import ShutdownError, error_responses
from overpaint.server.http.threads import run_in_picture_thread
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.job_rows import ENDED, Job
from overpaint.server.store.origins import OpenAIOrigin

images = APIRouter(prefix="/images", route_class=make_route_class(error_response))
"""The routes that make images. OpenAI's client for Azure has other paths for them."""


AZURE_PREFIXES = ("/openai/deployments/{deployment}", "/openai/v1")
"""Paths of Azure. A deployment is a model; Azure's `api-version` has no effect."""


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
    urls |= find_image_urls(given)
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
    service: Service,
    key: str,
    incoming: Incoming,
    given: ImageFields,
    token: str | None,
    count_listener: Callable[[], None],
) -> Response:
    """Run a job and return its images, or its events while it runs.

    The job is canceled when the client disconnects, because no route returns its result later.
    A job with an idempotency key or a webhook continues.
    """
    if deployment := incoming.path_params.get("deployment"):
        given = given.model_copy(update={"model": deployment})
    streams = isinstance(given, Generation) and bool(given.stream)
    if streams:
        count_listener()
    job = await accept_job(service, key, get_base_url(incoming), given, token)
    headers = {"X-Request-ID": job.id}
    outlives_client = token is not None or given.webhook is not None
    if isinstance(given, Generation) and streams:
        prefix = "image_edit" if isinstance(given, EditFields) else "image_generation"
        return event_stream_response(
            job_events(service, job, prefix, given.partial_images or 0),
            headers=headers,
            background=None if outlives_client else BackgroundTask(service.cancel, job.id),
        )
    job = await wait_until_ended(service, job, incoming)
    if job.state not in ENDED:
        if not outlives_client:
            await service.cancel(job.id)
        raise ShutdownError(job.id)
    if error := job_error(job):
        raise error
    return JSONResponse(await image_response(service, job), headers=headers)


@images.post("/generations", responses=EVENT_STREAM_RESPONSES)
async def generate_images(
    body: Generation,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    count_listener: CountListener,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make images from a prompt.

    The job is canceled when the client disconnects, unless the request has an `Idempotency-Key`
    or a `webhook`.
    """
    return await create_images(service, key, incoming, body, idempotency_key, count_listener)


@images.post("/edits", responses=EVENT_STREAM_RESPONSES, openapi_extra=form_schema(Edit, JsonEdit))
async def edit_image(
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    body: Annotated[Edit | JsonEdit, Depends(parse_edit)],
    count_listener: CountListener,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Repaint an image, or the area of it that a mask marks.

    The job is canceled when the client disconnects, unless the request has an `Idempotency-Key`
    or a `webhook`.
    """
    return await create_images(service, key, incoming, body, idempotency_key, count_listener)


@images.post("/variations", openapi_extra=form_schema(Variation))
async def vary_image(
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    body: Annotated[Variation, Depends(parse_variation)],
    count_listener: CountListener,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Repaint an image without a prompt.

    The job is canceled when the client disconnects, unless the request has an `Idempotency-Key`
    or a `webhook`.
    """
    return await create_images(service, key, incoming, body, idempotency_key, count_listener)


# Models

models = APIRouter(route_class=make_route_class(error_response))


@models.get("/models/{name}")
async def retrieve_model(name: str, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """Describe a model."""
    return get_model_or_404(service, name)


# Paths

router = APIRouter()
"""The routes under all of their paths."""

router.include_router(
    images, prefix="/v1", tags=["OpenAI"], responses=error_responses(ERROR_SCHEMA)
)
router.include_router(
    models, prefix="/v1", tags=["OpenAI"], responses=error_responses(ERROR_SCHEMA)
)
for prefix in AZURE_PREFIXES:
    router.include_router(images, prefix=prefix, include_in_schema=False)
