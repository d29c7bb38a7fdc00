"""HTTP/1.1 connections that close when a client stalls."""

import asyncio
import contextlib
import socket
from typing import Any, ClassVar, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from overpaint.server.http.response_headers import SECURITY_HEADERS
from overpaint.server.settings import HttpSettings

READ_BUFFER_BYTES = 2**15
"""Bytes that the server reads from a connection at once.

By default asyncio allocates 256 KiB for each read, even of a few bytes. The allocator maps and
unmaps so large a block every time (see `overpaint.system.malloc`)."""


MAX_UNSENT_BYTES = 2**17
"""Bytes of a response that the kernel buffers beyond those in flight.

By default it buffers megabytes for each client: a gigabyte for a few hundred clients that do not
read."""


MAX_CONNECTIONS = 2**16

RESERVED_FILES = 128
"""Open files that connections of clients never use."""


class TimeoutH11Protocol(H11Protocol):
    """HTTP/1.1 protocol that closes connections of stalled clients.

    A client stalls if it sends no complete request headers, or reads nothing of a response, for
    one to two times the timeout in the settings.
    """

    settings: ClassVar[HttpSettings] = HttpSettings()
    max_connections: ClassVar[int] = MAX_CONNECTIONS
    connections_by_wait: ClassVar[dict["TimeoutH11Protocol", None]] = {}
    """The open connections, in the order in which they began to wait for a request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Limit the buffers of a new connection and start its timer."""
        super().connection_made(transport)
        # `max_size` belongs to asyncio's selector transports.
        cast(Any, transport).max_size = READ_BUFFER_BYTES
        if option := getattr(socket, "TCP_NOTSENT_LOWAT", None):  # Windows does not have it.
            transport.get_extra_info("socket").setsockopt(
                socket.IPPROTO_TCP, option, MAX_UNSENT_BYTES
            )
        self._start_timer(self._stalled_on())
        self.connections_by_wait[self] = None
        if len(self.connections_by_wait) > self.max_connections:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer of a closed connection."""
        self._timer.cancel()
        self.connections_by_wait.pop(self, None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Note that the connection waits for its next request."""
        if self in self.connections_by_wait:
            del self.connections_by_wait[self]
            self.connections_by_wait[self] = None
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not HTTP, with the headers of all other responses."""
        headers = SECURITY_HEADERS | {
            "Content-Type": "text/plain; charset=utf-8",
            "Connection": "close",
        }
        events = (
            h11.Response(status_code=400, headers=list(headers.items()), reason=b"Bad Request"),
            h11.Data(data=msg.encode()),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _make_room(self) -> None:
        """Close the connection that has waited longest for a request; this one if none waits."""
        others = (each for each in self.connections_by_wait if each is not self)
        chosen = next((each for each in others if each._waits_for_request()), self)
        del self.connections_by_wait[chosen]
        chosen.transport.abort()

    def _waits_for_request(self) -> bool:
        cycle = cast(RequestResponseCycle | None, self.cycle)
        return cycle is None or cycle.response_complete

    def _start_timer(self, now: tuple[str, object] | None) -> None:
        """Check again after the timeout of the thing that the server waits for."""
        waits_for_headers = now is not None and now[0] == "headers"
        timeout = (
            self.settings.request_head_timeout_s
            if waits_for_headers
            else self.settings.response_timeout_s
        )
        self._timer = self.loop.call_later(timeout, self._check, now)

    def _check(self, before: object) -> None:
        """Close the connection if the server still waits for the same as at the last check."""
        now = self._stalled_on()
        if now is not None and now == before:
            self.transport.abort()
        else:
            self._start_timer(now)

    def _stalled_on(self) -> tuple[str, object] | None:
        """Return what the server waits for the client to do; None if it waits for nothing."""
        if self.flow.write_paused:
            return "response", self.transport.get_write_buffer_size()
        # uvicorn closes an idle connection after `HttpSettings.keep_alive_s`.
        if self.timeout_keep_alive_task is not None and not self.transport.is_closing():
            return None
        # There is no cycle before the first request.
        cycle = cast(RequestResponseCycle | None, self.cycle)
        return ("headers", cycle) if cycle is None or cycle.response_complete else None


def make_protocol_class(settings: HttpSettings, max_connections: int) -> type[TimeoutH11Protocol]:
    """Make a protocol class, of which uvicorn makes the instances.

    Args:
        settings: the timeouts of connections.
        max_connections: the largest number of open connections.
    """

    class ConfiguredProtocol(TimeoutH11Protocol):
        pass

    ConfiguredProtocol.settings = settings
    ConfiguredProtocol.connections_by_wait = {}
    ConfiguredProtocol.max_connections = max_connections
    return ConfiguredProtocol


def count_possible_connections() -> int:
    """Raise the limit of open files as far as possible; return the connections that it allows.

    The rest is for the store, results, and connections to other servers.
    """
    try:
        import resource
    except ImportError:  # on Windows, where sockets do not count as files
        return MAX_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, MAX_CONNECTIONS)
    if files > soft != resource.RLIM_INFINITY:
        # macOS allows fewer files than the hard limit that it reports.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else soft
    return files - min(RESERVED_FILES, files // 2)
