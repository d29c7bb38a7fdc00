"""Freeze one of two servers on a Postgres past its lease; the store must reject its results.

`python -m tests.stress.frozen ROUNDS` prints the report as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from overpaint.server.store.job_rows import ENDED
from tests.server.postgres import database, postgres
from tests.server.processes import Server, until

JOBS = 4
"""Jobs of a round: few, because the worker's messages must fit into its pipe while the server is
frozen."""


@dataclass
class Report:
    """Counts of the jobs of all rounds.

    Attributes:
        taken_over: jobs that the other server ran.
        late: of these, jobs whose results the frozen server had written before.
        left: files of rejected results that were not removed.
    """

    rounds: int = 0
    jobs: int = 0
    states: dict[str, int] = field(default_factory=dict[str, int])
    taken_over: int = 0
    late: int = 0
    left: int = 0
    ended_twice: int = 0
    results_missing: int = 0

    @property
    def passed(self) -> bool:
        """Return whether each job ended once, and at least one result was rejected."""
        good = self.states == {"succeeded": self.jobs} and self.late > 0
        return good and not (self.left or self.ended_twice or self.results_missing)


def run(folder: Path, url: str, rounds: int, seed: int = 0) -> Report:
    """Freeze a server and its worker in each round.

    Args:
        folder: folder of both servers.
        url: URL of an empty database.
        rounds: number of rounds.
        seed: seed of the random pauses.
    """
    report, names, rng = Report(), list[str](), random.Random(seed)
    options = ("--store", url, "--lease", "1.5", "--seconds", "0.04")
    with Server(folder, *options) as one, Server(folder, *options) as other:
        for _ in range(rounds):
            freeze(other.until_ready())
            one.until_ready()
            own = [one.submit(steps=rng.randint(10, 40)) for _ in range(JOBS)]
            until(lambda own=own: all(begun(one, name) for name in own), "none begins")
            one.freeze()
            # Its worker continues for a while, but nobody receives its messages.
            enough = rng.randint(1, JOBS)
            until(lambda own=own, n=enough: written(folder, own) >= n, "the worker stands still")
            if worker := one.worker:
                worker.suspend()
            thaw(other)
            for name in own:
                job = other.ended(name)
                report.taken_over += job["attempt"] > 1
                report.late += bool(foreign(folder, job))
            thaw(one)
            names += own
            report.rounds += 1
        freeze(other)
        one.ended(one.submit())  # behind all that it had left to say
        thaw(other)
        jobs = [one.job(name) for name in names]
        report.ended_twice = sum(
            sum(kind in ENDED for kind in one.kinds(name)) != 1 for name in names
        )
    report.jobs = len(jobs)
    report.states = dict(Counter(job["state"] for job in jobs))
    for job in jobs:
        report.left += len(foreign(folder, job))
        results = folder / "results" / job["id"]
        report.results_missing += not all((results / r["name"]).exists() for r in job["results"])
    return report


def foreign(folder: Path, job: Any) -> list[Path]:
    """Return the files of attempts that did not end their job."""
    results = (folder / "results" / job["id"]).iterdir()
    return [path for path in results if not path.name.startswith(f"{job['attempt']}-")]


def begun(server: Server, name: str) -> bool:
    """Return whether the worker has or had a job."""
    job = server.job(name)
    return bool(job["done"]) or job["state"] in ENDED


def freeze(server: Server) -> None:
    server.freeze()
    if worker := server.worker:
        worker.suspend()


def thaw(server: Server) -> None:
    if worker := server.worker:
        worker.resume()
    server.thaw()


def written(folder: Path, names: Iterable[str]) -> int:
    """Return the number of jobs with results on the disk."""
    return sum(any((folder / "results" / name).glob("*.png")) for name in names)


def main() -> None:
    with postgres() as server, tempfile.TemporaryDirectory() as folder:
        if not server:
            raise SystemExit("no Postgres here: apt-get install postgresql")
        report = run(Path(folder), database(server), int(sys.argv[1]))
    print(json.dumps(asdict(report) | {"passed": report.passed}))
    raise SystemExit(not report.passed)


if __name__ == "__main__":
    main()
