"""The route class of dialects: strict requests, and errors in the dialect's format."""

from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

from fastapi import HTTPException, Response
from fastapi import Request as Incoming
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException as StarletteHTTPException

from overpaint.errors import MAX_NAME_CHARS
from overpaint.server.api.deps import count_request
from overpaint.server.api.ignored_fields import add_ignored_header, collect_ignored
from overpaint.server.api.inline_files import collect_inline_files, stream_inline_files
from overpaint.server.http.auth import authenticate
from overpaint.server.http.json_body import InvalidTextError, StrictRequest
from overpaint.server.http.problems import HANDLED_ERRORS, record_rejection

MAX_REPORTED_ERRORS = 100
"""Largest number of validation errors in one response."""

COUNTED_METHODS = {"POST", "PUT", "QUERY"}
"""Methods whose requests have bodies, which the budget of requests counts."""

FREEING_ENDINGS = ("/cancel", "/interrupt", "/skip")
"""Ends of the paths of routes that free what a key holds, so that the budget does not refuse
them."""


def make_route_class(make_response: Callable[[Exception], Response]) -> type[APIRoute]:
    """Make a route class that checks requests strictly and answers errors in a dialect's format.

    Args:
        make_response: makes the response to one of `HANDLED_ERRORS`.
    """

    class DialectRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Incoming], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            requires_key = _requires_key(self.dependant)
            is_counted = not COUNTED_METHODS.isdisjoint(self.methods or ())
            is_counted &= requires_key and not self.path.endswith(FREEING_ENDINGS)

            async def handle_strictly(incoming: Incoming) -> Response:
                with collect_ignored(), collect_inline_files() as files:
                    try:
                        if requires_key:  # FastAPI reads a body before it calls dependencies.
                            await authenticate(incoming)
                        _check_charset(incoming)
                        with ExitStack() as counts:
                            receive = incoming.receive
                            if is_counted:
                                receive = counts.enter_context(count_request(incoming))
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


def _check_charset(incoming: Incoming) -> None:
    """Refuse text that is not UTF-8. With other encodings, parsers may fail or never end.

    Raises:
        HTTPException: 415, the body has another encoding.
    """
    _, options = parse_options_header(incoming.headers.get("content-type", ""))
    charset = options.get(b"charset", b"").decode("latin-1").strip("'\" ").lower()
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise HTTPException(
            415, f"The charset {charset[:MAX_NAME_CHARS]!r} is not supported. Send UTF-8."
        )


def _shorten_error(error: Exception) -> Exception:
    """Limit the number of validation errors and the length of names in an error.

    For a form with too many parts, Starlette raises 400, as for a broken form. The server answers
    413. Invalid Unicode becomes a validation error, which FastAPI does not let a parser raise.
    """
    if isinstance(error, InvalidTextError):
        loc = ("body", *error.field)
        wrong = [{"loc": loc, "msg": str(error.detail), "type": "string_unicode"}]
        error = RequestValidationError(wrong)
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
