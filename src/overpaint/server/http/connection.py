"""Connection."""

import asyncio
import socket
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

CLIENT_TIMEOUT_S = 30.0
"""Seconds that the server waits for request headers, and for a client that stops reading.

A body has this long plus one second for each `MIN_BODY_BYTES_PER_S` received."""


READ_BUFFER_BYTES = 2**15
"""Bytes that are read of a connection at once. By default asyncio makes room for 256 KiB each time,
however few come; so large a block is memory that the kernel maps and takes back (see `memory`)."""


MAX_UNSENT_BYTES = 2**17
"""Bytes of an answer that the kernel takes beyond those on their way. By default it takes megabytes
for each client, read or not: a gigabyte for a few hundred who do not read."""


MIN_BODY_BYTES_PER_S = 1024
"""Bytes a second of a body, at least, once `CLIENT_TIMEOUT_S` is over."""


class TimeoutH11Protocol(H11Protocol):
    """HTTP/1.1 protocol that closes connections of stalled clients.

    A client stalls if it sends no complete request headers, or reads nothing of a response, for
    `CLIENT_TIMEOUT_S` to twice that.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Somebody is there."""
        super().connection_made(transport)
        cast(
            Any, transport
        ).max_size = READ_BUFFER_BYTES  # of asyncio's transports that wait for selectors
        if option := getattr(socket, "TCP_NOTSENT_LOWAT", None):  # which Windows does not have
            transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, option, MAX_UNSENT_BYTES
            )
        self._looking = self.loop.call_later(CLIENT_TIMEOUT_S, self._look, self._waits())

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
            self._looking = self.loop.call_later(CLIENT_TIMEOUT_S, self._look, now)

    def _waits(self) -> object:
        """What the server waits for the client with; None if it does not."""
        if self.flow.write_paused:
            return "answer", self.transport.get_write_buffer_size()
        if self.timeout_keep_alive_task is not None and not self.transport.is_closing():
            return None  # between two requests, where uvicorn counts `HttpSettings.keep_alive_s`
        cycle = cast(RequestResponseCycle | None, self.cycle)  # None before the first request
        return ("head", cycle) if cycle is None or cycle.response_complete else None
