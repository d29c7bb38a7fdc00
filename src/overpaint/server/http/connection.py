"""Connection."""

import asyncio
import socket
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

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
