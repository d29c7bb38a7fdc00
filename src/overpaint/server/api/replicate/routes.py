"""The routes of Replicate's HTTP API, which Synexa's client uses too.

A model is `OWNER/NAME` with any owner and the name of a model of this server: `stability-ai/sdxl`
is the model that `--model sdxl` loads. A version id of Replicate's own models stands for the
server's first model. Synexa's client names a `model`, and sends its API key as `x-api-key`.
"""

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Header, HTTPException, Query, Response, UploadFile
from fastapi import Request as Incoming
from fastapi.responses import FileResponse, StreamingResponse

from overpaint.errors import RequestError
from overpaint.events import Step
from overpaint.server.api.deps import (
    LISTENER_LIMIT,
    IdempotencyKey,
    LastEventId,
    ServiceDep,
    ViewerDep,
    get_base_url,
)
from overpaint.server.api.event_stream import (
    encode_event,
    encode_text_event,
    event_stream_response,
)
from overpaint.server.api.fields import get_upload_or_404, hash_body
from overpaint.server.api.openai.protocol import model_list
from overpaint.server.api.replicate.inputs import accept_job
from overpaint.server.api.replicate.protocol import (
    MODEL_OWNER,
    Body,
    VersionBody,
    file_view,
    get_model_or_404,
    image_urls,
    model_view,
    prediction_view,
    resolve_model,
    version_view,
)
from overpaint.server.api.results import (
    EVENT_STREAM_RESPONSES,
    IMAGE_RESPONSES,
    format_progress,
    get_job_or_404,
    result_file_response,
)
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.problems import PROBLEM_RESPONSES, error_response
from overpaint.server.http.threads import run_in_write_thread
from overpaint.server.jobs.service import Service
from overpaint.server.store.jobs import ENDED, HistoryEntry, Job
from overpaint.server.store.origins import ReplicateOrigin

router = APIRouter(
    prefix="/v1",
    tags=["Replicate"],
    route_class=make_route_class(error_response),
    responses=PROBLEM_RESPONSES,
)

Prefer = Annotated[str | None, Header()]

WAIT_PREFERENCE = re.compile(r"wait(?:=(\d+))?")

MAX_WAIT_S = 55
"""Longest wait for `Prefer: wait`. Clients time out after a minute, and some then repeat the
request."""

PAGE_SIZE = 100
"""Predictions in one page of a list."""


# Creating predictions


def wait_seconds(prefer: str | None) -> float:
    """Return how long `Prefer: wait=SECONDS` asks to wait, at most `MAX_WAIT_S`."""
    for part in (prefer or "").split(","):
        if match := WAIT_PREFERENCE.fullmatch(part.strip()):
            return min(MAX_WAIT_S, float(match[1] or MAX_WAIT_S))
    return 0.0


def accepts_data_uris(incoming: Incoming) -> bool:
    """Return whether the client reads data: URIs. Synexa's client downloads only from links."""
    return "x-api-key" not in incoming.headers


def reject_deadline(cancel_after: Annotated[str | None, Header()] = None) -> None:
    """Reject a request with a deadline, because the server does not enforce deadlines.

    Raises:
        RequestError: the request has a deadline.
    """
    if cancel_after is not None:
        raise RequestError(
            "Cancel-After",
            "the server does not enforce deadlines; leave the header out.",
        )


async def accept_prediction(
    service: Service, key: str, model: str, base_url: str, body: Body, token: str | None
) -> Job:
    """Accept a prediction, or return the one that the same idempotency key made before."""
    return await accept_job(
        service,
        body.input,
        origin=ReplicateOrigin(base_url=base_url),
        model=model,
        key=key,
        webhook=body.webhook,
        webhook_events=body.webhook_events_filter or (),
        token=token,
        body=await hash_body(token, body, model),
    )


