"""Replicate's HTTP API, as its clients speak it.

A model here is `OWNER/NAME` with any owner and the name of a model of this server, so that
`stability-ai/sdxl` is what `--model sdxl` loaded. A version of Replicate's stands for the server's
first model. Synexa's client speaks a part of the same: it names a `model`, and gives its key as
`x-api-key`.
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
from overpaint.server.api.openai import protocol as openai
from overpaint.server.api.replicate.inputs import accept
from overpaint.server.api.replicate.protocol import (
    OWNER,
    Body,
    VersionBody,
    described,
    described_version,
    file_view,
    known,
    links,
    model_of,
    prediction,
)
from overpaint.server.api.results import (
    EVENT_STREAM_RESPONSES,
    IMAGE_RESPONSES,
    get_job_or_404,
    progress_line,
    result_file_response,
)
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.problems import PROBLEM_RESPONSES, error_response
from overpaint.server.jobs.service import Service
from overpaint.server.store.jobs import ENDED, Job, Said
from overpaint.server.store.origins import ReplicateOrigin

router = APIRouter(
    prefix="/v1",
    tags=["Replicate"],
    route_class=make_route_class(error_response),
    responses=PROBLEM_RESPONSES,
)

Prefer = Annotated[str | None, Header()]
WAIT = re.compile(r"wait(?:=(\d+))?")
LONGEST_WAIT = 55
"""Seconds; the clients give up after a minute, and some then ask for the same once more."""


def seconds_of(prefer: str | None) -> float:
    """How long `Prefer: wait` asks to wait, at most `LONGEST_WAIT`."""
    for part in (prefer or "").split(","):
        if asked := WAIT.fullmatch(part.strip()):
            return min(LONGEST_WAIT, float(asked[1] or LONGEST_WAIT))
    return 0.0


def takes_data(incoming: Incoming) -> bool:
    """Whether the client reads data: URIs; Synexa's, told by its header, fetches links alone."""
    return "x-api-key" not in incoming.headers


async def make(
    service: Service, key: str, model: str, base: str, body: Body, token: str | None
) -> Job:
    """Accept a prediction."""
    return await accept(
        service,
        body.input,
        origin=ReplicateOrigin(base_url=base),
        model=model,
        key=key,
        webhook=body.webhook,
        webhook_events=body.webhook_events_filter or (),
        token=token,
        body=await hash_body(token, body, model),
    )


def no_deadline(cancel_after: Annotated[str | None, Header()] = None) -> None:
    """Refuse a deadline, which nothing here would keep.

    Raises:
        RequestError: one was given.
    """
    if cancel_after is not None:
        raise RequestError("Cancel-After", "there are no deadlines here; cancel the prediction.")


async def answered(
    service: Service, job: Job, incoming: Incoming, response: Response, prefer: str | None
) -> dict[str, Any]:
    """A new prediction, after as long as the client wants to wait.

    One that is not done by then is "starting": the client takes any other status for an end.
    """
    if seconds := seconds_of(prefer):
        job = await service.ended(job.id, seconds) or job
    shown = await prediction(service, job, get_base_url(incoming), inside=takes_data(incoming))
    if job.state not in ENDED:
        shown["status"] = "starting"
    response.headers["Location"] = shown["urls"]["get"]
    return shown


@router.post("/predictions", status_code=201, dependencies=[Depends(no_deadline)])
async def create(
    body: VersionBody,
    incoming: Incoming,
    response: Response,
    service: ServiceDep,
    key: KeyDep,
    prefer: Prefer = None,
    idempotency_key: IdempotencyKey = None,
) -> dict[str, Any]:
    """Make a prediction of a version."""
    job = await make(
        service,
        key,
        model_of(service, body.version),
        get_base_url(incoming),
        body,
        idempotency_key,
    )
    return await answered(service, job, incoming, response, prefer)


