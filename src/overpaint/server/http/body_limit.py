"""Limits on the size and the time of request bodies."""

import asyncio
import contextlib

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overpaint.server.settings import DEFAULT_LIMITS, HttpSettings


class BodyPace:
    """Checks that a request body comes fast enough.

    Only the time counts in which the server waits for the client. Each window of it must bring
    enough bytes, so that a client cannot pause after a fast start.
    """

    def __init__(self, settings: HttpSettings):
        """Begin a body, with the limits in the settings."""
        self._window_s = settings.request_body_timeout_s
        self._min_rate = settings.min_body_rate_bytes_per_s
        self._total_s = self._left_s = settings.request_body_total_timeout_s
        self._window_left_s = self._window_s
        self._window_bytes = 0

    @property
    def timeout_s(self) -> float:
        """Seconds until the rate must be checked again."""
        return max(0.0, min(self._window_left_s, self._left_s))

    def add(self, waited_s: float, size: int = 0) -> bool:
        """Count time and bytes; return whether the body is fast enough."""
        self._window_bytes += size
        self._left_s -= waited_s
        self._window_left_s -= waited_s
        if self._left_s <= 0 or self._window_left_s > 0:
            return self._left_s > 0
        enough = self._window_bytes >= self._min_rate * self._window_s
        self._window_left_s, self._window_bytes = self._window_s, 0
        return enough

    async def wait_for(self, receive: Receive) -> Message:
        """Receive the next part of the body.

        Raises:
            HTTPException: 408, the body is too slow.
        """
        clock = asyncio.get_running_loop().time
        message: Message | None = None
        while message is None:
            began = clock()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.timeout_s):
                    message = await receive()
            size = len(message.get("body", b"")) if message else 0
            if not self.add(clock() - began, size):
                raise HTTPException(
                    408,
                    f"{self._describe_delay()} Send the request again over a faster connection.",
                    {"Connection": "close"},
                )
        return message

    def _describe_delay(self) -> str:
        if self._left_s <= 0:
            return f"The body took longer than {self._total_s:g} seconds altogether."
        return f"The body came slower than {self._min_rate:,} bytes per second."


class BodyLimitMiddleware:
    """Refuses request bodies that are too large, too slow or compressed.

    The application receives the refusal as an `HTTPException` when it reads the body, and makes
    the response: 408, 413 or 415. So each dialect keeps its own error format.

    Before an error response, the middleware reads the rest of the body and drops it, for a limited
    time: many clients read no response before they have sent all of it.
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
        pace = BodyPace(self._settings)
        read, complete = 0, False

        async def receive_limited() -> Message:
            nonlocal read, complete
            message = await (receive() if complete else pace.wait_for(receive))
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

        async def drop_rest() -> None:
            nonlocal complete
            dropped = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.request_body_timeout_s):
                    while not complete and dropped <= self._max_bytes:
                        message = await receive()
                        complete = not message.get("more_body")
                        dropped += len(message.get("body", b""))

        async def send_after_body(message: Message) -> None:
            is_start = message["type"] == "http.response.start"
            if is_start and 400 <= message["status"] != 408:
                await drop_rest()
            await send(message)

        await self._app(scope, receive_limited, send_after_body)
