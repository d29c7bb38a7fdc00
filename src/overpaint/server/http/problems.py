"""Problems."""

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
"""Seconds until a client should try again, at least."""


STATUS_BY_ERROR: tuple[tuple[type[Exception], int, str, str], ...] = (
    (QueueFullError, 429, "the queue is full", "queue_full"),
    (IdempotencyError, 422, "the idempotency key was used for something else", "idempotency"),
    (RequestError, 422, "the request cannot be carried out", "request"),
    (FormatError, 415, "a picture is of a format that is not read", "picture"),
    (PictureError, 422, "a picture cannot be used", "picture"),
    (ModelError, 422, "a model cannot be used", "model"),
    (StoreError, 422, "a name is wrong", "name"),
    (OverpaintError, 500, "this went wrong", "defect"),
    (SQLAlchemyError, 503, "the job store is out of order", "store"),
)
"""How errors are answered, and the reason that is counted: the first that fits."""


REASON_BY_STATUS = {
    400: "request",
    401: "unauthorized",
    406: "request",
    413: "body_too_large",
    415: "encoding",
    422: "request",
}
"""Reasons of errors that are raised as a status. Others refuse no work: 404, 409, 410 …"""


REJECTION_REASONS = sorted(
    {"forbidden_host", "forbidden_origin", "disk_full", "disk", *REASON_BY_STATUS.values()}
    | {reason for *_, reason in STATUS_BY_ERROR}
)
"""All that are counted: those of the doors, of disks, and the above."""


DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
"""What systems say of disks that are full."""


ERROR_DESCRIPTIONS = {
    400: "the body cannot be read, or the server does not go by that name",
    401: "a key is missing or unknown",
    403: "the link, or the page that asks, is refused",
    404: "it is not there, or not yours",
    408: "the body came too slowly",
    409: "it is not in the state for that",
    410: "it is not kept any more",
    413: "the body is too large",
    415: "the body, or a picture, is of another kind",
    416: "too many parts of a picture are asked for",
    422: "the request cannot be carried out",
    429: "the queue is full",
    503: "the server, its store or its disk is out of order",
    507: "the disk is full",
}
"""Statuses that any route may answer with, and why."""


PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["title", "status", "detail"],
    "properties": {"title": {"type": "string"}, "status": {"type": "integer"}, "detail": {}},
}
"""The schema of `problem_response`."""


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
    """An error as `application/problem+json`."""
    body = {"title": title, "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


HANDLED_ERRORS = (
    OverpaintError,
    SQLAlchemyError,
    OSError,
    StarletteHTTPException,
    RequestValidationError,
)
"""Errors that `describe_error` knows an answer to."""


def error_response(error: Exception) -> JSONResponse:
    """One of `HANDLED_ERRORS` as a problem."""
    return problem_response(*describe_error(error))


def describe_error(error: Exception) -> tuple[int, str, Any, Mapping[str, str] | None]:
    """How one of `HANDLED_ERRORS` is answered: the status, a title, what is wrong, and headers."""
    match error:
        case StarletteHTTPException():
            return error.status_code, "refused", error.detail, error.headers
        case RequestValidationError():
            wrong = [
                {"loc": list(e["loc"]), "msg": e["msg"], "type": e["type"]} for e in error.errors()
            ]
            return 422, "the request cannot be carried out", wrong, None
        case OSError():
            full = error.errno in DISK_FULL_ERRNOS
            title = "the disk is full" if full else "the disk is out of order"
            return 507 if full else 503, title, "nothing was accepted; try again later.", None
        case _:
            status, title, _ = _status_row(error)
    if isinstance(error, SQLAlchemyError):
        return status, title, "try again later.", {"Retry-After": str(MIN_RETRY_AFTER_S)}
    headers = None
    if isinstance(error, QueueFullError):
        headers = {"Retry-After": str(max(MIN_RETRY_AFTER_S, min(3600, round(error.seconds / 2))))}
    return status, title, str(error), headers


def _status_row(error: Exception) -> tuple[int, str, str]:
    """The row of `STATUS_BY_ERROR`, less its type."""
    return next(row[1:] for row in STATUS_BY_ERROR if isinstance(error, row[0]))


def rejection_reason(error: Exception) -> str | None:
    """Why one of `HANDLED_ERRORS` refuses work, in a word that metrics may have as a label."""
    match error:
        case StarletteHTTPException():
            return REASON_BY_STATUS.get(error.status_code)
        case RequestValidationError():
            return "request"
        case OSError():
            return "disk_full" if error.errno in DISK_FULL_ERRNOS else "disk"
        case _:
            return _status_row(error)[2]


def record_rejection(incoming: Incoming, error: Exception) -> None:
    """Leave what was wrong to those that count it and write of it."""
    incoming.state.refused = rejection_reason(error)
    if not isinstance(error, StarletteHTTPException):
        incoming.state.error = error


def install_error_handlers(app: FastAPI) -> None:
    """Have every error answered as a problem."""

    async def told(incoming: Incoming, error: Exception) -> JSONResponse:
        record_rejection(incoming, error)
        return error_response(error)

    for kind in HANDLED_ERRORS:
        app.add_exception_handler(kind, told)
