"""fal's API, as its clients speak it.

| | |
|---|---|
| `POST /fal/queue/OWNER/APP` | accepts a request, and says where the rest is |
| `GET /fal/queue/OWNER/APP/requests/ID/status` | IN_QUEUE, IN_PROGRESS or COMPLETED |
| `GET /fal/queue/OWNER/APP/requests/ID/status/stream` | the same as events, to the end |
| `GET /fal/queue/OWNER/APP/requests/ID` | its result |
| `PUT /fal/queue/OWNER/APP/requests/ID/cancel` | ask for its end |
| `POST /fal/run/OWNER/APP` | answers with the result |
| `POST /fal/run/OWNER/APP/stream` | previews and the result as events |

Behind `APP` may stand what is asked for: see `TASKS`. An app is one of this server's models, with
any owner; other apps of `fal-ai` stand for the first. Every field of `Request` is understood
beside the dialect's.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Response
from fastapi import Request as Incoming
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.background import BackgroundTask

from overpaint.engine.messages import PreviewImage
from overpaint.errors import RequestError, did_you_mean
from overpaint.server.api.deps import LISTENER_LIMIT, IdempotencyKey, ServiceDep, get_base_url
from overpaint.server.api.event_stream import encode_event, event_stream_response
from overpaint.server.api.extended_fields import find_extra_urls, translate_error
from overpaint.server.api.fal.protocol import (
    CANCELED,
    ERROR,
    OWN,
    OWNER,
    TASKS,
    App,
    Arguments,
    error_response,
    in_their_words,
    result_of,
    status_of,
    to_request,
)
from overpaint.server.api.fields import WebhookUrl, encode_data_uri, hash_body, run_in_reader_pool
from overpaint.server.api.image_inputs import find_remote_urls
from overpaint.server.api.results import EVENT_STREAM_RESPONSES, get_job_or_404, wait_until_ended
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.problems import MIN_RETRY_AFTER_S, error_responses
from overpaint.server.jobs.service import Service
from overpaint.server.store.jobs import ENDED, Job
from overpaint.server.store.origins import FalOrigin, OutputOptions

PRIORITIES = {"normal": 0, "low": -1}
PREVIEW_EVERY = 5
"""Steps between the previews of a stream."""


# Errors


router = APIRouter(
    prefix="/fal",
    tags=["fal"],
    route_class=make_route_class(error_response),
    responses=error_responses(ERROR),
)


# From their words to ours


def app_of(owner: str, app: str, incoming: Incoming, service: ServiceDep) -> App:
    """The app that a URL names.

    Raises:
        HTTPException: 404, there is none.
    """
    models, task = service.settings.models, incoming.path_params.get("task", "")
    if app not in models and owner != OWNER:
        raise HTTPException(404, f"there is no app {owner}/{app} here.{did_you_mean(app, models)}")
    if task not in TASKS:
        raise HTTPException(404, f"{owner}/{app} has no {task!r} here.{did_you_mean(task, TASKS)}")
    return App(f"{owner}/{app}", app if app in models else models[0], TASKS[task])


# From our words to theirs


# Routes


def no_deadline(x_fal_request_timeout: Annotated[str | None, Header()] = None) -> None:
    """Refuse a deadline, which nothing here would keep.

    Raises:
        RequestError: one was given.
    """
    if x_fal_request_timeout is not None:
        raise RequestError(
            "X-Fal-Request-Timeout",
            "there are no deadlines here; leave out start_timeout and client_timeout.",
        )


Asked = Annotated[App, Depends(app_of)]
Priority = Annotated[Literal["normal", "low"], Header(alias="X-Fal-Queue-Priority")]
PLAIN = [Depends(no_deadline)]
ANY = "/queue/{owner}/{app}/requests/{name}"


async def accept(
    service: Service,
    key: str,
    incoming: Incoming,
    app: App,
    given: Arguments,
    token: str | None,
    *,
    priority: int = 0,
    webhook: str | None = None,
    preview_every: int = 0,
) -> Job:
    """Accept what is asked for."""
    body = await hash_body(token, given, app.name, *app.needs)
    if job := await service.repeated(key, token, body):
        return job
    urls = find_remote_urls({"image_url": given.image_url, "mask_url": given.mask_url})
    urls |= await run_in_reader_pool(find_extra_urls, given, OWN)
    async with service.sources(key, urls) as sources:
        request, theirs = await run_in_reader_pool(to_request, given, sources, app.needs)
    kind = "jpg" if given.format == "jpeg" else given.format
    origin = FalOrigin(
        output=OutputOptions(kind=kind, preview_every=preview_every),
        base_url=get_base_url(incoming),
        app=app.name,
        field_names=theirs,
        prompt=given.prompt,
        sync_mode=given.sync_mode,
        check_safety=service.checked("enable_safety_checker", given.enable_safety_checker),
    )
    try:
        return await service.submit(
            request,
            model=app.model,
            key=key,
            priority=priority,
            origin=origin,
            webhook=webhook,
            webhook_events=("completed",),
            token=token,
            body=body,
        )
    except RequestError as error:
        raise in_their_words(translate_error(error, theirs), given) from None


@router.post("/queue/{owner}/{app}", dependencies=PLAIN)
@router.post("/queue/{owner}/{app}/{task}", dependencies=PLAIN)
async def submit(
    given: Arguments,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    app: Asked,
    fal_webhook: Annotated[WebhookUrl, Query()] = None,
    priority: Priority = "normal",
    idempotency_key: IdempotencyKey = None,
) -> dict[str, Any]:
    """Accept a request."""
    job = await accept(
        service,
        key,
        incoming,
        app,
        given,
        idempotency_key,
        priority=PRIORITIES[priority],
        webhook=fal_webhook,
    )
    return await asyncio.to_thread(status_of, service, job, False) | {"gateway_request_id": job.id}


async def found_here(name: str, service: ServiceDep, key: KeyDep) -> Job:
    """A request of a key that came by this dialect.

    Raises:
        HTTPException: 404, there is none.
    """
    job = await get_job_or_404(service, key, name)
    if not isinstance(job.origin, FalOrigin):
        raise HTTPException(404, f"there is no request {name}.")
    return job


Found = Annotated[Job, Depends(found_here)]


@router.get(f"{ANY}/status", responses={202: {"description": "it has not ended yet"}})
async def status(job: Found, service: ServiceDep, response: Response, logs: bool = False) -> Any:
    """Where a request is; 202 until it has ended."""
    response.status_code = 200 if job.state in ENDED else 202
    return await asyncio.to_thread(status_of, service, job, logs)


@router.get(
    f"{ANY}/status/stream",
    response_class=StreamingResponse,
    dependencies=LISTENER_LIMIT,
    responses=EVENT_STREAM_RESPONSES,
)
async def follow(job: Found, service: ServiceDep, logs: bool = False) -> StreamingResponse:
    """Where a request is, whenever that changes, until it has ended."""

    def look() -> dict[str, Any]:
        return status_of(service, service.jobs.get(job.id) or job, logs)

    async def told() -> AsyncGenerator[bytes]:
        last: dict[str, Any] | None = None
        async for _ in service.follow(job.id):
            now = await asyncio.to_thread(look)
            if now != last:
                yield encode_event(now)
            last = now

    return event_stream_response(told())


@router.get(
    ANY, responses={CANCELED: error_responses(ERROR)[409] | {"description": "it was canceled"}}
)
async def result(job: Found, service: ServiceDep) -> dict[str, Any]:
    """What came of a request; 400 while it goes on."""
    return await asyncio.to_thread(result_of, service, job)


@router.put(f"{ANY}/cancel", status_code=202, responses={400: {"description": "it has ended"}})
async def cancel(job: Found, service: ServiceDep, response: Response) -> dict[str, str]:
    """Ask for a request's end."""
    if job.state in ENDED:
        response.status_code = 400
        return {"status": "ALREADY_COMPLETED"}
    await service.cancel(job.id)
    return {"status": "CANCELLATION_REQUESTED"}


