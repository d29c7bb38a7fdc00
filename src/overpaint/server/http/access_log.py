"""The access log: one event for each request, under the id that the client receives."""

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
"""Request ids that the server accepts from clients. It replaces other ids."""

PROBE_PATHS = ("/healthz", "/readyz", "/metrics")
"""Paths that monitoring requests every few seconds. The log records only their failures.

A `503` of `/readyz` is an expected answer."""


class AccessLogMiddleware:
    """Logs every request after its response, and answers defects with 500."""

    def __init__(self, app: ASGIApp):
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request and log it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if REQUEST_ID_PATTERN.fullmatch(given) else secrets.token_hex(16)
        request_id.set(name)  # The task belongs to this request alone.
        state = scope.setdefault("state", {})
        began = time.monotonic()
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # A dialect may use this header for the id of a job.
                MutableHeaders(scope=message).setdefault("X-Request-ID", name)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            pass  # No client is left to receive a response.
        except Exception as error:
            state |= {"refused": "defect", "error": error}
            if status is not None:
                raise  # The response has begun, so uvicorn closes the connection.
            detail = f"An unexpected error occurred. The server's log has it as request {name}."
            response = problem_response(500, "Internal error", detail)
            await response(scope, receive, send_with_id)
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
    if status is not None and status >= 500 and (error or route not in PROBE_PATHS):
        return logging.WARNING
    return logging.DEBUG if route in PROBE_PATHS else logging.INFO
