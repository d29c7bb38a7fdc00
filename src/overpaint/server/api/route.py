"""Route."""

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
from overpaint.server.http.auth import authenticate
from overpaint.server.http.json_body import StrictRequest
from overpaint.server.http.problems import HANDLED_ERRORS, record_rejection

MAX_REPORTED_ERRORS = 100
"""Things that a request is told are wrong with it."""


def make_route_class(answered: Callable[[Exception], Response]) -> type[APIRoute]:
    """A kind of route that is strict, and tells what is wrong in a dialect's own words.

    Args:
        answered: the answer to one of `HANDLED_ERRORS`.
    """

    class Telling(APIRoute):
        def get_route_handler(self) -> Callable[[Incoming], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            demanding = self.body_field is not None and _requires_key(self.dependant)

            async def handled(incoming: Incoming) -> Response:
                try:
                    if demanding:
                        await _check_key(incoming)
                    await _check_charset(incoming)
                    return await handle(StrictRequest(incoming.scope, incoming.receive))
                except HANDLED_ERRORS as error:
                    return tell(incoming, error)

            return handled

    def tell(incoming: Incoming, error: Exception) -> Response:
        told = _shorten_error(error)
        record_rejection(incoming, told)
        answer = answered(told)
        if answer.status_code < 500:  # of others the log says where they come from
            _drop_tracebacks(error)
            _drop_tracebacks(told)
        return answer

    return Telling


def _requires_key(dependant: Dependant) -> bool:
    """Whether a route is for clients with a key."""
    return dependant.call is authenticate or any(map(_requires_key, dependant.dependencies))


async def _check_charset(incoming: Incoming) -> None:
    """Refuse texts that are not UTF-8: readers would obey, and some take for ever or fail.

    Raises:
        HTTPException: 415, they are not.
    """
    _, options = parse_options_header(incoming.headers.get("content-type", ""))
    charset = options.get(b"charset", b"").decode("latin-1").strip("'\" ").lower()
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        await _discard_body(incoming)
        raise HTTPException(
            415, f"the charset {charset[:MAX_NAME_CHARS]!r} is not read; send UTF-8."
        )


async def _check_key(incoming: Incoming) -> None:
    """Make sure of a client before its body is kept and read, as FastAPI does first of all.

    Raises:
        HTTPException, SQLAlchemyError: as `authenticate`.
    """
    try:
        await asyncio.to_thread(authenticate, incoming)
    except HTTPException:
        await _discard_body(incoming)
        raise


async def _discard_body(incoming: Incoming) -> None:
    """Let a client say all, before which it hears no answer, and keep nothing of it."""
    async for _ in incoming.stream():
        pass


def _shorten_error(error: Exception) -> Exception:
    """An error as it is answered: the first of many things that are wrong; the beginning of names.

    Forms of too many parts are too large: 413. Starlette says 400, as of broken ones.
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
    """Forget where an error came from.

    Else what was sent, which frames there hold, stays with it until garbage is collected.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__context__
