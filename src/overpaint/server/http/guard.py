"""What stands before every wire format: whom the server takes itself for, pages, and sizes.

A page in a browser reaches servers of the same machine. It says who it is (`Origin`), and is
refused unless it is the server's own or was allowed. A page whose name was made to lead here (DNS
rebinding) takes itself for the server's own; but then the server is asked for under that name
(`Host`), which is not one of its names.
"""

import asyncio
import socket
from collections.abc import Collection
from typing import Any, cast
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from overpaint.server.api.wire import problem
from overpaint.server.outbound.addresses import is_loopback

LARGEST_BODY = 128 * 2**20
"""Bytes of a request's body, whatever is in it: a picture and its mask, in base64."""

PATIENCE = 30.0
"""Seconds that a client has for the head of a request, for its body beyond what `SLOWEST` gives it,
and to go on reading an answer."""

KEPT = 75
"""Seconds that a connection is kept between two requests. Longer than clients keep theirs (httpx 5,
load balancers 60): who closes first should not be the one who may be asked at that moment."""

HEAD = 2**17
"""Bytes of a request's head that is not there as a whole: ten thousand ranges, which are refused by
name. More is no HTTP (400)."""

READ = 2**15
"""Bytes that are read of a connection at once. By default asyncio makes room for 256 KiB each time,
however few come; so large a block is memory that the kernel maps and takes back (see `memory`)."""

UNSENT = 2**17
"""Bytes of an answer that the kernel takes beyond those on their way. By default it takes megabytes
for each client, read or not: a gigabyte for a few hundred who do not read."""

SLOWEST = 1024
"""Bytes a second of a body, at least, once `PATIENCE` is over."""


class Doors:
    """Refuses requests under names that are not the server's, and those of strange pages."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, origins: Collection[str]):
        """Stand before an application.

        Args:
            app: what answers.
            hosts: names of the server beside loopback's; None for any.
            origins: `scheme://host:port` of pages that may ask, beside the server's own.
        """
        self._app = app
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            refusal = reason = None
            if not self._is_ours(host):
                message = f"{host[:200]!r} is no name of this server; see --allowed-host."
                refusal, reason = problem(400, "refused", message), "forbidden_host"
            elif origin and origin not in self._origins and not _same(origin, host):
                message = f"pages of {origin[:200]!r} may not ask here; see --allowed-origin."
                refusal, reason = problem(403, "refused", message), "forbidden_origin"
            if refusal:
                scope.setdefault("state", {})["refused"] = reason
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        if self._hosts is None:
            return True
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return name in self._hosts or is_loopback(name)


def _same(origin: str, host: str) -> bool:
    """Whether a page is the server's own. A proxy may have taken TLS off, so schemes may differ."""
    return origin.partition("://")[2].lower() == host.lower() != ""


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


class Connection(H11Protocol):
    """HTTP/1.1 with clients that may stand still for `PATIENCE` seconds, and are cut off then.

    That is while the server waits for the head of a request, or for room to send an answer to.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Somebody is there."""
        super().connection_made(transport)
        cast(Any, transport).max_size = READ  # of asyncio's transports that wait for selectors
        if option := getattr(socket, "TCP_NOTSENT_LOWAT", None):  # which Windows does not have
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, option, UNSENT)
        self._looking = self.loop.call_later(PATIENCE, self._look, self._waits())

    def connection_lost(self, exc: Exception | None) -> None:
        """They are gone."""
        self._looking.cancel()
        super().connection_lost(exc)

    def _look(self, before: object) -> None:
        """Cut it off if the server waits for the same as when it last looked."""
        now = self._waits()
        if now is not None and now == before:
            self.transport.abort()
        else:
            self._looking = self.loop.call_later(PATIENCE, self._look, now)

    def _waits(self) -> object:
        """What the server waits for the client with; None if it does not."""
        if self.flow.write_paused:
            return "answer", self.transport.get_write_buffer_size()
        if self.timeout_keep_alive_task is not None and not self.transport.is_closing():
            return None  # between two requests, where uvicorn counts `KEPT`
        cycle = cast(RequestResponseCycle | None, self.cycle)  # None before the first request
        return ("head", cycle) if cycle is None or cycle.response_complete else None
