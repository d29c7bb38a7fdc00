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
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Response
from fastapi import Request as Incoming
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from overpaint.engine.worker import Shown
from overpaint.errors import PictureError, RequestError, near
from overpaint.request import LARGEST_SEED, Request
from overpaint.server.api.deps import LISTENS, Serves, Token, base_of
from overpaint.server.api.extended_fields import Word, fault_of, in_words, request_of, urls_of_ours
from overpaint.server.api.fields import Webhook, data_uri, fingerprint, read_beside
from overpaint.server.api.image_inputs import picture, urls_of
from overpaint.server.api.replicate.protocol import moment, progress_line
from overpaint.server.api.results import EVENT_STREAM, MEDIA_TYPES, awaited, found, link
from overpaint.server.api.route import telling
from overpaint.server.http.auth import Key
from overpaint.server.http.problems import RETRY, answer, refusals
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import Sources
from overpaint.server.store.jobs import ENDED, Job

OWNER = "fal-ai"
"""Whose apps, where none of ours is called like them, are the first of ours."""

SizeName = Literal[
    "square_hd", "square", "portrait_4_3", "portrait_16_9", "landscape_4_3", "landscape_16_9"
]
SIZES: dict[SizeName, tuple[int, int]] = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
"""Their names of sizes: width and height in pixels."""

TASKS: dict[str, tuple[str, ...]] = {
    "": (),
    "text-to-image": (),
    "image-to-image": ("image_url",),
    "inpainting": ("image_url", "mask_url"),
}
"""What may stand behind an app, and the fields that must then be given."""

STRENGTH = 0.95
"""What theirs is by default."""

PRIORITIES = {"normal": 0, "low": -1}
PREVIEW_EVERY = 5
"""Steps between the previews of a stream."""

CANCELED = 499
"""How the result of a request is answered that was canceled."""

BLOCKED = "content_policy_violation"
"""What it is called when every picture was flagged."""


class Side(BaseModel):
    """A size in pixels."""

    model_config = ConfigDict(extra="forbid")

    width: int
    height: int


class LoraWeight(BaseModel):
    """A LoRA."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    path: str = Field(
        min_length=1, max_length=100, description="`loras[].name`, in this server's catalogue."
    )
    scale: float = Field(default=1.0, ge=-10, le=10, description="`loras[].scale`.")


class Arguments(BaseModel):
    """The arguments of fal's SDXL apps, and which of ours they are.

    What is not named here is a field of `Request`.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    prompt: str = Field(max_length=100_000, description="`prompt`.")
    negative_prompt: str = Field(default="", max_length=100_000, description="`negative_prompt`.")
    image_url: str | None = Field(
        default=None, description="`image`: a URL, a data: URI, or an upload to /v1/files."
    )
    mask_url: str | None = Field(default=None, description="`mask`: likewise; white is repainted.")
    strength: float | None = Field(
        default=None, ge=0, le=1, description="`strength`; by default 0.95 with an image."
    )
    image_size: SizeName | Side | None = Field(
        default=None,
        description="`width` and `height`, in pixels or by a name; by default the model's own.",
    )
    num_inference_steps: int = Field(default=25, ge=1, le=1000, description="The same.")
    guidance_scale: float = Field(default=7.5, ge=0, le=50, description="The same.")
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED, description="`seed`.")
    num_images: int = Field(default=1, ge=1, le=64, description="The same.")
    scheduler: str | None = Field(default=None, max_length=200, description="`sampler`.")
    loras: list[LoraWeight] = Field(
        default_factory=list[LoraWeight], max_length=32, description="`loras`."
    )
    format: Literal["png", "jpeg"] = Field(default="png", description="Of the files.")
    sync_mode: bool = Field(
        default=False, description="Pictures come inside, as data: URIs, and not as links."
    )
    enable_safety_checker: bool = Field(
        default=True, description="False is refused where the server checks every picture."
    )
    safety_checker_version: Literal["v1", "v2"] = Field(
        default="v1", description="Accepted: the server has one, or none."
    )
    expand_prompt: Literal[False] = Field(
        default=False, description="Nothing expands prompts; true is refused."
    )


OWN = frozenset(Request.model_fields) - set(Arguments.model_fields) - {"image", "mask"}
"""Fields of `Request` that come under their own names."""


# Errors


def wrong(field: str, message: str, kind: str = "value_error") -> list[dict[str, Any]]:
    """What is wrong with a field, in their words."""
    return [{"loc": ["body", *_places(field)], "msg": message, "type": kind}]


def _places(field: str) -> list[str | int]:
    parts = (part for part in field.split(".") if part)
    return [int(part) if part.isdecimal() and len(part) < 10 else part for part in parts]


