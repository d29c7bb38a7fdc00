"""Error responses: which status and text each error has, and `application/problem+json`."""

import errno
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi import Request as Incoming
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException as StarletteHTTPException

from overpaint.errors import (
    FormatError,
    IdempotencyError,
    ModelError,
    OverpaintError,
    PictureError,
    QueueFullError,
    RequestError,
    StoreError,
)

MIN_RETRY_AFTER_S = 5
"""Smallest number of seconds in a `Retry-After` header."""


class ShutdownError(StarletteHTTPException):
    """The server stops before a job ends that a client waits for."""

    def __init__(self, job: str, *, continues: bool = False):
        """Describe the job.

        Args:
            job: its id.
            continues: whether it runs again, so that the client need not repeat its request.
        """
        advice = (
            "The job continues when the server starts again."
            if continues
            else "Try again in a minute."
        )
        message = f"The server is shutting down before job {job} ends. {advice}"
        super().__init__(503, message, {"Retry-After": str(MIN_RETRY_AFTER_S)})


STATUS_BY_ERROR: tuple[tuple[type[Exception], int, str, str], ...] = (
    (QueueFullError, 429, "The queue is full", "queue_full"),
    (IdempotencyError, 422, "The idempotency key was used for another request", "idempotency"),
    (RequestError, 422, "The request is not valid", "request"),
    (FormatError, 415, "The format of a picture is not supported", "picture"),
    (PictureError, 422, "A picture is not valid", "picture"),
    (ModelError, 422, "A model is not available", "model"),
    (StoreError, 422, "A name is not valid", "name"),
    (OverpaintError, 500, "Internal error", "defect"),
    (SQLAlchemyError, 503, "The job store is not available", "store"),
)
"""Status, title and rejection reason of each error class. The first class that matches applies."""


REASON_BY_STATUS = {
    400: "request",
    401: "unauthorized",
    406: "request",
    408: "body_too_slow",
    413: "body_too_large",
    415: "encoding",
    422: "request",
    429: "too_many_requests",
    503: "overloaded",
}
"""Rejection reasons of errors that are raised with a status.

Other statuses, such as 404, 409 and 410, reject no work."""


REJECTION_REASONS = sorted(
    {"forbidden_host", "forbidden_origin", "disk_full", "disk", *REASON_BY_STATUS.values()}
    | {reason for *_, reason in STATUS_BY_ERROR}
)
"""All rejection reasons that metrics count."""


DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of the operating system for a full disk."""


ERROR_DESCRIPTIONS = {
    400: "The body is not valid, or the server does not accept the host name.",
    401: "The API key is missing or unknown.",
    403: "The signed link is not valid, or the server does not accept the page's origin.",
    404: "The resource does not exist, or belongs to another API key.",
    408: "The client sent the body too slowly.",
    409: "The state of the resource does not allow the operation.",
    410: "The resource is deleted.",
    413: "The body is too large.",
    415: "The format of the body or of a picture is not supported.",
    416: "The request asks for too many byte ranges.",
    422: "The request is not valid.",
    429: "The queue is full, or too many clients follow jobs.",
    503: "The server, the job store or the disk is not available.",
    507: "The disk is full.",
}
"""Error statuses that any route may return, with their OpenAPI descriptions."""


PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["title", "status", "detail"],
    "properties": {"title": {"type": "string"}, "status": {"type": "integer"}, "detail": {}},
}
"""JSON schema of the body that `problem_response` makes."""


def error_responses(
    schema: Mapping[str, Any], media_type: str = "application/json"
) -> dict[int | str, dict[str, Any]]:
    """Describe all of `ERROR_DESCRIPTIONS` for OpenAPI, with the schema of a dialect's errors."""
    content = {media_type: {"schema": schema}}
    return {
        status: {"description": why, "content": content}
        for status, why in ERROR_DESCRIPTIONS.items()
    }


PROBLEM_RESPONSES = error_responses(PROBLEM_SCHEMA, "application/problem+json")


def problem_response(status: int, title: str, detail: Any, headers: Any = None) -> JSONResponse:
    """Make an error response of type `application/problem+json` (RFC 9457)."""
    body = {"title": title, "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


HANDLED_ERRORS = (
    OverpaintError,
    SQLAlchemyError,
    OSError,
    StarletteHTTPException,
    RequestValidationError,
)
"""Errors that `describe_error` can describe."""


def error_response(error: Exception) -> JSONResponse:
    """Make the response to one of `HANDLED_ERRORS` as `application/problem+json`."""
    return problem_response(*describe_error(error))


def describe_error(error: Exception) -> tuple[int, str, Any, Mapping[str, str] | None]:
    """Return the status, title, detail and headers for one of `HANDLED_ERRORS`."""
    match error:
        case StarletteHTTPException():
            return error.status_code, "Refused", error.detail, error.headers
        case RequestValidationError():
            wrong = [
                {"loc": list(e["loc"]), "msg": e["msg"], "type": e["type"]} for e in error.errors()
            ]
            return 422, "The request is not valid", wrong, None
        case OSError():
            full = error.errno in DISK_FULL_ERRNOS
            title = "The disk is full" if full else "The disk is not available"
            return (
                507 if full else 503,
                title,
                "The server accepted nothing. Try again later.",
                None,
            )
        case _:
            status, title, _ = _status_row(error)
    if isinstance(error, SQLAlchemyError):
        return status, title, "Try again later.", {"Retry-After": str(MIN_RETRY_AFTER_S)}
    headers = None
    if isinstance(error, QueueFullError):
        headers = {"Retry-After": str(max(MIN_RETRY_AFTER_S, min(3600, round(error.seconds / 2))))}
    return status, title, str(error), headers


def _status_row(error: Exception) -> tuple[int, str, str]:
    """Return the status, title and reason of an error from `STATUS_BY_ERROR`."""
    return next(row[1:] for row in STATUS_BY_ERROR if isinstance(error, row[0]))


def rejection_reason(error: Exception) -> str | None:
    """Return why one of `HANDLED_ERRORS` rejects work, as a metrics label; None if it does not."""
    match error:
        case ShutdownError():  # The server accepted the job.
            return None
        case StarletteHTTPException():
            return REASON_BY_STATUS.get(error.status_code)
        case RequestValidationError():
            return "request"
        case OSError():
            return "disk_full" if error.errno in DISK_FULL_ERRNOS else "disk"
        case _:
            return _status_row(error)[2]


def record_rejection(incoming: Incoming, error: Exception) -> None:
    """Leave the error on the request for the metrics and the access log."""
    incoming.state.refused = rejection_reason(error)
    if not isinstance(error, StarletteHTTPException):
        incoming.state.error = error


def install_error_handlers(app: FastAPI) -> None:
    """Answer errors outside of dialects as `application/problem+json`."""

    async def handle_error(incoming: Incoming, error: Exception) -> JSONResponse:
        record_rejection(incoming, error)
        return error_response(error)

    for kind in HANDLED_ERRORS:
        app.add_exception_handler(kind, handle_error)
