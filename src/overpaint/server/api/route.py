"""The route class of dialects: strict requests, and errors in the dialect's format."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Response
from fastapi import Request as Incoming
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException as StarletteHTTPException

from overpaint.errors import (
    MAX_NAME_CHARS,
)
from overpaint.server.api.ignored_fields import add_ignored_header, collect_ignored
from overpaint.server.api.inline_files import collect_inline_files, stream_inline_files
from overpaint.server.http.auth import authenticate
from overpaint.server.http.json_body import StrictRequest
from overpaint.server.http.problems import HANDLED_ERRORS, record_rejection
from overpaint.server.http.request_budget import NO_BUDGET
from overpaint.server.http.threads import current_key

MAX_REPORTED_ERRORS = 100
"""Largest number of validation errors in one response."""


def make_route_class(make_response: Callable[[Exception], Response]) -> type[APIRoute]:
    """Make a route class that checks requests strictly and answers errors in a dialect's format.

    Args:
        make_response: makes the response to one of `HANDLED_ERRORS`.
    """

    class DialectRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Incoming], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            checks_key_first = self.body_field is not None and _requires_key(self.dependant)

            async def handle_strictly(incoming: Incoming) -> Response:
                with collect_ignored(), collect_inline_files() as files:
                    budget = NO_BUDGET
                    try:
                        if checks_key_first:
                            await _check_key(incoming)
                            current_key.set(getattr(incoming.state, "key", ""))
                            budget = getattr(incoming.app.state, "budget", NO_BUDGET)
                        await _check_charset(incoming)
                        with budget.count_request(current_key.get(), incoming.receive) as receive:
                            response = await handle(StrictRequest(incoming.scope, receive))
                    except HANDLED_ERRORS as error:
                        response = handle_error(incoming, error)
                    add_ignored_header(incoming, response)
                    return stream_inline_files(response, files)

            return handle_strictly

    def handle_error(incoming: Incoming, error: Exception) -> Response:
        shortened = _shorten_error(error)
        record_rejection(incoming, shortened)
        response = make_response(shortened)
        if response.status_code < 500:  # The log needs the traceback of other errors.
            _drop_tracebacks(error)
            _drop_tracebacks(shortened)
        return response

    return DialectRoute


def _requires_key(dependant: Dependant) -> bool:
    """Return whether a route requires an API key."""
    return dependant.call is authenticate or any(map(_requires_key, dependant.dependencies))


async def _check_charset(incoming: Incoming) -> None:
    """Refuse text that is not UTF-8. With other encodings, parsers may fail or never end.

    Raises:
        HTTPException: 415, the body has another encoding.
    """
    _, options = parse_options_header(incoming.headers.get("content-type", ""))
    charset = options.get(b"charset", b"").decode("latin-1").strip("'\" ").lower()
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        await _discard_body(incoming)
        raise HTTPException(
            415, f"The charset {charset[:MAX_NAME_CHARS]!r} is not supported. Send UTF-8."
        )


async def _check_key(incoming: Incoming) -> None:
    """Check the API key before FastAPI reads the body, which it does before dependencies.

    Raises:
        HTTPException, SQLAlchemyError: see `authenticate`.
    """
    try:
        await asyncio.to_thread(authenticate, incoming)
    except HTTPException:
        await _discard_body(incoming)
        raise


async def _discard_body(incoming: Incoming) -> None:
    """Read the body and drop it. Many clients read no response before they have sent all of it."""
    async for _ in incoming.stream():
        pass


def _shorten_error(error: Exception) -> Exception:
    """Limit the number of validation errors and the length of names in an error.

    For a form with too many parts, Starlette raises 400, as for a broken form. The server answers
    413.
    """
    if isinstance(error, StarletteHTTPException) and str(error.detail).startswith("Too many "):
        error.status_code = 413
    if isinstance(error, RequestValidationError):
        wrong = [
            {
                **each,
                "loc": tuple(p[:MAX_NAME_CHARS] if isinstance(p, str) else p for p in each["loc"]),
            }
            for each in error.errors()[:MAX_REPORTED_ERRORS]
        ]
        return RequestValidationError(wrong, body=error.body)
    return error


def _drop_tracebacks(error: BaseException | None) -> None:
    """Remove the tracebacks of an error.

    Their frames keep the request's body in memory until the garbage collector runs.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__context__