async def describe_new_prediction(
    service: Service, job: Job, incoming: Incoming, response: Response, prefer: str | None
) -> dict[str, Any]:
    """Return a new prediction, after the wait that the client prefers.

    The status of a prediction that has not ended is "starting", because the client takes every
    other status for the end.
    """
    if seconds := wait_seconds(prefer):
        job = await service.ended(job.id, seconds) or job
    view = await prediction_view(
        service, job, get_base_url(incoming), inline=accepts_data_uris(incoming)
    )
    if job.state not in ENDED:
        view["status"] = "starting"
    response.headers["Location"] = view["urls"]["get"]
    return view


@router.post("/predictions", status_code=201, dependencies=[Depends(reject_deadline)])
async def create_prediction(
    body: VersionBody,
    incoming: Incoming,
    response: Response,
    service: ServiceDep,
    key: KeyDep,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> dict[str, Any]:
    """Create a prediction of a version.

    `Prefer: wait=SECONDS` waits for the prediction to end, for up to 55 seconds.
    """
    model = resolve_model(service, body.version)
    base_url = get_base_url(incoming)
    job = await accept_prediction(service, key, model, base_url, body, idempotency_key)
    return await describe_new_prediction(service, job, incoming, response, prefer)


@router.post(
    "/models/{owner}/{name}/predictions",
    status_code=201,
    dependencies=[Depends(reject_deadline)],
)
async def create_model_prediction(
    owner: str,
    name: str,
    body: Body,
    incoming: Incoming,
    response: Response,
    service: ServiceDep,
    key: KeyDep,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> dict[str, Any]:
    """Create a prediction of a model.

    `Prefer: wait=SECONDS` waits for the prediction to end, for up to 55 seconds.
    """
    model = get_model_or_404(service, owner, name)
    base_url = get_base_url(incoming)
    job = await accept_prediction(service, key, model, base_url, body, idempotency_key)
    return await describe_new_prediction(service, job, incoming, response, prefer)


# Reading predictions


@router.get("/predictions")
async def list_predictions(
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
    created_after: Annotated[str | None, Query()] = None,
    created_before: Annotated[str | None, Query()] = None,
) -> dict[str, Any]:
    """List predictions, newest first, 100 per page."""
    for field, value in (("created_after", created_after), ("created_before", created_before)):
        if value is not None:
            raise RequestError(
                field, "the list cannot be filtered by time; it is sorted newest first."
            )
    last = await get_job_or_404(service, key, cursor) if cursor else None
    most = service.settings.limits.listed_chars
    jobs = await asyncio.to_thread(
        lambda: service.jobs.list_page(key, PAGE_SIZE, before=last, max_chars=most)
    )
    base_url = get_base_url(incoming)
    more = jobs and await asyncio.to_thread(lambda: service.jobs.list_page(key, 1, before=jobs[-1]))
    next_page = f"{base_url}/v1/predictions?cursor={jobs[-1].id}" if more else None
    results = [await prediction_view(service, job, base_url) for job in jobs]
    return {"previous": None, "next": next_page, "results": results}


@router.get("/predictions/{name}")
async def get_prediction(
    name: str, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """Return a prediction."""
    job = await get_job_or_404(service, key, name)
    inline = accepts_data_uris(incoming)
    return await prediction_view(service, job, get_base_url(incoming), inline=inline)


@router.post("/predictions/{name}/cancel")
async def cancel_prediction(
    name: str, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """Cancel a prediction."""
    job = await get_job_or_404(service, key, name)
    job = await service.cancel(name) or job
    return await prediction_view(service, job, get_base_url(incoming))


@router.get(
    "/predictions/{name}/output/{file}", response_class=FileResponse, responses=IMAGE_RESPONSES
)
async def get_output(name: str, file: str, incoming: Incoming, viewer: ViewerDep) -> FileResponse:
    """Download an image of a prediction."""
    return await result_file_response(incoming, viewer, name, file)


@router.get(
    "/predictions/{name}/stream",
    response_class=StreamingResponse,
    dependencies=LISTENER_LIMIT,
    responses=EVENT_STREAM_RESPONSES,
)
async def stream_prediction(
    name: str,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    last_event_id: LastEventId = 0,
) -> StreamingResponse:
    """Stream a prediction: `logs`, `output` for each image, `error` and `done` events."""
    await get_job_or_404(service, key, name)
    events = prediction_events(service, name, get_base_url(incoming), last_event_id)
    return event_stream_response(events)


async def prediction_events(
    service: Service, name: str, base_url: str, after: int
) -> AsyncGenerator[bytes]:
    """Yield the events of a prediction until it ends.

    Every event has an id, because Replicate's client requires one.

    Args:
        service: the running server.
        name: id of the prediction.
        base_url: base URL of links to images.
        after: number of the stored event to continue after; 0 for all.
    """
    number = after
    async for event in service.follow(name, after):
        match event:
            case HistoryEntry(number, _, "notice", body):
                yield encode_text_event(f"{body['message']}\n", "logs", number)
            case HistoryEntry(number, _, "failed", body):
                yield encode_event({"detail": body.get("error")}, "error", number)
                yield encode_event({"reason": "error"}, "done", number)
            case HistoryEntry(number, _, "canceled", _):
                yield encode_event({"reason": "canceled"}, "done", number)
            case HistoryEntry(number, _, "succeeded", _):
                job = await asyncio.to_thread(service.jobs.get, name)
                for url in (image_urls(service, job, base_url) if job else None) or ():
                    yield encode_text_event(url, "output", number)
                yield encode_event({}, "done", number)
            case Step(done, total):
                yield encode_text_event(f"{format_progress(done, total)}\n", "logs", number)
            case _:
                pass


# Models


@router.get("/models")
async def list_models(incoming: Incoming, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """List the models of this server, in the formats of both Replicate and OpenAI."""
    base_url = get_base_url(incoming)
    results = [model_view(model, MODEL_OWNER, base_url) for model in service.settings.models]
    return {"previous": None, "next": None, "results": results, **model_list(service)}


@router.get("/models/{owner}/{name}")
async def get_model(
    owner: str, name: str, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """Describe a model."""
    return model_view(get_model_or_404(service, owner, name), owner, get_base_url(incoming))


@router.get("/models/{owner}/{name}/versions")
async def list_versions(owner: str, name: str, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """List the versions of a model; every model has one."""
    view = version_view(get_model_or_404(service, owner, name))
    return {"previous": None, "next": None, "results": [view]}


@router.get("/models/{owner}/{name}/versions/{version_id}")
async def get_version(
    owner: str, name: str, version_id: str, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """Describe the version of a model. Every version id returns the same version."""
    return version_view(get_model_or_404(service, owner, name), version_id)


# Webhooks and files


@router.get("/webhooks/default/secret")
async def get_webhook_secret(service: ServiceDep, key: KeyDep) -> dict[str, str]:
    """Return the secret that signs this API key's webhooks (Standard Webhooks)."""
    return {"key": await run_in_write_thread(service.outbox.get_secret, key)}


@router.post("/files", status_code=201)
async def create_file(
    content: UploadFile,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    filename: Annotated[str, Form(max_length=1000)] = "",
    media_type: Annotated[str, Form(alias="type", max_length=200)] = "",
) -> dict[str, Any]:
    """Upload an image."""
    if any(field.startswith("metadata") for field in await incoming.form()):
        raise RequestError("metadata", "the server does not store metadata; leave it out.")
    limit = service.settings.limits.upload_bytes
    data = await content.read(limit + 1)
    if len(data) > limit:
        raise HTTPException(413, f"The file is larger than {limit:,} bytes.")
    name = await run_in_write_thread(service.files.put, data)
    view = file_view(service, name, data, get_base_url(incoming))
    return view | {
        "name": filename or content.filename or name,
        "content_type": media_type or content.content_type or view["content_type"],
    }


@router.get("/files/{name}")
async def get_file(
    name: str, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """Describe an upload."""
    data = await get_upload_or_404(service, name)
    return file_view(service, name, data, get_base_url(incoming))
