"""Submit ten times as many jobs as the server can run; it must reject at once, and finish the
others.

`python -m tests.stress.overload SECONDS` prints the report as JSON. Jobs arrive at random
(Poisson), independent of responses. Half of them have a picture.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import linear_regression, quantiles
from typing import Any

import httpx
import psutil
from PIL import Image

from tests.server.processes import Server

TICK, STEPS, ROOM = 0.1, 16, 8
"""Seconds of a step, steps of a job, and jobs that run at once: the server runs five jobs a
second."""

RATE = 10 * ROOM / (TICK * STEPS)
"""Jobs per second."""

QUEUE = 100
SAMPLE = 1.0
"""Seconds between two measurements of memory."""

FLAT = 2**20
"""Allowed growth of memory in bytes per minute."""

SWIFT = 0.1
"""Allowed 99th percentile of rejections in seconds."""


@dataclass
class Report:
    """Latencies in seconds, and memory in bytes."""

    seconds: float
    asked: int = 0
    answers: dict[str, int] = field(default_factory=dict[str, int])
    rejection_p50: float = 0.0
    rejection_p99: float = 0.0
    acceptance_p99: float = 0.0
    states: dict[str, int] = field(default_factory=dict[str, int])
    growth: dict[str, float] = field(default_factory=dict[str, float])  # bytes a minute
    most: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def all_ended(self) -> bool:
        """Return whether accepted jobs succeeded, and others were rejected because the queue was
        full."""
        done = self.states == {"succeeded": self.answers.get("201", 0)}
        return done and set(self.answers) == {"201", "429"}

    @property
    def passed(self) -> bool:
        """Return whether rejections were also fast, and memory constant."""
        swift = self.rejection_p99 < SWIFT
        return self.all_ended and swift and max(self.growth.values()) < FLAT


def run(folder: Path, seconds: float, queue: int = QUEUE, seed: int = 0) -> Report:
    """Submit jobs for `seconds` to a server whose queue holds `queue` jobs."""
    options = ("--seconds", str(TICK), "--room", str(ROOM), "--queue", str(queue))
    with Server(folder, *options) as server:
        return asyncio.run(_run(server.until_ready(), seconds, random.Random(seed)))


async def _run(server: Server, seconds: float, rng: random.Random) -> Report:
    took: dict[int, list[float]] = {}
    accepted: list[str] = []
    sizes: dict[str, list[tuple[float, int]]] = {"server": [], "worker": []}
    looking = asyncio.create_task(_look(server, sizes))
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:

        async def ask(number: int, due: float) -> None:
            answer = await client.post("/api/jobs", json=_body(number))
            took.setdefault(answer.status_code, []).append(time.monotonic() - due)
            if answer.status_code == 201:
                accepted.append(answer.json()["id"])

        asked: list[asyncio.Task[None]] = []
        due = time.monotonic()
        end = due + seconds
        while (due := due + rng.expovariate(RATE)) < end:
            await asyncio.sleep(due - time.monotonic())
            asked.append(asyncio.create_task(ask(len(asked), due)))
        await asyncio.gather(*asked)
    looking.cancel()
    answers = {str(status): len(times) for status, times in took.items()}
    report = Report(seconds, len(asked), answers)
    report.rejection_p50 = _percentile(took.get(429, []), 50)
    report.rejection_p99 = _percentile(took.get(429, []), 99)
    report.acceptance_p99 = _percentile(took.get(201, []), 99)
    for name, points in sizes.items():
        late = points[len(points) // 2 :]  # after the warm-up
        report.growth[name] = round(linear_regression(*zip(*late, strict=True)).slope * 60)
        report.most[name] = max(size for _, size in points)
    jobs = [await asyncio.to_thread(server.ended, name) for name in accepted]
    report.states = dict(Counter(job["state"] for job in jobs))
    return report


def _body(number: int) -> dict[str, Any]:
    """Return a job; every other one has a picture, which is different each time."""
    request: dict[str, Any] = {"prompt": "a cup", "seed": number, "num_inference_steps": STEPS}
    if number % 2:
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (number % 256, number // 256 % 256, 7)).save(buffer, "PNG")
        request["image"] = {"data": base64.b64encode(buffer.getvalue()).decode()}
    return {"request": request}


async def _look(server: Server, sizes: dict[str, list[tuple[float, int]]]) -> None:
    """Measure the memory of server and worker periodically."""
    processes = {"server": psutil.Process(server.process.pid), "worker": server.worker}
    while True:
        for name, process in processes.items():
            if process:
                sizes[name].append((time.monotonic(), process.memory_info().rss))
        await asyncio.sleep(SAMPLE)


def _percentile(times: list[float], percent: int) -> float:
    return round(quantiles(times, n=100, method="inclusive")[percent - 1], 4) if times else 0.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), float(sys.argv[1]))
    print(json.dumps(asdict(report) | {"passed": report.passed}))
    raise SystemExit(not report.passed)


if __name__ == "__main__":
    main()
