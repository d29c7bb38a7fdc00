"""The routes of Replicate's HTTP API, which Synexa's client uses too.

A model is `OWNER/NAME` with any owner and the name of a model of this server: `stability-ai/sdxl`
is the model that `--model sdxl` loads. A version id of Replicate's own models stands for the
server's first model. Synexa's client names a `model`, and sends its API key as `x-api-key`.
"""

import asyncio
import re
from collections.abc import AsyncGenerator
from datetime import datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi import Request as Incoming
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BeforeValidator

from overpaint.events import Step
from overpaint.server.api.deps import (
    LISTENER_LIMIT,
    IdempotencyKey,
    LastEventId,
    ServiceDep,
    ViewerDep,
    authorize_viewer,
    get_base_url,
)
from overpaint.server.api.event_stream import (
    encode_event,
    encode_text_event,
    event_stream_response,
)
from overpaint.server.api.fields import (
    hash_body,
    none_if_empty,
    parse_preferences,
    read_upload,
)
from overpaint.server.api.ignored_fields import report_ignored, report_ignored_fields
from overpaint.server.api.openai.protocol import model_list
from overpaint.server.api.replicate.inputs import accept_job
from overpaint.server.api.replicate.protocol import (
    MODEL_OWNER,
    Body,
    VersionBody,
    get_model_or_404,
    image_urls,
    make_page,
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
    timestamp_seconds,
)
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.problems import PROBLEM_RESPONSES, error_response
from overpaint.server.http.threads import run_in_write_thread
from overpaint.server.jobs.service import Service
from overpaint.server.store.job_rows import ENDED, HistoryEntry, Job
from overpaint.server.store.origins import ReplicateOrigin
from overpaint.server.store.outbox import WEBHOOK_EVENTS

router = APIRouter(
    prefix="/v1",
    tags=["Replicate"],
    route_class=make_route_class(error_response),
    responses=PROBLEM_RESPONSES,
)

Prefer = Annotated[str | None, Header()]

WAIT_SECONDS = re.compile(r"\d{1,9}(?:\.\d*)?")
"""The value of `Prefer: wait=SECONDS`."""

FILE_CLIENT = re.compile(r"replicate-(python|javascript)/|\w*(Replicate|ModuleClient)/Python")
"""`User-Agent` of Replicate's own clients. Over http: they make files of data: URIs only."""

MAX_WAIT_S = 55
"""Longest wait for `Prefer: wait`. Clients time out after a minute, and some then repeat the
request."""

PAGE_SIZE = 100
"""Predictions in one page of a list."""


# Creating predictions


def wait_seconds(prefer: str | None) -> float:
    """Return how long `Prefer: wait=SECONDS` asks to wait, at most `MAX_WAIT_S`."""
    value = parse_preferences(prefer).get("wait")
    if value is None:
        return 0.0
    return min(MAX_WAIT_S, float(value) if WAIT_SECONDS.fullmatch(value) else MAX_WAIT_S)


def wants_data_uris(incoming: Incoming) -> bool:
    """Return whether an answer contains images as data: URIs instead of links.

    `Prefer: output=url` and `Prefer: output=data-uri` choose. Without them, only Replicate's own
    clients get data: URIs, and only from a server that they reach by http:, because they make files
    of `https:` and `data:` alone. Other programs download from links.
    """
    wish = parse_preferences(incoming.headers.get("prefer")).get("output", "")
    if wish:
        return wish.startswith("data")
    is_file_client = FILE_CLIENT.match(incoming.headers.get("user-agent", "")) is not None
    return is_file_client and incoming.url.scheme != "https"


def report_deadline(cancel_after: Annotated[str | None, Header()] = None) -> None:
    """Report a deadline, because the server does not enforce deadlines."""
    if cancel_after is not None:
        report_ignored("Cancel-After")


async def accept_prediction(
    service: Service, key: str, model: str, base_url: str, body: Body, token: str | None
) -> Job:
    """Accept a prediction, or return the one that the same idempotency key made before."""
    report_ignored_fields(body)
    return await accept_job(
        service,
        body.input,
        origin=ReplicateOrigin(base_url=base_url),
        model=model,
        key=key,
        webhook=body.webhook,
        webhook_events=body.webhook_events_filter or WEBHOOK_EVENTS,
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
        service, job, get_base_url(incoming), inline=wants_data_uris(incoming)
    )
    if job.state not in ENDED:
        view["status"] = "starting"
    response.headers["Location"] = view["urls"]["get"]
    return view


