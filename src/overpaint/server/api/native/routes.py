"""Our own wire format: the whole `Request`, events as they happen, uploads by content.

| | |
|---|---|
| `POST /api/jobs` | a job; 201; with `?wait=30` when it has ended, or after so many seconds |
| `GET /api/jobs` | newest first; `before`, `state`, `limit` |
| `GET /api/jobs/{id}` | one; `?wait=30` likewise |
| `POST /api/jobs/{id}/cancel` | ask for its end |
| `GET /api/jobs/{id}/events` | its story, as server-sent events |
| `GET /api/jobs/{id}/results/{name}` | a picture that it made |
| `GET /api/jobs/{id}/webhooks` | every try at its webhooks |
| `POST /api/jobs/{id}/webhooks/{event}/replay` | post one once more |
| `POST /api/files` | upload a picture; its name is the hash of its content |
| `GET /api/files/{name}` | whether it is there, and what it is |
| `GET /api/models` | what may be asked for |
| `GET /api/usage` | what the key has used; `by`, `since`, `until` |

A picture in a request is `{"file": NAME}`, `{"data": BASE64}`, or `{"url": URL}`.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import asdict
from datetime import date
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, HTTPException, Query, Response
from fastapi import Request as Incoming
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import core_schema

from overpaint.engine.worker import Shown
from overpaint.errors import RequestError
from overpaint.events import Step
from overpaint.imaging import codec
from overpaint.request import Request
from overpaint.server.api.deps import (
    LISTENER_LIMIT,
    IdempotencyKey,
    LastEventId,
    ServiceDep,
    ViewerDep,
)
from overpaint.server.api.event_stream import encode_event, event_stream_response
from overpaint.server.api.fields import (
    WebhookEvent,
    WebhookUrl,
    encode_data_uri,
    get_upload_or_404,
    hash_body,
    read_upload,
    run_in_reader_pool,
    with_checked_mask,
)
from overpaint.server.api.image_inputs import find_nested_urls, load_nested_images
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
from overpaint.server.jobs.service import Service, Story
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.store.jobs import Job, Said
from overpaint.server.store.origins import NativeOrigin, OutputOptions
from overpaint.server.store.usage import Ledger, Total

router = APIRouter(
    prefix="/api",
    tags=["native"],
    route_class=make_route_class(error_response),
    responses=PROBLEM_RESPONSES,
)

BINARY_SCHEMA = {"type": "string", "format": "binary"}

WaitSeconds = Annotated[float, Query(ge=0, le=60)]
"""Seconds that a client waits for a job's end."""


class LikeRequest:
    """Of a field whose schema is that of `Request`: that is checked with its pictures in it."""

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(Request.__pydantic_core_schema__)


class FileFormat(BaseModel):
    """What files to make.

    Attributes:
        format: of the pictures.
        quality: of JPEG and WebP, 1 to 100.
        preview_every: steps between previews; 0 for none.
    """

    model_config = ConfigDict(extra="forbid")

    format: Literal["png", "jpg", "webp"] = "png"
    quality: int | None = Field(default=None, ge=1, le=100)
    preview_every: int = Field(default=0, ge=0, le=1000)


class Submission(BaseModel):
    """A job to be made.

    Attributes:
        request: the fields of `Request`; see the docs of the library.
        model: by name; by default the server's first.
        priority: higher goes first; above 0 where there are no keys alone.
        output: what files to make.
        webhook: where to post what happens to it.
        webhook_events: what of it.
    """

    model_config = ConfigDict(extra="forbid")

    request: Annotated[dict[str, Any], LikeRequest()]
    model: str | None = Field(default=None, max_length=200)
    priority: int = Field(default=0, ge=-10, le=10)
    output: FileFormat = Field(default_factory=FileFormat)
    webhook: WebhookUrl = None
    webhook_events: tuple[WebhookEvent, ...] = ("start", "completed")


class WebhookAttempt(BaseModel):
    """A try at a webhook.

    Attributes:
        at: seconds since 1970.
        status: that came back.
        error: why none did.
        seconds: that it took.
    """

    at: float
    status: int | None
    error: str | None
    seconds: float


class WebhookView(BaseModel):
    """A job's webhook, and every try at it.

    Attributes:
        event: that it tells of.
        state: later, due, delivered, failed (no tries left), gone (its receiver is).
        tries: the first one first.
    """

    event: WebhookEvent
    state: str
    tries: list[WebhookAttempt]


class Upload(BaseModel):
    """A file that was uploaded: its name, which is the SHA-256 of its content, and its size."""

    file: str
    size: int


class ResultView(BaseModel):
    """A picture that a job made."""

    name: str
    url: str
    seed: int
    width: int
    height: int


