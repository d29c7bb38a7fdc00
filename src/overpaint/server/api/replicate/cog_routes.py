"""The routes of a cog container (github.com/replicate/cog) that serves the server's first model.

| Route | Effect |
|---|---|
| `GET /` | list the other routes |
| `GET /health-check` | STARTING, READY, BUSY, SETUP_FAILED or DEFUNCT; the HTTP status is 200 |
| `POST /predictions` | make a prediction, and wait for it unless `Prefer: respond-async` |
| `PUT /predictions/{id}` | the same, under the client's id: repeated requests make one prediction |
| `POST /predictions/{id}/cancel` | cancel a prediction |
"""

import asyncio
import hashlib
from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Header, HTTPException, Response
from fastapi import Path as PathParam
from fastapi import Request as Incoming
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from overpaint.errors import IdempotencyError, ModelError, PictureError, RequestError
from overpaint.server.api.deps import ServiceDep, get_base_url
from overpaint.server.api.fields import (
    WebhookEvent,
    WebhookUrl,
    hash_body,
    parse_preferences,
)
from overpaint.server.api.ignored_fields import TolerantModel, report_ignored_fields
from overpaint.server.api.replicate.inputs import Input, accept_job
from overpaint.server.api.replicate.protocol import (
    COG_VERSION,
    Output,
    image_data_uris,
    prediction_state,
)
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
from overpaint.server.store.job_rows import ENDED, Job
from overpaint.server.store.origins import CogOrigin
from overpaint.server.store.outbox import WEBHOOK_EVENTS

ID_PATTERN = "^[A-Za-z0-9_-]{1,256}$"
ClientId = Annotated[str, Field(pattern=ID_PATTERN)]
ClientIdInPath = Annotated[str, PathParam(pattern=ID_PATTERN)]


# Errors


def error_response(error: Exception) -> Response:
    """Make the response to one of `problems.HANDLED_ERRORS`, in cog's format where it has one."""
    match error:
        case RequestValidationError():
            _, _, details, _ = describe_error(error)
        case RequestError():
            details = [error_detail(error.message, "input", error.field)]
        case PictureError() | ModelError():
            details = [error_detail(str(error), "input")]
        case IdempotencyError():
            message = "this id was used with another body; send a new id."
            details = [error_detail(message, "id")]
        case _:
            return problem_response(*describe_error(error))
    return JSONResponse({"detail": details}, 422)


def error_detail(message: str, *path: str) -> dict[str, Any]:
    """Return an entry of an error's `detail`."""
    return {"loc": ["body", *path], "msg": message, "type": "value_error"}


ERROR_SCHEMA = {
    "type": "object",
    "required": ["detail"],
    "properties": {
        "detail": {
            "type": "array",
            "items": {"type": "object", "required": ["loc", "msg", "type"]},
        }
    },
}
"""JSON schema of the response to an invalid request; other errors are problem documents."""


# Predictions


class PredictionRequest(TolerantModel):
    """A prediction to make."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    input: Input | None = None
    """Inputs of the model."""
    id: ClientId | None = None
    """The client's id for the prediction, to cancel or repeat it by; by default a random id."""
    created_at: datetime | None = None
    """Time at which the client made the request. Responses repeat it."""
    webhook: WebhookUrl = None
    """URL to post events of the prediction to."""
    webhook_events_filter: tuple[WebhookEvent, ...] | None = None
    """Events to post; all by default."""


class PredictionResponse(BaseModel):
    """A prediction as it is now. Its images are data: URIs."""

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


router = APIRouter(
    tags=["cog"],
    route_class=make_route_class(error_response),
    responses=PROBLEM_RESPONSES
    | {
        202: {"model": PredictionResponse, "description": "The prediction has not ended yet."},
        406: {
            **PROBLEM_RESPONSES[415],
            "description": "The model cannot respond in the requested media type.",
        },
        422: error_responses(ERROR_SCHEMA)[422],
    },
)

Prefer = Annotated[str, Header()]


async def prediction_view(service: Service, job: Job) -> dict[str, Any]:
    """Return a prediction of cog's API."""

    def read() -> dict[str, Any]:
        state = prediction_state(service, job, service.jobs.list_history(job.id))
        return {**state, "output": image_data_uris(service, job)}

    view = await asyncio.to_thread(read)
    return {**view, "id": job.id, **job.origin_as(CogOrigin).client_fields}


webhook_payload = prediction_view
"""Body of a webhook for a job: the prediction."""


def idempotency_token(client_id: str) -> str:
    """Return the idempotency key for a client's id; other dialects' keys never equal it."""
    return f"cog:{hashlib.sha256(client_id.encode()).hexdigest()}"