def answered(error: Exception) -> JSONResponse:
    """The answer to one of `problems.ANSWERED`."""
    status, title, detail, headers = answer(error)
    if isinstance(error, RequestError):
        detail = wrong(error.field, error.message)
    elif isinstance(error, PictureError) or (status == 422 and isinstance(detail, str)):
        status, detail = 422, wrong("", detail)
    elif status >= 500 and not isinstance(error, HTTPException):
        detail = f"{title}: {detail}"
    return JSONResponse({"detail": detail}, status, headers)


ERROR = {"type": "object", "required": ["detail"], "properties": {"detail": {}}}
"""The schema of an error in their words."""

router = APIRouter(
    prefix="/fal",
    tags=["fal"],
    route_class=telling(answered),
    responses=refusals(ERROR),
)


# From their words to ours


@dataclass(frozen=True)
class App:
    """What a URL names.

    Attributes:
        name: `OWNER/APP`.
        model: of this server.
        needs: fields that must be given.
    """

    name: str
    model: str
    needs: tuple[str, ...]


def app_of(owner: str, app: str, incoming: Incoming, service: Serves) -> App:
    """The app that a URL names.

    Raises:
        HTTPException: 404, there is none.
    """
    models, task = service.settings.models, incoming.path_params.get("task", "")
    if app not in models and owner != OWNER:
        raise HTTPException(404, f"there is no app {owner}/{app} here.{near(app, models)}")
    if task not in TASKS:
        raise HTTPException(404, f"{owner}/{app} has no {task!r} here.{near(task, TASKS)}")
    return App(f"{owner}/{app}", app if app in models else models[0], TASKS[task])


def to_request(
    given: Arguments, sources: Sources, needs: Sequence[str] = ()
) -> tuple[Request, dict[str, str]]:
    """What the inputs ask for, and by which of their words what of ours was given.

    Raises:
        RequestError: they contradict each other, are unknown, missing or out of range; in their
            words.
        PictureError: a picture cannot be read.
    """
    for name in needs:
        if getattr(given, name) is None:
            raise RequestError(name, "is needed here; give it.")
    if given.mask_url is not None and given.image_url is None:
        raise RequestError("mask_url", "there is no image to repaint a part of; give it too.")
    try:
        return request_of(given, _words(given, sources), OWN, sources)
    except RequestError as error:
        raise in_their_words(error, given) from None


def in_their_words(error: RequestError, given: Arguments) -> RequestError:
    """What is wrong with a LoRA or a webhook, by the field that named it."""
    head, _, rest = error.field.partition(".")
    if head == "webhook":
        field = "fal_webhook"
    elif head == "loras":
        index, _, part = rest.partition(".")
        listed = index.isdecimal() and int(index) < len(given.loras)
        field = f"loras.{index}.{'path' if part == 'name' else part}" if listed else "prompt"
    else:
        return error
    return RequestError(field, error.message)