@router.post("/predictions", status_code=201, dependencies=[Depends(report_deadline)])
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
    model = resolve_model(service, body.model_name)
    if body.version and body.model:
        report_ignored("model")
    base_url = get_base_url(incoming)
    job = await accept_prediction(service, key, model, base_url, body, idempotency_key)
    return await describe_new_prediction(service, job, incoming, response, prefer)


@router.post(
    "/models/{owner}/{name}/predictions",
    status_code=201,
    dependencies=[Depends(report_deadline)],
)
@router.post(
    "/deployments/{owner}/{name}/predictions",
    status_code=201,
    dependencies=[Depends(report_deadline)],
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
    """Create a prediction of a model or of a deployment, which has the name of its model.

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
    created_after: Annotated[datetime | None, BeforeValidator(none_if_empty), Query()] = None,
    created_before: Annotated[datetime | None, BeforeValidator(none_if_empty), Query()] = None,
) -> dict[str, Any]:
    """List predictions, newest first, 100 per page."""
    since, until = timestamp_seconds(created_after), timestamp_seconds(created_before)
    last = await get_job_or_404(service, key, cursor) if cursor else None
    most = service.settings.limits.listed_chars

    def read() -> tuple[list[Job], bool]:
        page = partial(service.jobs.list_page, key, since=since, until=until)
        jobs = page(PAGE_SIZE, before=last, max_chars=most)
        return jobs, bool(jobs) and bool(page(1, before=jobs[-1]))

    jobs, has_more = await asyncio.to_thread(read)
    base_url = get_base_url(incoming)
    next_page = None
    if has_more:
        query = incoming.url.include_query_params(cursor=jobs[-1].id).query
        next_page = f"{base_url}/v1/predictions?{query}"
    results = [await prediction_view(service, job, base_url) for job in jobs]
    return make_page(results, next_page)


@router.get("/predictions/{name}")
async def get_prediction(
    name: str, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """Return a prediction."""
    job = await get_job_or_404(service, key, name)
    inline = wants_data_uris(incoming)
    return await prediction_view(service, job, get_base_url(incoming), inline=inline)


@router.post("/predictions/{name}/cancel")
async def cancel_prediction(
    name: str, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """Cancel a prediction."""
    job = await get_job_or_404(service, key, name)
    job = await service.cancel(name) or job
    inline = wants_data_uris(incoming)
    return await prediction_view(service, job, get_base_url(incoming), inline=inline)


@router.get(
    "/predictions/{name}/output/{file}", response_class=FileResponse, responses=IMAGE_RESPONSES
)
async def get_output(name: str, file: str, incoming: Incoming, viewer: ViewerDep) -> FileResponse:
    """Download an image of a prediction."""
    return await result_file_response(incoming, viewer, name, file)


@router.get(
    "/predictions/{name}/output/{expires}/{signature}/{file}",
    response_class=FileResponse,
    responses=IMAGE_RESPONSES,
)
async def get_signed_output(
    name: str, expires: int, signature: str, file: str, incoming: Incoming
) -> FileResponse:
    """Download an image of a prediction by a signed link, without a key."""
    viewer = await authorize_viewer(incoming, name, file, expires, signature)
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
    return make_page(results) | model_list(service)


@router.api_route("/models", methods=["QUERY"], include_in_schema=False)
async def search_models(incoming: Incoming, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """List the models whose name contains the body's text."""
    body = (await read_upload(incoming)).decode(errors="replace")
    text = body.strip().strip('"').lower()  # The JavaScript client sends the text as JSON.
    found = [name for name in service.settings.models if text in name.lower()]
    base_url = get_base_url(incoming)
    results = [model_view(model, MODEL_OWNER, base_url) for model in found]
    return make_page(results)


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
    return make_page([view])


@router.get("/models/{owner}/{name}/versions/{version_id}")
async def get_version(
    owner: str, name: str, version_id: str, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """Describe the version of a model. Every version id returns the same version."""
    return version_view(get_model_or_404(service, owner, name), version_id)


# Webhooks


@router.get("/webhooks/default/secret")
async def get_webhook_secret(service: ServiceDep, key: KeyDep) -> dict[str, str]:
    """Return the secret that signs this API key's webhooks (Standard Webhooks)."""
    return {"key": await run_in_write_thread(service.outbox.get_secret, key)}
