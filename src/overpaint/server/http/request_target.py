"""Forms of HTTP/1.1 requests that uvicorn passes on as they came."""

import re
from urllib.parse import unquote

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ABSOLUTE_FORM = re.compile(rb"https?://(?:[^/]*@)?([^/@]*)(/.*)?", re.IGNORECASE | re.DOTALL)
"""Matches a request target with scheme and authority, which clients of a proxy send."""


class RequestTargetMiddleware:
    """Makes requests uniform for the application.

    An absolute-form target becomes a path, and its authority replaces `Host` (RFC 9112, section
    3.2.2). A request with `Content-Length` beside `Transfer-Encoding` has the latter's length, and
    the connection closes after the response, because a proxy may have read the former (RFC 9112,
    section 6.1).
    """

    def __init__(self, app: ASGIApp):
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            _resolve_absolute_form(scope)
            headers = MutableHeaders(scope=scope)
            if "transfer-encoding" in headers and "content-length" in headers:
                del headers["content-length"]
                send = _close_connection(send)
        await self._app(scope, receive, send)


def _resolve_absolute_form(scope: Scope) -> None:
    target = ABSOLUTE_FORM.fullmatch(scope.get("raw_path") or b"")
    if target is None:
        return
    authority, path = target[1], target[2] or b"/"
    scope["raw_path"], scope["path"] = path, unquote(path.decode("ascii"))
    others = [pair for pair in scope["headers"] if pair[0] != b"host"]
    scope["headers"] = [(b"host", authority), *others]


def _close_connection(send: Send) -> Send:
    async def send_with_close(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["connection"] = "close"
        await send(message)

    return send_with_close
