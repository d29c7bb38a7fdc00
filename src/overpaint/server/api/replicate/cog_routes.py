"""The routes of cog's own server (github.com/replicate/cog), as its clients speak to a container.

| | |
|---|---|
| `GET /` | where all is |
| `GET /health-check` | always 200: STARTING, READY, BUSY, SETUP_FAILED, DEFUNCT |
| `POST /predictions` | waits for the end; with `Prefer: respond-async` 202, at once |
| `PUT /predictions/{id}` | the same by the client's id: sent twice it is one prediction |
| `POST /predictions/{id}/cancel` | ask for its end |

A container has one model: here it is the server's first. What is wrong is told as cog tells it.
"""

import asyncio
import hashlib
from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Response
from fastapi import Path as InPath
from fastapi import Request as Incoming
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from overpaint.errors import IdempotencyError, ModelError, PictureError, RequestError
from overpaint.server.api.deps import ServiceDep, get_base_url
from overpaint.server.api.fields import WebhookEvent, WebhookUrl, hash_body
from overpaint.server.api.replicate.inputs import Input, accept
from overpaint.server.api.replicate.protocol import COG, Output, pictures, state_of
from overpaint.server.api.results import wait_until_ended
from overpaint.server.api.route import make_route_class
from overpaint.server.http.auth import KeyDep
from overpaint.server.http.problems import (
    PROBLEM_RESPONSES,
    describe_error,
    error_responses,
    problem_response,
)
from overpaint.server.jobs.service import Service
from overpaint.server.store.jobs import ENDED, Job
from overpaint.server.store.origins import CogOrigin
from overpaint.server.store.outbox import EVENTS

Id = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,256}$")]
IdInPath = Annotated[str, InPath(pattern="^[A-Za-z0-9_-]{1,256}$")]


def error_response(error: Exception) -> Response:
    """Make the response to one of `HANDLED_ERRORS`, in cog's format."""
    match error:
        case RequestValidationError():
            _, _, wrong, _ = describe_error(error)
        case RequestError():
            wrong = [_wrong(error.message, "input", error.field)]
        case PictureError() | ModelError():
            wrong = [_wrong(str(error), "input")]
        case IdempotencyError():
            wrong = [_wrong("came before, with another body; take a new one.", "id")]
        case _:
            return problem_response(*describe_error(error))
    return JSONResponse({"detail": wrong}, 422)


def _wrong(message: str, *place: str) -> dict[str, Any]:
    return {"loc": ["body", *place], "msg": message, "type": "value_error"}


class PredictionRequest(BaseModel):
    """A prediction to be made.

    Attributes:
        input: of the model.
        id: the client's, by which it can be canceled; by default ours.
        created_at: when the client made it; shown again.
        webhook: where to post what happens to it.
        webhook_events_filter: what of it.
    """

    model_config = ConfigDict(extra="forbid")

    input: Input | None = None
    id: Id | None = None
    created_at: datetime | None = None
    webhook: WebhookUrl = None
    webhook_events_filter: tuple[WebhookEvent, ...] | None = EVENTS


class PredictionResponse(BaseModel):
    """A prediction as it is now; its pictures are data: URIs."""

    id: str
    version: str
    input: dict[str, Any]
    output: Output | None
    logs: str
    error: str | None
    status: str
    created_at: str
    started_at: str | None
    completed_at: str | None
    metrics: dict[str, float]


WRONG = {
    "type": "object",
    "required": ["detail"],
    "properties": {
        "detail": {
            "type": "array",
            "items": {"type": "object", "required": ["loc", "msg", "type"]},
        }
    },
}
"""The schema of what is wrong with a request; anything else is told as a problem."""

router = APIRouter(
    tags=["cog"],
    route_class=make_route_class(error_response),
    responses=PROBLEM_RESPONSES
    | {
        202: {"model": PredictionResponse, "description": "it has not ended yet"},
        406: {**PROBLEM_RESPONSES[415], "description": "the answer would be of another kind"},
        422: error_responses(WRONG)[422],
    },
)

Prefer = Annotated[str, Header()]


async def prediction(service: Service, job: Job) -> dict[str, Any]:
    """A job in cog's words."""

    def look() -> dict[str, Any]:
        state = state_of(service, job, service.jobs.history(job.id))
        return {**state, "output": pictures(service, job)}

    shown = await asyncio.to_thread(look)
    own = {"id": job.id, "created_at": shown["created_at"]}
    return {**shown, **own, **job.origin_as(CogOrigin).client_fields}


