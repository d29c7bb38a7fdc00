"""Attack a server with slow clients; other clients must get responses as fast as without them.

`python -m tests.stress.hostile SECONDS [CLIENTS]` prints the report as JSON. Turns with and without
a `crowd` of slow clients alternate: CLIENTS of them follow a job, and as many stall. Beside the
latency over all responses, the report has the median over spells of ten seconds. If the two differ
much, the machine or the server paused.
"""

from __future__ import annotations

import asyncio
import json
import math
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median, quantiles

import httpx

from tests.server.processes import Server
from tests.stress.crowd import crowd

RATE = 20.0
"""Normal requests per second."""

TURNS = 3
"""Turns of each kind."""

PATIENCE = 30.0
"""Timeout in seconds of the server for stalled clients."""

MOST = 1.5
"""Largest allowed ratio of the 99th percentiles with and without hostile clients."""

STEP = 1.0
"""Seconds of a step, so that a thousand steps take longer than the test."""

SPELL = 10.0
"""Seconds of a spell."""

LARGE = 2**24
"""Bytes of the picture that hostile clients do not read."""


@dataclass
class Report:
    """Latencies of normal clients, and results of hostile ones.

    Attributes:
        clients: number of clients that follow a job.
        normal: number of responses to normal clients, by status.
        alone: 99th percentile of the latency in seconds without hostile clients.
        beside: 99th percentile with hostile clients.
        spells: both values as the median over spells.
        listened: number of clients that follow a job, by status line.
        ended: number of connections that the server closed, by kind.
        longest: longest time in seconds that the server kept one.
        patience: timeout of the server in seconds.
    """

    seconds: float
    clients: int
    normal: Counter[str] = field(default_factory=Counter[str])
    alone: float = 0.0
    beside: float = 0.0
    spells: tuple[float, float] = (0.0, 0.0)
    listened: Counter[str] = field(default_factory=Counter[str])
    ended: Counter[str] = field(default_factory=Counter[str])
    longest: float = 0.0
    patience: float = PATIENCE

    @property
    def ratio(self) -> float:
        return round(self.beside / self.alone, 2) if self.alone else math.inf

    @property
    def good(self) -> bool:
        """Return whether all normal requests succeeded."""
        return set(self.normal) == {"200"}

    @property
    def passed(self) -> bool:
        """Return whether they were also fast, and hostile clients were disconnected.

        The server looks once in its patience whether more of an answer was read.
        """
        return self.good and self.ratio <= MOST and self.longest < 3.5 * self.patience


def run(
    folder: Path,
    seconds: float,
    clients: int = 1000,
    turns: int = TURNS,
    patience: float = PATIENCE,
) -> Report:
    """Alternate turns; those with hostile clients take three times as long."""
    report = Report(seconds, clients, patience=patience)
    alone, beside = list[list[float]](), list[list[float]]()
    options = ["--room", "1", "--patience", str(patience), "--seconds", str(STEP)]
    with most_open_files(), Server(folder, *options) as server:
        made = server.until_ready().ended(server.submit(steps=1))
        with (folder / "results" / made["id"] / made["results"][0]["name"]).open("ab") as picture:
            picture.truncate(LARGE)
        server.submit(steps=1000)  # goes on all the time, so that another waits
        waiting = server.submit()
        hostile = server.url, waiting, made["results"][0]["url"], clients, patience
        for _ in range(turns):
            alone += asyncio.run(_ask(server.url, seconds / turns / 4, report.normal))
            with crowd(*hostile) as became:
                beside += asyncio.run(_ask(server.url, seconds / turns * 3 / 4, report.normal))
            report.listened += became["listened"]
            report.ended += became["ended"]
            report.longest = max(report.longest, became["longest"])
            report.alone, report.beside = (_p99([*chain(*spells)]) for spells in (alone, beside))
            report.spells = _median(alone), _median(beside)
            print(f"alone {report.alone} s, beside {report.beside} s", file=sys.stderr)
    return report


@contextmanager
def most_open_files() -> Generator[None]:
    """Allow this process, and servers that it starts, as many open files as the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _ask(url: str, seconds: float, statuses: Counter[str]) -> list[list[float]]:
    """Send requests for as many spells as fit; return the latencies of each."""
    limits, spells = httpx.Limits(max_connections=32), max(1, round(seconds / SPELL))
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
        return [await _asked(client, seconds / spells, statuses) for _ in range(spells)]


async def _asked(client: httpx.AsyncClient, seconds: float, statuses: Counter[str]) -> list[float]:
    """Send requests at a constant rate; return their latencies."""
    took = list[float]()

    async def ask(number: int, due: float) -> None:
        if number % 2:
            answer = await client.get("/api/jobs", params={"limit": 5})
        else:
            answer = await client.get("/v1/models")
        statuses[str(answer.status_code)] += 1
        took.append(time.monotonic() - due)

    await client.get("/v1/models")  # connects
    due = time.monotonic()
    end, asked = due + seconds, list[asyncio.Task[None]]()
    while (due := due + 1 / RATE) < end:
        await asyncio.sleep(due - time.monotonic())
        asked.append(asyncio.create_task(ask(len(asked), due)))
    await asyncio.gather(*asked)
    return took


def _p99(times: list[float]) -> float:
    return round(quantiles(times, n=100, method="inclusive")[98], 4)


def _median(spells: list[list[float]]) -> float:
    return round(median(map(_p99, spells)), 4)


def main() -> None:
    seconds, *clients = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), float(seconds), *map(int, clients))
    print(json.dumps(vars(report) | {"ratio": report.ratio, "passed": report.passed}))
    raise SystemExit(not report.passed)


if __name__ == "__main__":
    main()
