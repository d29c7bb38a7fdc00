"""Routes of the native API: every field of `Request`, live events, uploads by content hash.

| route | purpose |
|---|---|
| `POST /api/jobs` | submit a job |
| `GET /api/jobs` | list jobs |
| `GET /api/jobs/{id}` | get a job; `?wait=30` waits for its end |
| `POST /api/jobs/{id}/cancel` | cancel a job |
| `GET /api/jobs/{id}/events` | follow a job by server-sent events |
| `GET /api/jobs/{id}/results/{name}` | download a result |
| `GET /api/jobs/{id}/webhooks` | list the attempts to deliver webhooks |
| `POST /api/jobs/{id}/webhooks/{event}/replay` | deliver a webhook again |
| `GET /api/webhooks/secret` | get the secret that signs webhooks |
| `POST /api/files` | upload a picture |
| `GET /api/files/{name}` | look up an upload |
| `GET /api/models` | list models |
| `GET /api/usage` | get usage |
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import asdict
from datetime import date
from typing import Annotated, Literal, cast

from fastapi import APIRouter, HTTPException, Path, Query, Response
from fastapi import Request as Incoming
from fastapi.responses import FileResponse, StreamingResponse

from overpaint.engine.messages import PreviewImage
from overpaint.errors import RequestError
from overpaint.events import Step
from overpaint.imaging import codec
from overpaint.request import Request
from overpaint.server.api.deps import (
    LISTENER_LIMIT,
    CountListener,
    IdempotencyKey,
    JobId,
    LastEventId,
    ServiceDep,
    ViewerDep,
)
from overpaint.server.api.event_stream import encode_event, event_stream_response
from overpaint.server.api.fields import (
    WebhookEvent,
    encode_data_uri,
    hash_body,
    measure_upload_or_404,
    read_upload,
    with_checked_mask,
)
from overpaint.server.api.image_inputs import find_nested_urls, load_nested_images
from overpaint.server.api.native.views import (
    JobPage,
    JobView,
    Submission,
    Upload,
    WebhookAttempt,
    WebhookSecret,
    WebhookView,
    make_job_view,
    read_job_view,
)
from overpaint.server.api.results import (
    EVENT_STREAM_RESPONSES,
    IMAGE_RESPONSES,
    MEDIA_TYPES,
    get_job_or_404,
    result_file_response,
)
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.problems import PROBLEM_RESPONSES, error_response
from overpaint.server.http.threads import run_in_picture_thread, run_in_write_thread
from overpaint.server.jobs.service import Service, Story
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.job_rows import HistoryEntry, Job
from overpaint.server.store.origins import NativeOrigin, OutputOptions
from overpaint.server.store.usage import UsageReader, UsageTotal

router = APIRouter(
    prefix="/api",
    tags=["native"],
    route_class=make_route_class(error_response),
    responses=PROBLEM_RESPONSES,
)

BINARY_SCHEMA = {"type": "string", "format": "binary"}
"""JSON schema of a body that is a file."""

WaitSeconds = Annotated[
    float,
    Query(
        ge=0,
        le=60,
        description="Seconds to wait for the end of the job. After this time, the response has the "
        "job's current state.",
    ),
]
"""Seconds that a client waits for the end of a job."""


async def accept_job(
    service: Service, key: str, submission: Submission, token: str | None, body: str
) -> Job:
    """Submit a job to the service.

    Args:
        service: the running service.
        key: the digest of the client's API key.
        submission: the new job.
        token: the idempotency key.
        body: the hash of the request body, see `hash_body`.

    Raises:
        RequestError, PictureError: the request is not valid.
        OverpaintError, OSError: see `Service.submit`.
    """

    def read(sources: ImageSources) -> Request:
        fields = load_nested_images(submission.request, sources)
        return with_checked_mask(Request.model_validate(fields))

    urls = await run_in_picture_thread(find_nested_urls, submission.request)
    async with service.sources(key, urls) as sources:
        request = await run_in_picture_thread(read, sources)
    output = submission.output
    options = {} if output.quality is None else {"quality": output.quality}
    kept = OutputOptions(kind=output.format, options=options, preview_every=output.preview_every)
    return await service.submit(
        request,
        model=submission.model,
        key=key,
        priority=submission.priority,
        origin=NativeOrigin(output=kept),
        webhook=submission.webhook,
        webhook_events=submission.webhook_events,
        token=token,
        body=body,
    )


@router.post("/jobs", status_code=201, summary="Submit a job")
async def create_job(
    submission: Submission,
    service: ServiceDep,
    key: KeyDep,
    response: Response,
    wait: WaitSeconds = 0.0,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Submit a job.

    If the request repeats an `Idempotency-Key` with the same body, the response is the first job.
    With `wait`, the response comes when the job has ended.
    """
    if key and submission.priority > 0:
        raise RequestError(
            "priority",
            "Jobs on a server with API keys have a priority of at most 0, because other clients "
            "wait too.",
        )
    body = await hash_body(idempotency_key, submission)
    job = await service.repeated(key, idempotency_key, body)
    job = job or await accept_job(service, key, submission, idempotency_key, body)
    response.headers["Location"] = f"/api/jobs/{job.id}"
    return await make_job_view(service, await service.ended(job.id, wait) or job if wait else job)