class FlaggedImage(BaseModel):
    """A picture that the safety checker flagged, which is not published.

    Attributes:
        index: which picture of the request, from 0.
        seed: that it was painted with.
        concepts: what was seen in it, as far as the checker names that.
    """

    index: int
    seed: int
    concepts: list[str]


class JobView(BaseModel):
    """A job, as it is now.

    Attributes:
        id: of the job.
        model: that it is for.
        state: queued, running, succeeded, failed or canceled.
        request: as it was asked, pictures by the names of their files.
        created: seconds since 1970; so are the others.
        attempt: how often it was begun.
        error: why it failed.
        results: its pictures.
        flagged: pictures that it made, and that are not published.
        position: how many jobs are before it in the queue.
        eta: seconds until it is done, as a guess, while it waits.
        done: steps that are done, while it runs.
        total: steps that it takes, while it runs.
    """

    id: str
    model: str
    state: str
    request: dict[str, Any]
    created: float
    started: float | None
    ended: float | None
    attempt: int
    error: str | None
    results: list[ResultView]
    flagged: list[FlaggedImage]
    position: int | None = None
    eta: float | None = None
    done: int | None = None
    total: int | None = None


class JobPage(BaseModel):
    """Jobs, newest first, and the id to ask for the next older ones with."""

    jobs: list[JobView]
    before: str | None


async def make_job_view(service: Service, job: Job) -> JobView:
    """A job as clients see it."""
    result = {"files": [], "seeds": [], "sizes": []} | (job.result or {})
    made = [
        ResultView(
            name=name,
            url=f"/api/jobs/{job.id}/results/{name}",
            seed=seed,
            width=size[0],
            height=size[1],
        )
        for name, seed, size in zip(result["files"], result["seeds"], result["sizes"], strict=True)
    ]
    shown = JobView(
        id=job.id,
        model=job.model,
        state=job.state,
        request=job.request,
        created=job.created,
        started=job.started,
        ended=job.ended,
        attempt=job.attempt,
        error=job.error,
        results=made,
        flagged=[FlaggedImage.model_validate(flag) for flag in job.flagged],
    )
    if job.state == "queued":
        ahead = await asyncio.to_thread(service.jobs.ahead, job.id)
        if ahead:
            shown.position = ahead[0]
            shown.eta = ahead[1] + job.work
    elif job.state == "running" and (step := service.hub.now(job.id).step):
        shown.done, shown.total = step.done, step.total
    return shown


async def webhook_payload(service: Service, job: Job) -> dict[str, Any]:
    """What is posted to a webhook."""
    return (await make_job_view(service, job)).model_dump(mode="json")


async def accept_job(
    service: Service, key: str, submission: Submission, token: str | None, body: str
) -> Job:
    """Accept a job; `body` is the hash of what came."""

    def read(sources: ImageSources) -> Request:
        fields = load_nested_images(submission.request, sources)
        return with_checked_mask(Request.model_validate(fields))

    urls = await run_in_reader_pool(find_nested_urls, submission.request)
    async with service.sources(key, urls) as sources:
        request = await run_in_reader_pool(read, sources)
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