@router.post(
    "/models/{owner}/{name}/predictions", status_code=201, dependencies=[Depends(no_deadline)]
)
async def create_of_model(
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
    """Make a prediction of a model."""
    model = known(service, owner, name)
    job = await make(service, key, model, get_base_url(incoming), body, idempotency_key)
    return await answered(service, job, incoming, response, prefer)


@router.get("/predictions")
async def listing(
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
    created_after: Annotated[str | None, Query()] = None,
    created_before: Annotated[str | None, Query()] = None,
) -> dict[str, Any]:
    """Predictions, newest first, a hundred at a time."""
    for field, given in (("created_after", created_after), ("created_before", created_before)):
        if given is not None:
            raise RequestError(field, "predictions are listed newest first; stop at that time.")
    last = await get_job_or_404(service, key, cursor) if cursor else None
    jobs = await asyncio.to_thread(lambda: service.jobs.page(key, 100, before=last))
    base = get_base_url(incoming)
    more = f"{base}/v1/predictions?cursor={jobs[-1].id}" if len(jobs) == 100 else None
    results = [await prediction(service, job, base) for job in jobs]
    return {"previous": None, "next": more, "results": results}


@router.get("/predictions/{name}")
async def read(name: str, incoming: Incoming, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """A prediction."""
    job = await get_job_or_404(service, key, name)
    return await prediction(service, job, get_base_url(incoming), inside=takes_data(incoming))


@router.post("/predictions/{name}/cancel")
async def cancel(name: str, incoming: Incoming, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """Ask for a prediction's end."""
    await get_job_or_404(service, key, name)
    job = await service.cancel(name)
    assert job is not None
    return await prediction(service, job, get_base_url(incoming))


@router.get(
    "/predictions/{name}/output/{file}", response_class=FileResponse, responses=IMAGE_RESPONSES
)
async def output(name: str, file: str, incoming: Incoming, viewer: ViewerDep) -> FileResponse:
    """A picture of a prediction."""
    return await result_file_response(incoming, viewer, name, file)


@router.get(
    "/predictions/{name}/stream",
    response_class=StreamingResponse,
    dependencies=LISTENER_LIMIT,
    responses=EVENT_STREAM_RESPONSES,
)
async def stream(
    name: str,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    last_event_id: LastEventId = 0,
) -> StreamingResponse:
    """A prediction as server-sent events: `logs`, `output` for each picture, `error`, `done`."""
    await get_job_or_404(service, key, name)
    base = get_base_url(incoming)

    async def told() -> AsyncGenerator[bytes]:
        number = last_event_id
        async for story in service.follow(name, last_event_id):
            match story:
                case Said(number, _, "notice", body):
                    yield encode_text_event(f"{body['message']}\n", "logs", number)
                case Said(number, _, "failed", body):
                    yield encode_event({"detail": body.get("error")}, "error", number)
                    yield encode_event({"reason": "error"}, "done", number)
                case Said(number, _, "canceled", _):
                    yield encode_event({"reason": "canceled"}, "done", number)
                case Said(number, _, "succeeded", _):
                    job = await asyncio.to_thread(service.jobs.get, name)
                    assert job is not None
                    for shown in links(service, job, base) or ():
                        yield encode_text_event(shown, "output", number)
                    yield encode_event({}, "done", number)
                case Step(done, total):
                    yield encode_text_event(f"{progress_line(done, total)}\n", "logs", number)
                case _:
                    pass

    return event_stream_response(told())


@router.get("/models")
async def models(incoming: Incoming, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """All models, for OpenAI's clients too, which ask here."""
    base = get_base_url(incoming)
    results = [described(model, OWNER, base) for model in service.settings.models]
    return {"previous": None, "next": None, "results": results, **openai.listing(service)}


@router.get("/models/{owner}/{name}")
async def model(
    owner: str, name: str, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """A model."""
    return described(known(service, owner, name), owner, get_base_url(incoming))


@router.get("/models/{owner}/{name}/versions")
async def versions(owner: str, name: str, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """A model's versions, of which there is one."""
    one = described_version(known(service, owner, name))
    return {"previous": None, "next": None, "results": [one]}


@router.get("/models/{owner}/{name}/versions/{version_id}")
async def one_version(
    owner: str, name: str, version_id: str, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """A version: whatever its id, it is the one that there is."""
    return described_version(known(service, owner, name), version_id)


@router.get("/webhooks/default/secret")
async def secret(service: ServiceDep, key: KeyDep) -> dict[str, str]:
    """What your webhooks are signed with, by Standard Webhooks."""
    return {"key": await asyncio.to_thread(service.outbox.secret, key)}


@router.post("/files", status_code=201)
async def put_file(
    content: UploadFile,
    incoming: Incoming,
    service: ServiceDep,
    key: KeyDep,
    filename: Annotated[str, Form(max_length=1000)] = "",
    media_type: Annotated[str, Form(alias="type", max_length=200)] = "",
) -> dict[str, Any]:
    """Upload a picture."""
    if any(field.startswith("metadata") for field in await incoming.form()):
        raise RequestError("metadata", "is not kept beside a file; leave it out.")
    limit = service.settings.limits.upload_bytes
    data = await content.read(limit + 1)
    if len(data) > limit:
        raise HTTPException(413, f"the file is larger than {limit:,} bytes.")
    name = await asyncio.to_thread(service.files.put, data)
    shown = file_view(service, name, data, get_base_url(incoming))
    return shown | {
        "name": filename or content.filename or name,
        "content_type": media_type or content.content_type or shown["content_type"],
    }


@router.get("/files/{name}")
async def read_file(
    name: str, incoming: Incoming, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """An upload."""
    data = await get_upload_or_404(service, name)
    return file_view(service, name, data, get_base_url(incoming))
