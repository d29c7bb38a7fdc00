"""Limits on the size and the time of request bodies."""

import asyncio

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overpaint.server.settings import DEFAULT_LIMITS, HttpSettings


class BodyLimitMiddleware:
    """Refuses request bodies that are too large, too slow or compressed.

    The application receives the refusal as an `HTTPException` when it reads the body, and makes
    the response: 408, 413 or 415. So each dialect keeps its own error format.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int = DEFAULT_LIMITS.body_bytes,
        settings: HttpSettings | None = None,
    ):
        """Wrap an application.

        Args:
            app: the application.
            max_bytes: the largest size of a body.
            settings: the time limit of a body.
        """
        self._app = app
        self._max_bytes = max_bytes
        self._settings = settings or HttpSettings()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        size = int(declared) if declared.isdecimal() else 0
        compressed = headers.get("content-encoding", "identity").lower() != "identity"
        time_limit = self._settings.request_body_timeout_s
        min_rate = self._settings.min_body_rate_bytes_per_s
        began, read, complete = asyncio.get_running_loop().time(), 0, False

        async def receive_limited() -> Message:
            nonlocal read, complete
            deadline = None if complete else began + time_limit + read / min_rate
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                slow = (
                    f"The body came slower than {min_rate:,} bytes per second. "
                    "Send the request again over a faster connection."
                )
                raise HTTPException(408, slow, {"Connection": "close"}) from None
            complete = not message.get("more_body")
            if body := message.get("body"):
                read += len(body)
                if compressed:
                    raise HTTPException(
                        415, "Content-Encoding is not supported. Send the body uncompressed."
                    )
                if max(size, read) > self._max_bytes:
                    raise HTTPException(
                        413, f"The body is larger than the limit of {self._max_bytes:,} bytes."
                    )
            return message

        await self._app(scope, receive_limited, send)