webhook_payload = prediction
"""What is posted to a webhook."""


def token_of(name: str) -> str:
    """What the store knows a client's id by: other wire formats' idempotency keys are others."""
    return f"cog:{hashlib.sha256(name.encode()).hexdigest()}"


async def predict(
    service: Service,
    key: str,
    incoming: Incoming,
    response: Response,
    body: PredictionRequest,
    prefer: str,
) -> dict[str, Any]:
    """Accept a prediction, and wait for its end unless that was not wanted.

    A client that goes away ends the waiting, and not the prediction; so does a server that ends.
    """
    if "text/event-stream" in incoming.headers.get("accept", ""):
        raise HTTPException(406, "this model does not stream; ask for application/json.")
    token = token_of(body.id) if body.id else None
    shown = body.model_dump(mode="json", include={"id", "created_at"}, exclude_none=True)
    job = await accept(
        service,
        body.input or Input(),
        origin=CogOrigin(base_url=get_base_url(incoming), client_fields=shown),
        key=key,
        webhook=body.webhook,
        webhook_events=body.webhook_events_filter or (),
        token=token,
        body=await hash_body(token, body),
    )
    if "respond-async" in [part.strip() for part in prefer.split(",")]:
        response.status_code = 202
        return await prediction(service, job)
    job = await wait_until_ended(service, job, incoming)
    if job.state not in ENDED:
        response.status_code = 202
    return await prediction(service, job)


@router.get("/")
async def index() -> dict[str, str]:
    """Where all is."""
    return {
        "cog_version": COG,
        "overpaint_version": version("overpaint"),
        "docs_url": "/docs",
        "openapi_url": "/openapi.json",
        "healthcheck_url": "/health-check",
        "predictions_url": "/predictions",
        "predictions_idempotent_url": "/predictions/{prediction_id}",
        "predictions_cancel_url": "/predictions/{prediction_id}/cancel",
    }


@router.get("/health-check")
async def health_check(service: ServiceDep) -> dict[str, Any]:
    """How the model is; always 200.

    READY and BUSY accept predictions, which then wait: BUSY has as many under way as it runs at
    once. STARTING loads the model, for the first time or again; SETUP_FAILED cannot load it, and
    tries again; DEFUNCT is about to end, or has no room on its disk, or no store.
    """
    why = await asyncio.to_thread(service.unready)
    worker = service.supervisor
    if not why:
        status = "BUSY" if worker.held >= service.settings.worker.max_jobs else "READY"
    elif worker.ready or service.draining:
        status = "DEFUNCT"
    else:
        status = "SETUP_FAILED" if worker.failures else "STARTING"
    setup = "succeeded" if worker.ready else "failed" if worker.failures else "starting"
    return {"status": status, "setup": {"status": setup, "logs": "\n".join(why)}}


@router.post("/predictions")
async def create(
    incoming: Incoming,
    response: Response,
    service: ServiceDep,
    key: KeyDep,
    body: PredictionRequest | None = None,
    prefer: Prefer = "",
) -> PredictionResponse:
    """Make a prediction. With an id that came before, the prediction that it made."""
    asked = body or PredictionRequest()
    return PredictionResponse(**await predict(service, key, incoming, response, asked, prefer))


@router.put("/predictions/{prediction_id}")
async def create_by_id(
    prediction_id: IdInPath,
    body: PredictionRequest,
    incoming: Incoming,
    response: Response,
    service: ServiceDep,
    key: KeyDep,
    prefer: Prefer = "",
) -> PredictionResponse:
    """Make a prediction, once."""
    if body.id not in (None, prediction_id):
        raise RequestValidationError([_wrong("is not the id that the URL names.", "id")])
    asked = body.model_copy(update={"id": prediction_id})
    return PredictionResponse(**await predict(service, key, incoming, response, asked, prefer))


@router.post("/predictions/{prediction_id}/cancel")
async def cancel(prediction_id: IdInPath, service: ServiceDep, key: KeyDep) -> dict[str, Any]:
    """Ask for a prediction's end, by the client's id or by ours."""

    def found() -> Job | None:
        named = service.jobs.by_token(key, token_of(prediction_id))
        return named or service.jobs.get(prediction_id)

    job = await asyncio.to_thread(found)
    if job is None or job.key != key:
        raise HTTPException(404, f"there is no prediction {prediction_id}.")
    await service.cancel(job.id)
    return {}