@router.post("/jobs", status_code=201)
async def create_job(
    submission: Submission,
    service: ServiceDep,
    key: KeyDep,
    response: Response,
    wait: WaitSeconds = 0.0,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Accept a job. With an `Idempotency-Key` that came before, the job that it made.

    With `?wait=30` it answers when the job has ended, or as it is after so many seconds.
    """
    if key and submission.priority > 0:
        raise RequestError("priority", "is 0 at most on a server with keys: others wait too.")
    body = await hash_body(idempotency_key, submission)
    job = await service.repeated(key, idempotency_key, body)
    job = job or await accept_job(service, key, submission, idempotency_key, body)
    response.headers["Location"] = f"/api/jobs/{job.id}"
    return await make_job_view(service, await service.ended(job.id, wait) or job if wait else job)


@router.get("/jobs")
async def list_jobs(
    service: ServiceDep,
    key: KeyDep,
    before: Annotated[str | None, Query(max_length=64)] = None,
    state: Literal["queued", "running", "succeeded", "failed", "canceled"] | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 30,
) -> JobPage:
    """Jobs, newest first."""
    last = await get_job_or_404(service, key, before) if before else None
    states = None if state is None else (state,)
    listed = await asyncio.to_thread(
        lambda: service.jobs.page(key, limit, before=last, states=states)
    )
    views = [await make_job_view(service, job) for job in listed]
    return JobPage(jobs=views, before=listed[-1].id if len(listed) == limit else None)


@router.get("/jobs/{name}")
async def get_job(name: str, service: ServiceDep, key: KeyDep, wait: WaitSeconds = 0.0) -> JobView:
    """A job; with `?wait=30` when it has ended, or as it is after so many seconds."""
    job = await get_job_or_404(service, key, name)
    return await make_job_view(service, await service.ended(name, wait) or job if wait else job)


@router.post("/jobs/{name}/cancel")
async def cancel_job(name: str, service: ServiceDep, key: KeyDep) -> JobView:
    """Ask for a job's end: at once if it waits, before its next step if it runs."""
    await get_job_or_404(service, key, name)
    job = await service.cancel(name)
    assert job is not None
    return await make_job_view(service, job)


@router.get(
    "/jobs/{name}/events",
    response_class=StreamingResponse,
    dependencies=LISTENER_LIMIT,
    responses=EVENT_STREAM_RESPONSES,
)
async def stream_job_events(
    name: str,
    service: ServiceDep,
    key: KeyDep,
    last_event_id: LastEventId = 0,
) -> StreamingResponse:
    """A job's story: `queued`, `started`, `notice`, `requeued`, its end; `step` and `preview`.

    What lasts has an id: with `Last-Event-ID` it goes on behind that, and where the job is now.
    """
    await get_job_or_404(service, key, name)

    async def told() -> AsyncGenerator[bytes]:
        async for story in service.follow(name, last_event_id):
            yield encode_story(story)

    return event_stream_response(told())


def encode_story(story: Story) -> bytes:
    """Encode what happened to a job. Only stored events have an id."""
    match story:
        case Said(number, at, kind, body):
            return encode_event({"at": at} | body, kind, number)
        case Step(done, total, sigma):
            return encode_event({"done": done, "total": total, "sigma": sigma}, "step")
        case Shown(index, data):
            image = encode_data_uri(data, MEDIA_TYPES["jpg"])
            return encode_event({"index": index, "image": image}, "preview")


@router.get("/jobs/{name}/results/{file}", response_class=FileResponse, responses=IMAGE_RESPONSES)
async def get_result(name: str, file: str, incoming: Incoming, viewer: ViewerDep) -> FileResponse:
    """A picture that a job made."""
    return await result_file_response(incoming, viewer, name, file)


@router.get("/jobs/{name}/webhooks")
async def list_webhooks(name: str, service: ServiceDep, key: KeyDep) -> list[WebhookView]:
    """Every try at a job's webhooks."""
    await get_job_or_404(service, key, name)
    log = await asyncio.to_thread(service.outbox.log, name)
    return [
        WebhookView(
            event=cast(WebhookEvent, posted.kind),
            state=posted.state,
            tries=[WebhookAttempt(**asdict(made)) for made in posted.tries],
        )
        for posted in log
    ]


@router.post("/jobs/{name}/webhooks/{event}/replay", status_code=202)
async def replay_webhook(
    name: str, event: WebhookEvent, service: ServiceDep, key: KeyDep
) -> list[WebhookView]:
    """Post a webhook once more: whatever came of it before, and with the same id."""
    await get_job_or_404(service, key, name)
    if not await asyncio.to_thread(service.outbox.replay, name, event):
        raise HTTPException(409, f"job {name} has no webhook for {event}, or is not so far.")
    return await list_webhooks(name, service, key)


@router.get("/webhooks/secret")
async def get_webhook_secret(service: ServiceDep, key: KeyDep) -> dict[str, str]:
    """What your webhooks are signed with, by Standard Webhooks."""
    return {"key": await asyncio.to_thread(service.outbox.secret, key)}


@router.post(
    "/files",
    status_code=201,
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
    """Upload a picture: its bytes are the body."""
    data = await read_upload(incoming)
    await run_in_reader_pool(codec.receive_picture, data, "the picture")
    return Upload(file=await asyncio.to_thread(service.files.put, data), size=len(data))


@router.get("/files/{name}")
async def get_file(name: str, service: ServiceDep, key: KeyDep) -> Upload:
    """Whether a file is there: a client that knows its hash need not upload it again."""
    data = await get_upload_or_404(service, name)
    return Upload(file=name, size=len(data))


@router.get("/models")
async def list_models(service: ServiceDep, key: KeyDep) -> list[str]:
    """Names that a job may ask for, the default first."""
    return list(service.settings.models)


@router.get("/usage")
async def get_usage(
    service: ServiceDep,
    key: KeyDep,
    by: Literal["day", "model"] = "day",
    since: date | None = None,
    until: date | None = None,
) -> list[Total]:
    """What you have used each day, or of each model, between two days in UTC, both included."""
    ledger = Ledger(service.jobs.database)
    return await asyncio.to_thread(ledger.totals, by, since=since, until=until, key=key)
