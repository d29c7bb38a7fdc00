"""HEAD for every route that has GET."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class _HeadersSentError(Exception):
    """The response to a HEAD request is complete."""


class HeadMiddleware:
    """Answers HEAD with the status and the headers of GET (RFC 9110, section 9.3.2).

    The application handles a GET request until it sends the headers. It makes no body, so that a
    stream of events ends at once.
    """

    def __init__(self, app: ASGIApp):
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_head = scope["method"] == "HEAD"

        async def send_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _complete_allow_header(message)
                if is_head:
                    scope["method"] = "HEAD"  # The HTTP protocol reads it to frame the response.
                    await send(message)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    raise _HeadersSentError
            await send(message)

        try:
            scope["method"] = "GET" if is_head else scope["method"]
            await self._app(scope, receive, send_headers)
        except _HeadersSentError:
            pass
        finally:
            scope["method"] = "HEAD" if is_head else scope["method"]


def _complete_allow_header(message: Message) -> None:
    """Add HEAD to the methods that a response 405 names."""
    headers = MutableHeaders(scope=message)
    allowed = [method.strip() for method in headers.get("allow", "").split(",")]
    if "GET" in allowed and "HEAD" not in allowed:
        headers["allow"] = ", ".join([*allowed, "HEAD"])
