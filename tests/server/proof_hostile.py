"""Clients that are slow on purpose, beside others: those are answered as swiftly as alone.

`python -m tests.server.proof_hostile SECONDS [CLIENTS]` prints what came of it, as JSON. Turns with
and without hostile clients alternate. CLIENTS listen to a job that does not begin; a
quarter as many send a byte a second of a body, as many of a head, as many half an upload, and as
many ask for what they do not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlsplit

import httpx

from .processes import Server

RATE = 20.0
"""Normal requests a second."""

TURNS = 3
"""Turns of each kind."""

PATIENCE = 4.0
"""Seconds that the server has with clients that stand still; a turn beside them takes four times as
long at least."""

MOST = 1.5
"""How much longer all but one of a hundred normal answers may take beside hostile clients."""

ROOM = 4096
"""Bytes of answers that hostile clients take in before they read them."""

LARGE = 2**24
"""Bytes of a picture that is asked for and not read."""

LONG = 100_000
"""Bytes of a body that is said to come."""


@dataclass
class Found:
    """What came of it.

    Attributes:
        clients: that listened to jobs.
        normal: answers to normal clients, by status.
        alone: seconds of all but one of a hundred of them, without hostile clients.
        beside: the same with them.
        hostile: how many listened, and how many of the others the server hung up on, by kind.
        held: of those, how many it still had when their time was over.
    """

    seconds: float
    clients: int
    normal: dict[str, int] = field(default_factory=dict[str, int])
    alone: float = 0.0
    beside: float = 0.0
    hostile: dict[str, int] = field(default_factory=dict[str, int])
    held: int = 0

    @property
    def ratio(self) -> float:
        return round(self.beside / self.alone, 2)

    @property
    def good(self) -> bool:
        """Whether all normal requests were answered well, and no hostile one was waited for."""
        return set(self.normal) == {"200"} and self.held == 0

    @property
    def kept(self) -> bool:
        """Whether they were answered as swiftly, too."""
        return self.good and self.ratio <= MOST


def run(
    folder: Path,
    seconds: float,
    clients: int = 1000,
    turns: int = TURNS,
    patience: float = PATIENCE,
) -> Found:
    """Alternate turns of so many seconds in all, with so many who listen."""
    turn = seconds / turns / 2
    lengths = [(turn, max(turn, 4 * patience))] * turns
    with Server(folder, "--room", "1", "--patience", str(patience)) as server:
        return asyncio.run(_run(server.until_ready(), folder, lengths, clients))


async def _run(
    server: Server, folder: Path, lengths: list[tuple[float, float]], clients: int
) -> Found:
    seconds = sum(map(sum, lengths))
    found, normal, hostile = Found(seconds, clients), Counter[str](), Counter[str]()
    alone, beside = list[float](), list[float]()
    made = server.ended(server.submit())
    with (folder / "results" / made["id"] / made["results"][0]["name"]).open("ab") as picture:
        picture.truncate(LARGE)
    ask = f"GET {made['results'][0]['url']} {HOST}\r\n".encode()
    server.submit(steps=1000, prompt="hang")  # is under way for all the time, so that another waits
    waiting = server.submit()
    limits = httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        for without, among in lengths:
            await client.get("/v1/models")
            alone += await _ask(client, without, normal)
            async with _crowd(server, waiting, ask, clients, hostile) as unfinished:
                await client.get("/v1/models")
                beside += await _ask(client, among, normal)
                found.held += sum(not task.done() for task in unfinished)
    found.normal, found.hostile = dict(normal), dict(hostile)
    found.alone, found.beside = _p99(alone), _p99(beside)
    return found


async def _ask(client: httpx.AsyncClient, seconds: float, statuses: Counter[str]) -> list[float]:
    """Ask at an even rate, whether or not others were answered; how long each answer took."""
    took = list[float]()

    async def ask(number: int, due: float) -> None:
        if number % 2:
            answer = await client.get("/api/jobs", params={"limit": 5})
        else:
            answer = await client.get("/v1/models")
        statuses[str(answer.status_code)] += 1
        took.append(time.monotonic() - due)

    due = time.monotonic()
    end, asked = due + seconds, list[asyncio.Task[None]]()
    while (due := due + 1 / RATE) < end:
        await asyncio.sleep(due - time.monotonic())
        asked.append(asyncio.create_task(ask(len(asked), due)))
    await asyncio.gather(*asked)
    return took


# Hostile clients


HOST = "HTTP/1.1\r\nHost: 127.0.0.1\r\n"
UPLOAD = f"POST /api/files {HOST}Content-Length: {LONG}\r\n\r\n".encode()
UNFINISHED: dict[str, tuple[bytes, bytes]] = {
    "body by the byte": (UPLOAD, b"x"),
    "half an upload": (UPLOAD + b"x" * 1000, b""),
    "head by the byte": (UPLOAD[:30], b"x"),
    "reads nothing": (b"", b"\r\n"),
}
"""What is sent at once, and what every second after that. Who reads nothing asks for a picture."""


@contextlib.asynccontextmanager
async def _crowd(
    server: Server, waiting: str, ask: bytes, clients: int, ends: Counter[str]
) -> AsyncGenerator[list[asyncio.Task[None]]]:
    """So many who listen to a job that waits, and a quarter as many of each of the others.

    Those whom the server must not wait for are what is given, when all are connected.
    """
    listen = f"GET /api/jobs/{waiting}/events {HOST}\r\n".encode()
    async with contextlib.AsyncExitStack() as connections:
        tasks = await connections.enter_async_context(_tasks())
        for _ in range(clients):
            reader, writer = await connections.enter_async_context(_connected(server))
            writer.write(listen)
            ends[f"listens: {(await reader.readline()).decode().strip()}"] += 1
        for kind, (start, _) in UNFINISHED.items():
            for _ in range(max(1, clients // 4)):
                reader, writer = await connections.enter_async_context(_connected(server))
                writer.write(start or ask)
                tasks.append(asyncio.create_task(_stall(reader, writer, kind, ends)))
        yield tasks


@contextlib.asynccontextmanager
async def _tasks() -> AsyncGenerator[list[asyncio.Task[None]]]:
    """Tasks that are canceled in the end."""
    tasks: list[asyncio.Task[None]] = []
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _connected(
    server: Server,
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection with little room for answers."""
    where = urlsplit(server.url)
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


async def _stall(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str, ends: Counter[str]
) -> None:
    """Never finish, until the server hangs up."""
    again = UNFINISHED[kind][1]
    with contextlib.suppress(ConnectionError):
        if not again:
            await reader.read()
        while again:
            await asyncio.sleep(1)
            writer.write(again)
            await writer.drain()
    ends[kind] += 1


def _p99(times: list[float]) -> float:
    return round(quantiles(times, n=100, method="inclusive")[98], 4)


def main() -> None:
    seconds, *clients = sys.argv[1:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a server inherits it
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), float(seconds), *map(int, clients))
    print(json.dumps(asdict(found) | {"ratio": found.ratio, "kept": found.kept}))
    raise SystemExit(not found.kept)


if __name__ == "__main__":
    main()