@router.get("/jobs", summary="List jobs")
async def list_jobs(
    service: ServiceDep,
    key: KeyDep,
    before: Annotated[
        str | None, Query(max_length=64, description="Id of a job. The list has only older jobs.")
    ] = None,
    state: Annotated[
        Literal["queued", "running", "succeeded", "failed", "canceled"] | None,
        Query(description="State of the jobs to list; by default all states."),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100, description="Largest number of jobs.")] = 30,
) -> JobPage:
    """List the jobs of the API key, the newest first."""
    last = await get_job_or_404(service, key, before) if before else None
    states = None if state is None else (state,)

    def read_page() -> JobPage:
        listed = service.jobs.list_page(
            key, limit, before=last, states=states, max_chars=service.settings.limits.listed_chars
        )
        views = [read_job_view(service, job) for job in listed]
        more = listed and service.jobs.list_page(key, 1, before=listed[-1], states=states)
        return JobPage(jobs=views, before=listed[-1].id if more else None)

    return await asyncio.to_thread(read_page)


@router.get("/jobs/{name}", summary="Get a job")
async def get_job(
    name: JobId,
    service: ServiceDep,
    key: KeyDep,
    count_listener: CountListener,
    wait: WaitSeconds = 0.0,
) -> JobView:
    """Get a job in its current state. With `wait`, the response comes when the job has ended."""
    if wait:
        count_listener()
    job = await get_job_or_404(service, key, name)
    return await make_job_view(service, await service.ended(name, wait) or job if wait else job)


@router.post("/jobs/{name}/cancel", summary="Cancel a job")
async def cancel_job(name: JobId, service: ServiceDep, key: KeyDep) -> JobView:
    """Cancel a job. A queued job ends immediately, a running job before its next step."""
    job = await get_job_or_404(service, key, name)
    return await make_job_view(service, await service.cancel(name) or job)


@router.get(
    "/jobs/{name}/events",
    summary="Follow a job by server-sent events",
    response_class=StreamingResponse,
    dependencies=LISTENER_LIMIT,
    responses=EVENT_STREAM_RESPONSES,
)
async def stream_job_events(
    name: JobId,
    service: ServiceDep,
    key: KeyDep,
    last_event_id: LastEventId = 0,
) -> StreamingResponse:
    """Follow a job until it ends.

    Stored events have an id: `queued`, `started`, `notice`, `requeued`, and the end (`succeeded`,
    `failed` or `canceled`). Live events have no id: `step` and `preview`. To resume a stream, send
    the last id as `Last-Event-ID`; the stream repeats later stored events and the current state.
    """
    await get_job_or_404(service, key, name)

    async def encode_stories() -> AsyncGenerator[bytes]:
        async for story in service.follow(name, last_event_id):
            yield encode_story(story)

    return event_stream_response(encode_stories())


def encode_story(story: Story) -> bytes:
    """Encode what happened to a job. Only stored events have an id."""
    match story:
        case HistoryEntry(number, at, kind, body):
            return encode_event({"at": at} | body, kind, number)
        case Step(done, total, sigma):
            return encode_event({"done": done, "total": total, "sigma": sigma}, "step")
        case PreviewImage(index, data):
            image = encode_data_uri(data, MEDIA_TYPES["jpg"])
            return encode_event({"index": index, "image": image}, "preview")


