"""Clients that are slow on purpose, in a separate process; `hostile` starts them.

`python -m tests.stress.crowd URL WAITING PICTURE CLIENTS PATIENCE`: CLIENTS follow a job that
waits. A quarter as many send a body with a byte a second, as many send headers like that, as many
send half an upload, and as many request a picture and do not read it. These connect one by one
within PATIENCE seconds, and again when the server closes the connection. A line reports that all
are connected. When the input ends, the clients stop, and the program prints their results as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.server.processes import ROOT

ROOM = 4096
"""Bytes of responses that the kernel buffers for a hostile client."""

LONG = 100_000
"""Announced bytes of a body."""

HOST = "HTTP/1.1\r\nHost: 127.0.0.1\r\n"
UPLOAD = f"POST /api/files {HOST}Content-Length: {LONG}\r\n\r\n".encode()
UNFINISHED: dict[str, tuple[bytes, bytes]] = {
    "body by the byte": (UPLOAD, b"x"),
    "half an upload": (UPLOAD + b"x" * 1000, b""),
    "head by the byte": (UPLOAD[:30], b"x"),
    "reads nothing": (b"", b"\r\n"),
}
"""Bytes sent at once, then bytes sent every second. Clients that do not read request a picture."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Became:
    """Results of the hostile clients.

    Attributes:
        listened: number of clients that follow a job, by the response's status line.
        ended: number of connections that the server closed, by kind of client.
        longest: longest time in seconds that the server kept such a connection.
    """

    listened: Counter[str] = field(default_factory=Counter[str])
    ended: Counter[str] = field(default_factory=Counter[str])
    longest: float = 0.0


@contextlib.contextmanager
def crowd(
    url: str, waiting: str, picture: str, clients: int, patience: float
) -> Generator[dict[str, Any]]:
    """Start all clients; each kind stays as long as the server keeps its connection.

    Gives what becomes of them, as `Became` has it, once it is over.
    """
    command = [sys.executable, "-m", __spec__.name, url, waiting, picture]
    command += [str(clients), str(patience)]
    became = dict[str, Any]()
    with subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, text=True) as process:
        there = process.stdout.readline() if process.stdout else ""
        if not there:
            raise RuntimeError("the crowd did not come")
        yield became
        said, _ = process.communicate()
        became |= json.loads(said)


async def _come(url: str, waiting: str, picture: str, clients: int, patience: float) -> Became:
    became = Became()
    async with contextlib.AsyncExitStack() as connections, asyncio.TaskGroup() as group:
        listen = f"GET /api/jobs/{waiting}/events {HOST}\r\n".encode()
        for _ in range(clients):
            reader, writer = await connections.enter_async_context(_connected(url))
            writer.write(listen)
            became.listened[(await reader.readline()).decode().strip()] += 1
        kinds = list(UNFINISHED) * max(1, clients // 4)
        stalling = list[asyncio.Task[None]]()
        for kind in kinds:
            ask = UNFINISHED[kind][0] or f"GET {picture} {HOST}\r\n".encode()
            stalling.append(group.create_task(_stall(url, kind, ask, became)))
            await asyncio.sleep(patience / len(kinds))
        print("all are there", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for task in stalling:
            task.cancel()
    return became


async def _stall(url: str, kind: str, ask: bytes, became: Became) -> None:
    """Never finish; connect again when the server closes the connection."""
    loop = asyncio.get_running_loop()
    while True:
        came = loop.time()
        try:
            async with _connected(url) as (reader, writer):
                writer.write(ask)
                await _linger(reader, writer, UNFINISHED[kind][1])
                became.ended[kind] += 1
        finally:
            became.longest = max(became.longest, round(loop.time() - came, 1))


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, more: bytes) -> None:
    """Send the next bytes every second until the server closes the connection."""
    with contextlib.suppress(ConnectionError):
        if not more:
            await reader.read()
        while more:
            await asyncio.sleep(1)
            writer.write(more)
            await writer.drain()


@contextlib.asynccontextmanager
async def _connected(url: str) -> AsyncGenerator[Streams]:
    """Open a connection with a small receive buffer."""
    where = urlsplit(url)
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
        one.setblocking(False)
        await asyncio.get_running_loop().sock_connect(one, (where.hostname, where.port))
        reader, writer = await asyncio.open_connection(sock=one, limit=ROOM)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def main() -> None:
    url, waiting, picture, clients, patience = sys.argv[1:]
    os.nice(19)  # clients on other machines would not use this machine's time
    became = asyncio.run(_come(url, waiting, picture, int(clients), float(patience)))
    print(json.dumps(vars(became)))


if __name__ == "__main__":
    main()
