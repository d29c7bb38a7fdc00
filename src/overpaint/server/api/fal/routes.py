"""The routes of fal's API.

| Route | Effect |
|---|---|
| `POST /fal/queue/OWNER/APP` | accept a request; return its id and URLs |
| `GET /fal/queue/OWNER/APP/requests/ID/status` | return IN_QUEUE, IN_PROGRESS or COMPLETED |
| `GET /fal/queue/OWNER/APP/requests/ID/status/stream` | stream the status until the end |
| `GET /fal/queue/OWNER/APP/requests/ID` | return the result |
| `PUT /fal/queue/OWNER/APP/requests/ID/cancel` | cancel the request |
| `POST /fal/run/OWNER/APP` | wait for the result and return it |
| `POST /fal/run/OWNER/APP/stream` | stream previews and the result |

`storage.py` has the routes of uploads.

A task may follow `APP` in a path: see `REQUIRED_ARGUMENTS_BY_TASK`. `APP` is the name of a model
of this server, with any owner. Other apps of `fal-ai` stand for the first model.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Response
from fastapi import Request as Incoming
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BeforeValidator
from starlette.background import BackgroundTask

from overpaint.engine.messages import PreviewImage
from overpaint.errors import RequestError, did_you_mean
from overpaint.server.api.deps import LISTENER_LIMIT, IdempotencyKey, ServiceDep, get_base_url
from overpaint.server.api.event_stream import encode_event, event_stream_response
from overpaint.server.api.extended_fields import find_extra_urls, translate_error
from overpaint.server.api.fal.protocol import (
    CANCELED_STATUS,
    ERROR_SCHEMA,
    FAL_OWNER,
    NATIVE_FIELDS,
    REQUIRED_ARGUMENTS_BY_TASK,
    App,
    Arguments,
    error_response,
    final_result,
    job_result,
    request_status,
)
from overpaint.server.api.fal.storage import load_stored_files
from overpaint.server.api.fal.translation import (
    report_unused_arguments,
    to_request,
    translate_nested_error,
)
from overpaint.server.api.fields import (
    WebhookUrl,
    encode_data_uri,
    hash_body,
    none_if_empty,
)
from overpaint.server.api.ignored_fields import report_ignored
from overpaint.server.api.image_inputs import find_remote_urls
from overpaint.server.api.inline_files import collect_inline_files, stream_body
from overpaint.server.api.results import (
    EVENT_STREAM_RESPONSES,
    get_job_or_404,
    wait_until_ended,
)
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.problems import ShutdownError, error_responses
from overpaint.server.http.threads import run_in_picture_thread
from overpaint.server.jobs.service import Service
from overpaint.server.store.job_rows import ENDED, Job
from overpaint.server.store.origins import FalOrigin, OutputOptions

PRIORITY_BY_NAME = {"normal": 0, "low": -1}

PREVIEW_INTERVAL_STEPS = 5
"""Steps between the previews of a stream."""

REQUEST_ID_HEADER = "X-Fal-Request-Id"
"""Response header of a result, from which fal's clients take the request's id."""

router = APIRouter(
    prefix="/fal",
    tags=["fal"],
    route_class=make_route_class(error_response),
    responses=error_responses(ERROR_SCHEMA),
)


# Dependencies


def get_app_or_404(owner: str, app: str, incoming: Incoming, service: ServiceDep) -> App:
    """Return the app and the task that a URL names.

    Raises:
        HTTPException: 404, there is no such app or task.
    """
    models, task = service.settings.models, incoming.path_params.get("task", "")
    if app not in models and owner != FAL_OWNER:
        raise HTTPException(404, f"There is no app {owner}/{app}.{did_you_mean(app, models)}")
    if task not in REQUIRED_ARGUMENTS_BY_TASK:
        hint = did_you_mean(task, [name for name in REQUIRED_ARGUMENTS_BY_TASK if name])
        raise HTTPException(404, f"The app {owner}/{app} has no task {task!r}.{hint}")
    model = app if app in models else models[0]
    return App(f"{owner}/{app}", model, REQUIRED_ARGUMENTS_BY_TASK[task])


def report_deadline(x_fal_request_timeout: Annotated[str | None, Header()] = None) -> None:
    """Report a deadline, because the server does not enforce deadlines."""
    if x_fal_request_timeout is not None:
        report_ignored("X-Fal-Request-Timeout")


def read_priority(x_fal_queue_priority: Annotated[str | None, Header()] = None) -> int:
    """Return the priority of a request; unknown ones are normal, and reported."""
    name = (x_fal_queue_priority or "normal").strip().lower()
    if name not in PRIORITY_BY_NAME:
        report_ignored("X-Fal-Queue-Priority")
    return PRIORITY_BY_NAME.get(name, 0)


async def get_request_or_404(name: str, service: ServiceDep, key: KeyDep) -> Job:
    """Return the job of a request of this API key that was made by fal's API.

    Raises:
        HTTPException: 404, there is no such request.
    """
    job = await get_job_or_404(service, key, name)
    if not isinstance(job.origin, FalOrigin):
        raise HTTPException(404, f"There is no request {name}.")
    return job


AppDep = Annotated[App, Depends(get_app_or_404)]
JobDep = Annotated[Job, Depends(get_request_or_404)]
PriorityDep = Annotated[int, Depends(read_priority)]
NO_DEADLINE = [Depends(report_deadline)]
REQUEST_PATH = "/queue/{owner}/{app}/requests/{name}"


# Queue


async def accept_job(
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
    """Accept a job, or return the job that the same idempotency key made before."""
    report_unused_arguments(given)
    body = await hash_body(token, given, app.name, *app.required)
    if job := await service.repeated(key, token, body):
        return job
    name = "image_url" if given.image_url else "image_urls"
    urls = find_remote_urls({name: given.repainted_url, "mask_url": given.mask_url})
    urls |= await run_in_picture_thread(find_extra_urls, given, NATIVE_FIELDS)
    stored = await run_in_picture_thread(load_stored_files, service, key, urls)
    remote = {field: url for field, url in urls.items() if url not in stored}
    async with service.sources(key, remote) as fetched:
        sources = replace(fetched, fetched={**fetched.fetched, **stored})
        request, names = await run_in_picture_thread(to_request, given, sources, app.required)
    origin = FalOrigin(
        output=OutputOptions(kind=given.file_kind, preview_every=preview_every),
        base_url=get_base_url(incoming),
        app=app.name,
        field_names=names,
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
        raise translate_nested_error(translate_error(error, names), given) from None


@router.post("/queue/{owner}/{app}", dependencies=NO_DEADLINE)
@router.post("/queue/{owner}/{app}/{task}", dependencies=NO_DEADLINE)
async def submit_request(
    given: Arguments,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    app: AppDep,
    priority: PriorityDep,
    fal_webhook: Annotated[WebhookUrl, BeforeValidator(none_if_empty), Query()] = None,
    idempotency_key: IdempotencyKey = None,
) -> dict[str, Any]:
    """Accept a request, and return its id and the URLs of its status and result."""
    job = await accept_job(
        service,
        key,
        incoming,
        app,
        given,
        idempotency_key,
        priority=priority,
        webhook=fal_webhook,
    )
    status = await asyncio.to_thread(request_status, service, job, False)
    return status | {"gateway_request_id": job.id}


@router.get(
    f"{REQUEST_PATH}/status", responses={202: {"description": "The request has not ended yet."}}
)
async def get_status(
    job: JobDep, service: ServiceDep, response: Response, logs: bool = False
) -> Any:
    """Return the status of a request; the HTTP status is 202 until the request ends."""
    response.status_code = 200 if job.state in ENDED else 202
    return await asyncio.to_thread(request_status, service, job, logs)


@router.get(
    f"{REQUEST_PATH}/status/stream",
    response_class=StreamingResponse,
    dependencies=LISTENER_LIMIT,
    responses=EVENT_STREAM_RESPONSES,
)
async def stream_status(job: JobDep, service: ServiceDep, logs: bool = False) -> StreamingResponse:
    """Stream the status of a request: one event for every change, until the request ends."""

    def read_status() -> dict[str, Any]:
        return request_status(service, service.jobs.get(job.id) or job, logs)

    async def events() -> AsyncGenerator[bytes]:
        last: dict[str, Any] | None = None
        async for _ in service.follow(job.id):
            status = await asyncio.to_thread(read_status)
            if status != last:
                yield encode_event(status)
            last = status

    return event_stream_response(events())


@router.get(
    REQUEST_PATH,
    responses={
        CANCELED_STATUS: error_responses(ERROR_SCHEMA)[409]
        | {"description": "The request was canceled."}
    },
)
async def get_result(job: JobDep, service: ServiceDep, response: Response) -> dict[str, Any]:
    """Return the result of a request; the HTTP status is 400 until the request ends."""
    response.headers[REQUEST_ID_HEADER] = job.id
    return await asyncio.to_thread(job_result, service, job)


@router.put(
    f"{REQUEST_PATH}/cancel",
    status_code=202,
    responses={400: {"description": "The request has already ended."}},
)
async def cancel_request(job: JobDep, service: ServiceDep, response: Response) -> dict[str, str]:
    """Cancel a request."""
    if job.state in ENDED:
        response.status_code = 400
        return {"status": "ALREADY_COMPLETED"}
    await service.cancel(job.id)
    return {"status": "CANCELLATION_REQUESTED"}


# Synchronous calls


@router.post(
    "/run/{owner}/{app}/stream",
    dependencies=[*NO_DEADLINE, *LISTENER_LIMIT],
    response_class=StreamingResponse,
    responses=EVENT_STREAM_RESPONSES,
)
@router.post(
    "/run/{owner}/{app}/{task}/stream",
    dependencies=[*NO_DEADLINE, *LISTENER_LIMIT],
    response_class=StreamingResponse,
    responses=EVENT_STREAM_RESPONSES,
)
async def stream_result(
    given: Arguments,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    app: AppDep,
    idempotency_key: IdempotencyKey = None,
) -> StreamingResponse:
    """Make images, and stream previews and the result.

    The job is canceled when the client disconnects, unless the request has an `Idempotency-Key`.
    """
    job = await accept_job(
        service, key, incoming, app, given, idempotency_key, preview_every=PREVIEW_INTERVAL_STEPS
    )

    async def events() -> AsyncGenerator[bytes]:
        async for event in service.follow(job.id):
            match event:
                case PreviewImage(_, data):
                    url = encode_data_uri(data, "image/jpeg")
                    yield encode_event({"images": [{"url": url, "content_type": "image/jpeg"}]})
                case _:
                    pass
        with collect_inline_files() as files:
            result = await final_result(service, job)
        async for part in stream_body(encode_event(result), files):
            yield part

    cancel_task = None if idempotency_key else BackgroundTask(service.cancel, job.id)
    headers = {REQUEST_ID_HEADER: job.id}
    return event_stream_response(events(), headers=headers, background=cancel_task)


@router.post("/run/{owner}/{app}", dependencies=NO_DEADLINE)
@router.post("/run/{owner}/{app}/{task}", dependencies=NO_DEADLINE)
async def run_app(
    given: Arguments,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    app: AppDep,
    idempotency_key: IdempotencyKey = None,
) -> JSONResponse:
    """Make images, and return the result when it is ready.

    The job is canceled when the client disconnects, unless the request has an `Idempotency-Key`.
    """
    job = await accept_job(service, key, incoming, app, given, idempotency_key)
    job = await wait_until_ended(service, job, incoming)
    if job.state not in ENDED:
        if idempotency_key is None:
            await service.cancel(job.id)
        raise ShutdownError(job.id)
    body = await asyncio.to_thread(job_result, service, job)
    return JSONResponse(body, headers={REQUEST_ID_HEADER: job.id})
