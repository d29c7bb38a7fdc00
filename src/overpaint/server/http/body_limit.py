"""Body limit."""

import asyncio

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overpaint.server.http.connection import CLIENT_TIMEOUT_S, MIN_BODY_BYTES_PER_S

MAX_BODY_BYTES = 128 * 2**20
"""Bytes of a request's body, whatever is in it: a picture and its mask, in base64."""


class BodyLimitMiddleware:
    """Lets no more of a body through than may be, whether or not its length was said before.

    It does not wait for one that comes slower than `MIN_BODY_BYTES_PER_S` either.
    """

    def __init__(self, app: ASGIApp, largest: int = MAX_BODY_BYTES):
        """Stand before an application.

        Args:
            app: what answers, also what is raised here while it reads: 408, 413, 415.
            largest: bytes of a body.
        """
        self._app = app
        self._largest = largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        said = headers.get("content-length", "")
        size = int(said) if said.isdecimal() else 0
        packed = headers.get("content-encoding", "identity").lower() != "identity"
        began, read, whole = asyncio.get_running_loop().time(), 0, False

        async def counted() -> Message:
            nonlocal read, whole
            late = None if whole else began + CLIENT_TIMEOUT_S + read / MIN_BODY_BYTES_PER_S
            try:
                async with asyncio.timeout_at(late):
                    message = await receive()
            except TimeoutError:
                slow = (
                    f"The body came slower than {MIN_BODY_BYTES_PER_S:,} bytes per second. "
                    "Send the request again over a faster connection."
                )
                raise HTTPException(408, slow, {"Connection": "close"}) from None
            whole = not message.get("more_body")
            if body := message.get("body"):
                read += len(body)
                if packed:
                    raise HTTPException(415, "bodies are not unpacked; send it without encoding.")
                if max(size, read) > self._largest:
                    raise HTTPException(413, f"the body is larger than {self._largest:,} bytes.")
            return message

        await self._app(scope, counted, send)