def _words(given: Arguments, sources: Sources) -> list[Word]:
    """Fields of the dialect, and the fields and values of ours that they are."""
    same = ("prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "num_images")
    words: list[Word] = [(name, name, getattr(given, name)) for name in same]
    words += [(n, n, v) for n in ("seed", "strength") if (v := getattr(given, n)) is not None]
    if given.scheduler is not None:
        words.append(("scheduler", "sampler", given.scheduler))
    if given.image_size is not None:
        size = given.image_size
        sides = (size.width, size.height) if isinstance(size, Side) else SIZES[size]
        words += [("image_size", n, v) for n, v in zip(("width", "height"), sides, strict=True)]
    loras = [{"name": lora.path, "scale": lora.scale} for lora in given.loras]
    if loras:
        words.append(("loras", "loras", loras))
    if given.image_url is not None:
        words.append(("image_url", "image", picture("image_url", given.image_url, sources)))
        defaults: dict[str, Any] = {"steps": "truncate"}
        if given.strength is None:
            defaults["strength"] = STRENGTH
        if given.mask_url is not None:
            words.append(("mask_url", "mask", picture("mask_url", given.mask_url, sources)))
            defaults["fill"] = "original"
        chosen = given.model_extra or {}
        words += [(name, name, value) for name, value in defaults.items() if name not in chosen]
    return words


# From our words to theirs


def result_of(service: Service, job: Job) -> dict[str, Any]:
    """A job's pictures in their words, and of each its seed.

    Raises:
        HTTPException, RequestError: it has none; why.
    """
    if job.state == "canceled":
        raise HTTPException(CANCELED, f"request {job.id} was canceled.")
    if job.state == "failed" and job.flagged:
        raise HTTPException(422, wrong("prompt", job.error or "", BLOCKED))
    if job.state == "failed":
        raise fault_of(job) or HTTPException(500, wrong("", job.error or "it failed.", "error"))
    if job.state not in ENDED or job.result is None:
        raise HTTPException(400, "Request is still in progress")
    shown: list[dict[str, Any]] = []
    made = zip(job.result["files"], job.result["seeds"], job.result["sizes"], strict=True)
    for name, seed, (width, height) in made:
        kind = MEDIA_TYPES[name.rpartition(".")[2]]
        if job.origin["sync_mode"]:
            url = data_uri((service.files.results(job.id) / name).read_bytes(), kind)
        else:
            url = link(service, job, f"{job.origin['base']}/api/jobs/{job.id}/results", name)
        own = {"url": url, "content_type": kind, "width": width, "height": height}
        shown.append(own | {"seed": seed})
    return {
        "images": shown,
        "timings": {"inference": _seconds(job)},
        "seed": job.request["seed"],
        "has_nsfw_concepts": [False] * len(shown) + [True] * len(job.flagged),
        "prompt": job.origin["prompt"],
    }


def _seconds(job: Job) -> float:
    return (job.ended or 0.0) - (job.started or job.ended or 0.0)


def links_of(job: Job) -> dict[str, str]:
    """A job, and where what concerns it is."""
    own = f"{job.origin['base']}/fal/queue/{job.origin['app']}/requests/{job.id}"
    return {
        "request_id": job.id,
        "response_url": own,
        "status_url": f"{own}/status",
        "cancel_url": f"{own}/cancel",
    }


def status_of(service: Service, job: Job, logs: bool) -> dict[str, Any]:
    """Where a job is, in their words."""
    told = links_of(job) | {"logs": lines_of(service, job) if logs else None}
    if job.state == "queued":
        ahead = service.jobs.ahead(job.id)
        return told | {"status": "IN_QUEUE", "queue_position": ahead[0] if ahead else 0}
    if job.state not in ENDED:
        return told | {"status": "IN_PROGRESS"}
    told |= {"status": "COMPLETED", "metrics": {"inference_time": _seconds(job)}}
    if job.state == "failed":
        kind = BLOCKED if job.flagged else "bad_request" if fault_of(job) else "error"
        told |= {"error": job.error, "error_type": kind}
    elif job.state == "canceled":
        told |= {"error": "it was canceled.", "error_type": "client_cancelled"}
    return told


def lines_of(service: Service, job: Job) -> list[dict[str, Any]]:
    """What their logs say of a job: notices, and how far it is."""
    history = service.jobs.history(job.id)
    said = [(each.at, str(each.body["message"])) for each in history if each.kind == "notice"]
    if step := service.hub.now(job.id).step:
        said.append((time.time(), progress_line(step.done, step.total)))
    return [
        {"timestamp": moment(at), "level": "INFO", "source": "USER", "message": message}
        for at, message in said
    ]


async def told(service: Service, job: Job) -> dict[str, Any]:
    """What is posted to a webhook."""
    body: dict[str, Any] = {"request_id": job.id, "gateway_request_id": job.id}
    try:
        payload = await asyncio.to_thread(result_of, service, job)
    except (HTTPException, RequestError) as error:
        payload = json.loads(bytes(answered(error).body))
        return {**body, "status": "ERROR", "error": job.error or "canceled", "payload": payload}
    return {**body, "status": "OK", "payload": payload}


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
    body = await fingerprint(token, given, app.name, *app.needs)
    if job := await service.repeated(key, token, body):
        return job
    urls = urls_of({"image_url": given.image_url, "mask_url": given.mask_url})
    urls |= await read_beside(urls_of_ours, given, OWN)
    async with service.sources(key, urls) as sources:
        request, theirs = await read_beside(to_request, given, sources, app.needs)
    kind = "jpg" if given.format == "jpeg" else given.format
    origin = {
        "wire": "fal",
        "output": {"kind": kind, "preview_every": preview_every},
        "base": base_of(incoming),
        "app": app.name,
        "theirs": theirs,
        "prompt": given.prompt,
        "sync_mode": given.sync_mode,
        "checked": service.checked("enable_safety_checker", given.enable_safety_checker),
    }
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
        raise in_their_words(in_words(error, theirs), given) from None


@router.post("/queue/{owner}/{app}", dependencies=PLAIN)
@router.post("/queue/{owner}/{app}/{task}", dependencies=PLAIN)
async def submit(
    given: Arguments,
    incoming: Incoming,
    service: Serves,
    key: Key,
    app: Asked,
    fal_webhook: Annotated[Webhook, Query()] = None,
    priority: Priority = "normal",
    idempotency_key: Token = None,
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


async def found_here(name: str, service: Serves, key: Key) -> Job:
    """A request of a key that came by this dialect.

    Raises:
        HTTPException: 404, there is none.
    """
    job = await found(service, key, name)
    if job.origin.get("wire") != "fal":
        raise HTTPException(404, f"there is no request {name}.")
    return job


Found = Annotated[Job, Depends(found_here)]


@router.get(f"{ANY}/status", responses={202: {"description": "it has not ended yet"}})
async def status(job: Found, service: Serves, response: Response, logs: bool = False) -> Any:
    """Where a request is; 202 until it has ended."""
    response.status_code = 200 if job.state in ENDED else 202
    return await asyncio.to_thread(status_of, service, job, logs)


@router.get(
    f"{ANY}/status/stream",
    response_class=StreamingResponse,
    dependencies=LISTENS,
    responses=EVENT_STREAM,
)
async def follow(job: Found, service: Serves, logs: bool = False) -> StreamingResponse:
    """Where a request is, whenever that changes, until it has ended."""

    def look() -> dict[str, Any]:
        return status_of(service, service.jobs.get(job.id) or job, logs)

    async def told() -> AsyncGenerator[str]:
        last: dict[str, Any] | None = None
        async for _ in service.follow(job.id):
            now = await asyncio.to_thread(look)
            if now != last:
                yield event(now)
            last = now

    return events(told())


@router.get(ANY, responses={CANCELED: refusals(ERROR)[409] | {"description": "it was canceled"}})
async def result(job: Found, service: Serves) -> dict[str, Any]:
    """What came of a request; 400 while it goes on."""
    return await asyncio.to_thread(result_of, service, job)


@router.put(f"{ANY}/cancel", status_code=202, responses={400: {"description": "it has ended"}})
async def cancel(job: Found, service: Serves, response: Response) -> dict[str, str]:
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
    responses=EVENT_STREAM,
)
@router.post(
    "/run/{owner}/{app}/{task}/stream",
    dependencies=PLAIN,
    response_class=StreamingResponse,
    responses=EVENT_STREAM,
)
async def stream(
    given: Arguments,
    incoming: Incoming,
    service: Serves,
    key: Key,
    app: Asked,
    idempotency_key: Token = None,
) -> StreamingResponse:
    """Make pictures: previews as events, and then the result."""
    job = await accept(
        service, key, incoming, app, given, idempotency_key, preview_every=PREVIEW_EVERY
    )

    async def told() -> AsyncGenerator[str]:
        async for story in service.follow(job.id):
            match story:
                case Shown(_, data):
                    shown = {"url": data_uri(data, "image/jpeg"), "content_type": "image/jpeg"}
                    yield event({"images": [shown]})
                case _:
                    pass
        yield event(await ending(service, job))

    return events(told(), None if idempotency_key else BackgroundTask(service.cancel, job.id))


async def ending(service: Service, job: Job) -> dict[str, Any]:
    """What came of a job, or what is wrong: also that the server ended before it did."""
    now = await asyncio.to_thread(service.jobs.get, job.id) or job
    try:
        return await asyncio.to_thread(result_of, service, now)
    except (HTTPException, RequestError) as error:
        return json.loads(bytes(answered(error).body))


@router.post("/run/{owner}/{app}", dependencies=PLAIN)
@router.post("/run/{owner}/{app}/{task}", dependencies=PLAIN)
async def run(
    given: Arguments,
    incoming: Incoming,
    service: Serves,
    key: Key,
    app: Asked,
    idempotency_key: Token = None,
) -> JSONResponse:
    """Make pictures, and wait for them.

    They end with the client's connection: nobody could ask for them later. With an idempotency
    key somebody can.
    """
    job = await accept(service, key, incoming, app, given, idempotency_key)
    job = await awaited(service, job, incoming)
    if job.state not in ENDED:
        if idempotency_key is None:
            await service.cancel(job.id)
        message = f"this server ends before request {job.id} does; try again in a minute."
        raise HTTPException(503, message, {"Retry-After": str(RETRY)})
    made = await asyncio.to_thread(result_of, service, job)
    return JSONResponse(made, headers={"X-Fal-Request-Id": job.id})


def event(body: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body)}\n\n"


def events(told: AsyncGenerator[str], after: BackgroundTask | None = None) -> StreamingResponse:
    """Server-sent events as an answer."""
    headers = {"Cache-Control": "no-store"}
    return StreamingResponse(told, 200, headers, "text/event-stream", after)
