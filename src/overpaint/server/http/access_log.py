"""Every request: the id that it goes by, its line in the log, and an answer where it broke."""

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overpaint.server.http.problems import problem_response
from overpaint.server.telemetry.logs import log_event, request_id

REQUEST_ID_PATTERN = re.compile(r"[!-~]{1,128}")
"""Ids of requests that are taken from clients; instead of others one is made."""

PROBE_PATHS = ("/healthz", "/readyz", "/metrics")
"""Asked for every few seconds, and written of only where they go wrong."""


class AccessLogMiddleware:
    """Writes of every request once it is answered, under an id that its client is told."""

    def __init__(self, app: ASGIApp):
        """Stand before an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, and write of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if REQUEST_ID_PATTERN.fullmatch(given) else secrets.token_hex(16)
        request_id.set(name)  # for the rest of the task, which is this request's alone
        state = scope.setdefault("state", {})
        began = time.monotonic()
        status: int | None = None

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # A dialect may have a meaning of its own for this header.
                MutableHeaders(scope=message).setdefault("X-Request-ID", name)
            await send(message)

        try:
            await self._app(scope, receive, named)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except Exception as error:
            state |= {"refused": "defect", "error": error}
            if status is not None:
                raise  # too late for an answer: the connection is cut
            wrong = f"there is a defect; the server's log has it as request {name}."
            await problem_response(500, "this went wrong", wrong)(scope, receive, named)
        finally:
            route = getattr(scope.get("route"), "path", None)
            error = state.get("error")
            log_event(
                _level(status, error, route),
                "answered",
                error if status is None or status >= 500 else None,
                request_id=name,
                key=state.get("key"),
                method=scope["method"],
                route=route,
                status=status,
                seconds=round(time.monotonic() - began, 3),
                reason=state.get("refused"),
            )


def _level(status: int | None, error: Exception | None, route: str | None) -> int:
    if status == 500 and error:
        return logging.ERROR
    if status is not None and status >= 500:
        return logging.WARNING
    return logging.DEBUG if route in PROBE_PATHS else logging.INFO