@router.post(
    "/run/{owner}/{app}/stream",
    dependencies=PLAIN,
    response_class=StreamingResponse,
    responses=EVENT_STREAM_RESPONSES,
)
@router.post(
    "/run/{owner}/{app}/{task}/stream",
    dependencies=PLAIN,
    response_class=StreamingResponse,
    responses=EVENT_STREAM_RESPONSES,
)
async def stream(
    given: Arguments,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    app: Asked,
    idempotency_key: IdempotencyKey = None,
) -> StreamingResponse:
    """Make pictures: previews as events, and then the result."""
    job = await accept(
        service, key, incoming, app, given, idempotency_key, preview_every=PREVIEW_EVERY
    )

    async def told() -> AsyncGenerator[bytes]:
        async for story in service.follow(job.id):
            match story:
                case PreviewImage(_, data):
                    shown = {
                        "url": encode_data_uri(data, "image/jpeg"),
                        "content_type": "image/jpeg",
                    }
                    yield encode_event({"images": [shown]})
                case _:
                    pass
        yield encode_event(await ending(service, job))

    cancel_task = None if idempotency_key else BackgroundTask(service.cancel, job.id)
    return event_stream_response(told(), background=cancel_task)


async def ending(service: Service, job: Job) -> dict[str, Any]:
    """What came of a job, or what is wrong: also that the server ended before it did."""
    now = await asyncio.to_thread(service.jobs.get, job.id) or job
    try:
        return await asyncio.to_thread(result_of, service, now)
    except (HTTPException, RequestError) as error:
        return json.loads(bytes(error_response(error).body))


@router.post("/run/{owner}/{app}", dependencies=PLAIN)
@router.post("/run/{owner}/{app}/{task}", dependencies=PLAIN)
async def run(
    given: Arguments,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    app: Asked,
    idempotency_key: IdempotencyKey = None,
) -> JSONResponse:
    """Make pictures, and wait for them.

    They end with the client's connection: nobody could ask for them later. With an idempotency
    key somebody can.
    """
    job = await accept(service, key, incoming, app, given, idempotency_key)
    job = await wait_until_ended(service, job, incoming)
    if job.state not in ENDED:
        if idempotency_key is None:
            await service.cancel(job.id)
        message = f"this server ends before request {job.id} does; try again in a minute."
        raise HTTPException(503, message, {"Retry-After": str(MIN_RETRY_AFTER_S)})
    made = await asyncio.to_thread(result_of, service, job)
    return JSONResponse(made, headers={"X-Fal-Request-Id": job.id})
