"""Trace spans of HTTP requests."""

from opentelemetry.trace import SpanKind, StatusCode
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overpaint.server.http.access_log import PROBE_PATHS
from overpaint.server.telemetry.logs import request_id
from overpaint.server.telemetry.traces import TRACE_CONTEXT, TraceExporter


class TracingMiddleware:
    """Records a span for every request except probes, below the client's span if it sends one."""

    def __init__(self, app: ASGIApp, traces: TraceExporter):
        """Wrap an application.

        Args:
            app: the application.
            traces: receives the spans.
        """
        self._app = app
        self._tracer = traces.tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request within a span."""
        if scope["type"] != "http" or scope["path"] in PROBE_PATHS:
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        parent = TRACE_CONTEXT.extract(Headers(scope=scope))
        with self._tracer.start_as_current_span(
            method,
            parent,
            SpanKind.SERVER,
            {"http.request.method": method},
            record_exception=False,  # The message of an exception may quote the request.
            set_status_on_exception=False,
        ) as span:

            async def seen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("overpaint.request.id", request_id.get() or "")
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            try:
                await self._app(scope, receive, seen)
            finally:
                if route := getattr(scope.get("route"), "path", None):
                    span.set_attribute("http.route", route)
                    span.update_name(f"{method} {route}")