async def make_prediction(
    service: Service,
    key: str,
    incoming: Incoming,
    response: Response,
    body: PredictionRequest,
    prefer: str,
) -> PredictionResponse:
    """Accept a prediction, and wait for it unless the client prefers not to.

    The prediction continues if the client disconnects or the server shuts down.
    """
    if "text/event-stream" in incoming.headers.get("accept", ""):
        raise HTTPException(406, "This model cannot stream; send Accept: application/json.")
    report_ignored_fields(body)
    token = idempotency_token(body.id) if body.id else None
    client_fields = body.model_dump(mode="json", include={"id", "created_at"}, exclude_none=True)
    job = await accept_job(
        service,
        body.input or Input(),
        origin=CogOrigin(base_url=get_base_url(incoming), client_fields=client_fields),
        key=key,
        webhook=body.webhook,
        webhook_events=body.webhook_events_filter or WEBHOOK_EVENTS,
        token=token,
        body=await hash_body(token, body),
    )
    waits = "respond-async" not in parse_preferences(prefer)
    if waits:
        job = await wait_until_ended(service, job, incoming)
    if not waits or job.state not in ENDED:
        response.status_code = 202
    return PredictionResponse(**await prediction_view(service, job))


@router.get("/")
async def index() -> dict[str, str]:
    """List the other routes."""
    return {
        "cog_version": COG_VERSION,
        "overpaint_version": version("overpaint"),
        "docs_url": "/docs",
        "openapi_url": "/openapi.json",
        "healthcheck_url": "/health-check",
        "predictions_url": "/predictions",
        "predictions_idempotent_url": "/predictions/{prediction_id}",
        "predictions_cancel_url": "/predictions/{prediction_id}/cancel",
    }


@router.get("/health-check")
async def check_health(service: ServiceDep) -> dict[str, Any]:
    """Report the health of the model; the HTTP status is always 200.

    - `STARTING`: the server loads the model.
    - `READY`: the server accepts and runs predictions.
    - `BUSY`: the server accepts predictions, which wait until a running one ends.
    - `SETUP_FAILED`: the model failed to load; the server tries again.
    - `DEFUNCT`: the server is shutting down, or its disk is full, or its job store fails.
    """
    worker = service.supervisor
    was_ready = worker.ready
    reasons = await asyncio.to_thread(service.unready)
    if not reasons:
        status = "BUSY" if worker.held >= service.settings.worker.max_jobs else "READY"
    elif service.draining or (was_ready and worker.ready):  # so the worker is not the reason
        status = "DEFUNCT"
    else:
        status = "SETUP_FAILED" if worker.failures else "STARTING"
    setup = "succeeded" if worker.ready else "failed" if worker.failures else "starting"
    return {"status": status, "setup": {"status": setup, "logs": "\n".join(reasons)}}


@router.post("/predictions")
async def create_prediction(
    incoming: Incoming,
    response: Response,
    service: ServiceDep,
    key: KeyDep,
    body: PredictionRequest | None = None,
    prefer: Prefer = "",
) -> PredictionResponse:
    """Make a prediction, and wait for it unless the request has `Prefer: respond-async`.

    A request with the `id` of an earlier one returns the earlier prediction.
    """
    given = body or PredictionRequest()
    return await make_prediction(service, key, incoming, response, given, prefer)


@router.put("/predictions/{prediction_id}")
async def put_prediction(
    prediction_id: ClientIdInPath,
    body: PredictionRequest,
    incoming: Incoming,
    response: Response,
    service: ServiceDep,
    key: KeyDep,
    prefer: Prefer = "",
) -> PredictionResponse:
    """Make a prediction under the client's id. Repeated requests make one prediction."""
    if body.id not in (None, prediction_id):
        message = f"the id differs from the URL's, {prediction_id!r}; leave it out."
        raise RequestValidationError([error_detail(message, "id")])
    given = body.model_copy(update={"id": prediction_id})
    return await make_prediction(service, key, incoming, response, given, prefer)


@router.post("/predictions/{prediction_id}/cancel")
async def cancel_prediction(
    prediction_id: ClientIdInPath, service: ServiceDep, key: KeyDep
) -> dict[str, Any]:
    """Cancel a prediction, by the client's id or the server's."""

    def find() -> Job | None:
        by_client_id = service.jobs.get_by_token(key, idempotency_token(prediction_id))
        return by_client_id or service.jobs.get(prediction_id)

    job = await asyncio.to_thread(find)
    if job is None or job.key != key:
        raise HTTPException(404, f"There is no prediction {prediction_id}.")
    await service.cancel(job.id)
    return {}
