"""Limits on the size and the time of request bodies."""

import asyncio

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overpaint.server.http.connection import CLIENT_TIMEOUT_S, MIN_BODY_BYTES_PER_S

MAX_BODY_BYTES = 128 * 2**20
"""Largest size of a request body: a picture and its mask in base64."""


class BodyLimitMiddleware:
    """Refuses request bodies that are too large, too slow or compressed.

    The application receives the refusal as an `HTTPException` when it reads the body, and makes
    the response: 408, 413 or 415. So each dialect keeps its own error format.
    """

    def __init__(self, app: ASGIApp, largest: int = MAX_BODY_BYTES):
        """Wrap an application.

        Args:
            app: the application.
            largest: the largest size of a body in bytes.
        """
        self._app = app
        self._largest = largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        size = int(declared) if declared.isdecimal() else 0
        compressed = headers.get("content-encoding", "identity").lower() != "identity"
        began, read, complete = asyncio.get_running_loop().time(), 0, False

        async def receive_limited() -> Message:
            nonlocal read, complete
            deadline = None if complete else began + CLIENT_TIMEOUT_S + read / MIN_BODY_BYTES_PER_S
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                slow = (
                    f"The body came slower than {MIN_BODY_BYTES_PER_S:,} bytes per second. "
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
                if max(size, read) > self._largest:
                    raise HTTPException(
                        413, f"The body is larger than the limit of {self._largest:,} bytes."
                    )
            return message

        await self._app(scope, receive_limited, send)
