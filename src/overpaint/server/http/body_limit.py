"""Body limit."""

import asyncio

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overpaint.server.http.connection import PATIENCE, SLOWEST

LARGEST_BODY = 128 * 2**20
"""Bytes of a request's body, whatever is in it: a picture and its mask, in base64."""


class Bodies:
    """Lets no more of a body through than may be, whether or not its length was said before.

    It does not wait for one that comes slower than `SLOWEST` either.
    """

    def __init__(self, app: ASGIApp, largest: int = LARGEST_BODY):
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
            late = None if whole else began + PATIENCE + read / SLOWEST
            try:
                async with asyncio.timeout_at(late):
                    message = await receive()
            except TimeoutError:
                slow = f"the body came slower than {SLOWEST:,} bytes a second; send it again."
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
