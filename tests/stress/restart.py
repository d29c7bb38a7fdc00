"""Kill a server with many queued jobs, and measure the time until it is ready again.

`python -m tests.stress.restart JOBS [ROUNDS]` prints the report as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from overpaint.request import Request
from overpaint.server.store.database import Database
from overpaint.server.store.files import Files
from overpaint.server.store.job_rows import NewJob
from overpaint.server.store.jobs import Jobs
from tests.server.processes import ROOT, Server

MAX_RATIO = 1.5
"""Allowed duration of a restart with queued jobs, in durations of one without jobs."""

ROUNDS = 3
"""Fewer than `MAX_CRASHES`, so that no job is given up."""

IMPORTS = {
    "server": "import uvicorn, overpaint.server.app, tests.server.fake_server",
    "worker": "import multiprocessing.spawn, tests.server.fake_server",
}


@dataclass
class Report:
    """Medians of seconds from the start of the process.

    Attributes:
        ready: until the server with queued jobs is ready.
        empty: until a server without jobs is ready.
        imports: to import the modules of the server, then those of its worker.
        queued: jobs in the store after the last start.
    """

    jobs: int
    ready: float
    empty: float
    imports: dict[str, float]
    queued: int

    @property
    def passed(self) -> bool:
        return self.ready < MAX_RATIO * self.empty and self.queued == self.jobs


def run(folder: Path, jobs: int, rounds: int = ROUNDS) -> Report:
    """Kill and start a server in each round."""
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    fill(folder / "full", jobs)
    empty, _ = restarted(folder / "empty", rounds)
    ready, queued = restarted(folder / "full", rounds)
    imports = {name: imported(code, rounds) for name, code in IMPORTS.items()}
    return Report(jobs, ready, empty, imports, queued)


def fill(folder: Path, count: int) -> None:
    """Add queued jobs to a store."""
    files, database = Files(folder), Database(f"sqlite:///{folder / 'jobs.db'}")
    jobs = Jobs(database)
    for number in range(count):
        # Enough steps that no job ends during the test.
        stored, _ = files.pack_request(
            Request(prompt="a cup", seed=number, num_inference_steps=1000)
        )
        jobs.submit(NewJob(f"{number:032x}", f"key{number % 100}", "miniature", stored, 1.0))
    database.close()


def restarted(folder: Path, rounds: int) -> tuple[float, int]:
    """Return the seconds until a killed server is ready, and its unfinished jobs."""
    times: list[float] = []
    with Server(folder, "--seconds", "0.1") as server:
        for _ in range(rounds):
            server.until_ready()
            began = time.monotonic()
            server.kill()
            server.until_ready()
            times.append(time.monotonic() - began)
    database = Database(f"sqlite:///{folder / 'jobs.db'}")
    counts = Jobs(database).count_by_state()
    database.close()
    return round(median(times), 3), counts["queued"] + counts["running"]


def imported(code: str, rounds: int) -> float:
    """Return the seconds of a Python process that only imports."""
    times: list[float] = []
    for _ in range(rounds):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        times.append(time.monotonic() - began)
    return round(median(times), 3)


def main() -> None:
    jobs, *rounds = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), jobs, *rounds)
    print(json.dumps(asdict(report) | {"passed": report.passed}))
    raise SystemExit(not report.passed)


if __name__ == "__main__":
    main()