@router.get(
    "/jobs/{name}/results/{file}",
    summary="Download a result",
    response_class=FileResponse,
    responses=IMAGE_RESPONSES,
)
async def get_result(
    name: JobId,
    file: Annotated[str, Path(description="Name of the result file.")],
    incoming: Incoming,
    viewer: ViewerDep,
) -> FileResponse:
    """Download a result picture of a job, with an API key or by a signed link."""
    return await result_file_response(incoming, viewer, name, file)


@router.get("/jobs/{name}/webhooks", summary="List webhook attempts")
async def list_webhooks(name: JobId, service: ServiceDep, key: KeyDep) -> list[WebhookView]:
    """List the webhooks of a job, with all attempts to deliver them."""
    await get_job_or_404(service, key, name)
    log = await asyncio.to_thread(service.outbox.list_webhooks, name)
    return [
        WebhookView(
            event=cast(WebhookEvent, posted.kind),
            state=posted.state,
            tries=[WebhookAttempt(**asdict(made)) for made in posted.tries],
        )
        for posted in log
    ]


@router.post(
    "/jobs/{name}/webhooks/{event}/replay", status_code=202, summary="Deliver a webhook again"
)
async def replay_webhook(
    name: JobId,
    event: Annotated[WebhookEvent, Path(description="Event that the webhook reports.")],
    service: ServiceDep,
    key: KeyDep,
) -> list[WebhookView]:
    """Deliver a webhook again with the same webhook id, even if it was delivered before."""
    await get_job_or_404(service, key, name)
    if not await run_in_write_thread(service.outbox.replay, name, event):
        raise HTTPException(
            409,
            f"Job {name} has no webhook for the event {event}, or the event has not occurred yet.",
        )
    return await list_webhooks(name, service, key)


@router.get("/webhooks/secret", summary="Get the webhook secret")
async def get_webhook_secret(service: ServiceDep, key: KeyDep) -> WebhookSecret:
    """Get the secret with which the server signs the API key's webhooks (Standard Webhooks)."""
    return WebhookSecret(key=await run_in_write_thread(service.outbox.get_secret, key))


@router.post(
    "/files",
    status_code=201,
    summary="Upload a picture",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                kind: {"schema": BINARY_SCHEMA} for kind in ("application/octet-stream", "image/*")
            },
        }
    },
)
async def upload_file(incoming: Incoming, service: ServiceDep, key: KeyDep) -> Upload:
    """Upload a picture (PNG, JPEG, WebP or AVIF). The request body is the content of the file."""
    data = await read_upload(incoming)
    await run_in_picture_thread(codec.receive_picture, data, "the picture")
    return Upload(file=await service.put_upload(data, str), size=len(data))


@router.get("/files/{name}", summary="Look up an upload")
async def get_file(
    name: Annotated[str, Path(description="SHA-256 of the content in hexadecimal.")],
    service: ServiceDep,
    key: KeyDep,
) -> Upload:
    """Look up an upload. A client that knows the hash need not upload the picture again."""
    size = await measure_upload_or_404(service, name)
    return Upload(file=name, size=size)


@router.get("/models", summary="List models")
async def list_models(service: ServiceDep, key: KeyDep) -> list[str]:
    """List the names of the models that jobs can request, the default one first."""
    return list(service.settings.models)


@router.get("/usage", summary="Get usage")
async def get_usage(
    service: ServiceDep,
    key: KeyDep,
    by: Annotated[
        Literal["day", "model"], Query(description="Group the usage by day or by model.")
    ] = "day",
    since: Annotated[date | None, Query(description="First day, in UTC.")] = None,
    until: Annotated[date | None, Query(description="Last day, in UTC.")] = None,
) -> list[UsageTotal]:
    """Get the usage of the API key by day or by model. Both days are included."""
    ledger = UsageReader(service.jobs.database)
    return await asyncio.to_thread(ledger.sum_usage, by, since=since, until=until, key=key)
