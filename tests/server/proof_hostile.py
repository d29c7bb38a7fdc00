"""Clients that are slow on purpose, beside others: those are answered as swiftly as alone.

`python -m tests.server.proof_hostile SECONDS [CLIENTS]` prints what came of it, as JSON. Turns with
and without a `crowd` of hostile clients alternate; CLIENTS of it listen, and as many stall. Answers
that came while the host of a virtual machine took processors away, or soon after, do not count; a
turn goes on until enough of them do, four times as long at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import resource
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import httpx
import psutil

from .crowd import crowd
from .processes import Server

RATE = 20.0
"""Normal requests a second."""

TURNS = 3
"""Turns of each kind."""

PATIENCE = 30.0
"""Seconds that the server has with clients that stand still."""

MOST = 1.5
"""How much longer all but one of a hundred normal answers may take beside hostile clients."""

STEP = 1.0
"""Seconds of a step: a thousand take longer than all."""

SPELL = 5.0
"""Seconds of asking, after which is seen how many answers count."""

LOOK = 0.1
"""Seconds between two looks at what the host of a virtual machine took."""

ECHO = 0.3
"""Seconds for which answers are late by what it took: it is made up for beside hostile clients, and
so makes them look worse than they are (1.65 instead of 1.05, of the same answers)."""

LONGEST = 4
"""How many times as long as planned a turn may go on until enough of them count."""

LARGE = 2**24
"""Bytes of a picture that is asked for and not read."""


@dataclass
class Found:
    """What came of it.

    Attributes:
        clients: that listened to jobs.
        normal: answers to normal clients, by status.
        alone: seconds of all but one of a hundred of those that count, without hostile clients.
        beside: the same with them.
        counted: how many count, alone and beside.
        wanted: how many should.
        listened: what those were answered who listen.
        ended: how often the server hung up on the others, by kind.
        longest: seconds for which it kept one of them.
        patience: seconds that it has.
    """

    seconds: float
    clients: int
    normal: Counter[str] = field(default_factory=Counter[str])
    alone: float = 0.0
    beside: float = 0.0
    counted: tuple[int, int] = (0, 0)
    wanted: tuple[int, int] = (0, 0)
    listened: Counter[str] = field(default_factory=Counter[str])
    ended: Counter[str] = field(default_factory=Counter[str])
    longest: float = 0.0
    patience: float = PATIENCE

    @property
    def ratio(self) -> float:
        return round(self.beside / self.alone, 2) if self.alone else math.inf

    @property
    def good(self) -> bool:
        """Whether all normal requests were answered well."""
        return set(self.normal) == {"200"}

    @property
    def kept(self) -> bool:
        """Whether they were answered as swiftly (as enough of them say), no hostile one waited for.

        The server looks once in its patience whether more of an answer was read.
        """
        enough = all(map(int.__ge__, self.counted, self.wanted))
        swift = enough and self.ratio <= MOST
        return self.good and swift and self.longest < 3.5 * self.patience


def run(
    folder: Path,
    seconds: float,
    clients: int = 1000,
    turns: int = TURNS,
    patience: float = PATIENCE,
) -> Found:
    """Alternate turns of so many seconds in all, with so many who listen three times as long."""
    found = Found(seconds, clients, patience=patience)
    alone, beside, asked = list[float](), list[float](), int(RATE * seconds / turns / 4)
    options = ["--room", "1", "--patience", str(patience), "--seconds", str(STEP)]
    with Server(folder, *options) as server:
        made = server.until_ready().ended(server.submit(steps=1))
        with (folder / "results" / made["id"] / made["results"][0]["name"]).open("ab") as picture:
            picture.truncate(LARGE)
        server.submit(steps=1000)  # goes on all the time, so that another waits
        waiting = server.submit()
        hostile = server.url, waiting, made["results"][0]["url"], clients, patience
        for _ in range(turns):
            alone += asyncio.run(_ask(server.url, asked, found.normal))
            with crowd(*hostile) as became:
                beside += asyncio.run(_ask(server.url, 3 * asked, found.normal))
            found.listened += became["listened"]
            found.ended += became["ended"]
            found.longest = max(found.longest, became["longest"])
    found.alone, found.beside = _p99(alone), _p99(beside)
    found.counted = len(alone), len(beside)
    found.wanted = turns * asked, 3 * turns * asked
    return found


async def _ask(url: str, wanted: int, statuses: Counter[str]) -> list[float]:
    """Ask until so many answers count; how long each of these took."""
    took, limits = list[float](), httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        end = time.monotonic() + LONGEST * wanted / RATE
        while len(took) < wanted and time.monotonic() < end:
            async with _host() as host:
                asked = await _asked(client, min(SPELL, wanted / RATE), statuses)
            took += [ended - due for due, ended in asked if host.was_quiet(due, ended)]
    return took


async def _asked(
    client: httpx.AsyncClient, seconds: float, statuses: Counter[str]
) -> list[tuple[float, float]]:
    """Ask at an even rate, whether or not others were answered; when each was due, and answered."""
    took = list[tuple[float, float]]()

    async def ask(number: int, due: float) -> None:
        if number % 2:
            answer = await client.get("/api/jobs", params={"limit": 5})
        else:
            answer = await client.get("/v1/models")
        statuses[str(answer.status_code)] += 1
        took.append((due, time.monotonic()))

    await client.get("/v1/models")  # connects
    due = time.monotonic()
    end, asked = due + seconds, list[asyncio.Task[None]]()
    while (due := due + 1 / RATE) < end:
        await asyncio.sleep(due - time.monotonic())
        asked.append(asyncio.create_task(ask(len(asked), due)))
    await asyncio.gather(*asked)
    return took


@dataclass
class Host:
    """What runs a virtual machine: how many seconds of processors it had taken, and when."""

    times: list[float] = field(default_factory=list[float])
    taken: list[float] = field(default_factory=list[float])

    def look(self) -> None:
        """See how many there are."""
        self.times.append(time.monotonic())
        self.taken.append(getattr(psutil.cpu_times(), "steal", 0.0))

    def was_quiet(self, began: float, ended: float) -> bool:
        """Whether it took nothing from `ECHO` before to the look after the end."""
        first, last = bisect_right(self.times, began - ECHO) - 1, bisect_left(self.times, ended)
        return self.taken[last] <= self.taken[max(first, 0)]


@contextlib.asynccontextmanager
async def _host() -> AsyncGenerator[Host]:
    host = Host()

    async def look_on() -> None:
        while True:
            host.look()
            await asyncio.sleep(LOOK)

    looking = asyncio.create_task(look_on())
    await asyncio.sleep(0)  # until it has looked
    try:
        yield host
    finally:
        looking.cancel()
        host.look()


def _p99(times: list[float]) -> float:
    return round(quantiles(times, n=100, method="inclusive")[98], 4) if len(times) > 1 else 0.0


def main() -> None:
    seconds, *clients = sys.argv[1:]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a server inherits it
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), float(seconds), *map(int, clients))
    print(json.dumps(vars(found) | {"ratio": found.ratio, "kept": found.kept}))
    raise SystemExit(not found.kept)


if __name__ == "__main__":
    main()
