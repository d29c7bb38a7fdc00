"""Cancel jobs of the miniature while many run; each must end within one step.

`python -m tests.stress.cancel JOBS` prints the report as JSON. It counts the steps that the engine
makes after the client has the response: the current step may end, and none may follow.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.server.processes import Server, until
from tests.server.watched import Tick, ticks

TOGETHER = 8
"""Jobs that run at once, of which one is canceled at a time."""

STEPS = 400
MAX_STEPS_BEFORE_CANCEL = 50
"""Largest number of steps after which a job is canceled."""


@dataclass
class Report:
    """Steps of canceled jobs after the cancellation.

    Attributes:
        ended: number of jobs by steps that ended after the response.
        begun: number of jobs by steps that began after the response.
        step: mean seconds of a step.
    """

    jobs: int = 0
    states: dict[str, int] = field(default_factory=dict[str, int])
    ended: dict[int, int] = field(default_factory=dict[int, int])
    begun: dict[int, int] = field(default_factory=dict[int, int])
    step: float = 0.0

    @property
    def passed(self) -> bool:
        return self.states == {"canceled": self.jobs} and max(self.ended) <= 1


def run(server: Server, folder: Path, count: int, seed: int = 0) -> Report:
    """Cancel `count` jobs of a server with the watched engine."""
    report, rng = Report(count), random.Random(seed)
    live: list[str] = []
    answered: dict[str, float] = {}
    while len(answered) < count:
        while len(live) < TOGETHER:
            live.append(server.submit(steps=STEPS, seed=len(answered) + len(live)))
        name, wanted = live.pop(rng.randrange(TOGETHER)), rng.randint(1, MAX_STEPS_BEFORE_CANCEL)
        until(lambda n=name, w=wanted: (server.job(n)["done"] or 0) >= w, "it does not go on")
        server.client.post(f"/api/jobs/{name}/cancel").raise_for_status()
        answered[name] = time.monotonic()
    for name in live:
        server.client.post(f"/api/jobs/{name}/cancel").raise_for_status()
    states = [server.ended(name)["state"] for name in answered]
    for name in live:
        server.ended(name)
    noted = ticks(folder / "ticks.jsonl")
    report.states = dict(Counter(states))
    report.ended = dict(Counter(_count(noted, name, at, "ended") for name, at in answered.items()))
    report.begun = dict(Counter(_count(noted, name, at, "began") for name, at in answered.items()))
    report.step = round(sum(tick.ended - tick.began for tick in noted) / len(noted), 4)
    return report


def _count(noted: list[Tick], name: str, at: float, when: str) -> int:
    """Return the steps of a job that began, or ended, after a moment."""
    return sum(name in tick.stepped and getattr(tick, when) > at for tick in noted)


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with Server(folder, "--engine", "watched") as server:
            report = run(server.until_ready(), folder, int(sys.argv[1]))
    print(json.dumps(asdict(report) | {"passed": report.passed}))
    raise SystemExit(not report.passed)


if __name__ == "__main__":
    main()
