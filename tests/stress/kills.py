"""Kill servers and workers at random while clients submit jobs; every acknowledged job must end
once.

`python -m tests.stress.kills KILLS JOBS [--engine miniature]` prints the report as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
from PIL import Image

from overpaint.server.store.database import Database
from overpaint.server.store.files import Files
from overpaint.server.store.job_rows import ENDED
from overpaint.server.store.jobs import Jobs
from tests.server.processes import Server, until

PROMPTS = ("a cup", "note", "a car", "refuse", "a fish")
CLIENTS = 4
RETRY_S = 0.1
"""Seconds until a client repeats a rejected request."""


@dataclass(frozen=True)
class Engine:
    """Size of the jobs for an engine, and pace of the kills.

    Attributes:
        steps: largest number of steps of a job.
        queue: jobs that may wait.
        pause: longest pause in seconds between kills.
        side: side of a picture in pixels.
    """

    steps: int
    queue: int
    pause: float
    side: int


ENGINES = {
    "fake": Engine(steps=15, queue=10_000, pause=0.5, side=8),
    "miniature": Engine(steps=4, queue=40, pause=2.0, side=128),
}


@dataclass
class Report:
    """Counts of acknowledged jobs.

    Attributes:
        kills: processes that were killed.
        of_servers: kills of servers; the others are of workers.
        lost: jobs that do not exist or never ended.
        given_up: jobs that failed because a process died too often while they ran.
    """

    engine: str
    kills: int = 0
    of_servers: int = 0
    acknowledged: int = 0
    states: dict[str, int] = field(default_factory=dict[str, int])
    lost: int = 0
    ended_twice: int = 0
    results_missing: int = 0
    given_up: int = 0
    most_attempts: int = 0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Return whether every acknowledged job ended once, with its results."""
        ended = sum(self.states.values())
        wrong = self.lost or self.ended_twice or self.results_missing
        return not wrong and ended == self.acknowledged


def run(folder: Path, kills: int, count: int, engine: str = "fake", seed: int = 0) -> Report:
    """Submit `count` jobs while `kills` processes are killed."""
    began = time.monotonic()
    rng = random.Random(seed)
    asked = ENGINES[engine]
    server = Server(folder, "--engine", engine, "--queue", str(asked.queue))
    acknowledged, numbers, lock = list[str](), itertools.count(), threading.Lock()
    killed, broken = threading.Event(), list[str]()

    def submit() -> None:
        own = random.Random(threading.get_ident())
        with httpx.Client(base_url=server.url, timeout=30) as client:
            while True:
                with lock:
                    number = next(numbers)
                if number >= count and killed.is_set():
                    return
                fields = {
                    "prompt": own.choice(PROMPTS),
                    "num_inference_steps": own.randint(1, asked.steps),
                    "seed": number,
                }
                token = {"Idempotency-Key": f"job {number}"}
                while True:  # until it is acknowledged, even if the server dies several times
                    try:
                        answer = client.post("/api/jobs", json={"request": fields}, headers=token)
                    except httpx.HTTPError:
                        time.sleep(0.02)
                        continue
                    if answer.status_code == 201:
                        with lock:
                            acknowledged.append(answer.json()["id"])
                        break
                    if answer.status_code not in (429, 503):
                        broken.append(f"{answer.status_code} {answer.text}")
                    time.sleep(RETRY_S)

    clients = [threading.Thread(target=submit, daemon=True) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    report = Report(engine)
    while report.kills < kills:
        if rng.random() < 0.8:  # mostly while jobs are under way, sometimes while it starts
            server.until_ready()
        time.sleep(rng.uniform(0, asked.pause))
        if rng.random() < 0.5:
            server.kill()
            report.of_servers += 1
            report.kills += 1
        else:
            report.kills += server.kill_worker()
    killed.set()
    for client in clients:
        client.join()
    jobs, files = Jobs(Database(f"sqlite:///{folder / 'jobs.db'}")), Files(folder)
    try:
        until(lambda: not jobs.list_page(None, 1, states=("queued", "running")), "jobs do not end")
        check(report, jobs, files, acknowledged, asked.side)
    finally:
        server.close()
        jobs.database.close()
    if broken:
        raise AssertionError(f"answered {broken[:3]}")
    report.seconds = round(time.monotonic() - began, 1)
    return report


def check(report: Report, jobs: Jobs, files: Files, acknowledged: list[str], side: int) -> None:
    """Check every acknowledged job in the store and on the disk."""
    report.acknowledged = len(set(acknowledged))
    states = Counter[str]()
    for name in set(acknowledged):
        job = jobs.get(name)
        if job is None or job.state not in ENDED:
            report.lost += 1
            continue
        states[job.state] += 1
        report.most_attempts = max(report.most_attempts, job.attempt)
        report.ended_twice += sum(said.kind in ENDED for said in jobs.list_history(name)) != 1
        report.given_up += "given up" in (job.error or "")
        if job.state == "succeeded":
            made = [files.get_results_folder(name) / file for file in (job.result or {})["files"]]
            report.results_missing += not all(whole(path, side) for path in made)
    report.states = dict(states)


def whole(path: Path, side: int) -> bool:
    """Return whether a square picture can be read to its end."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.size == (side, side)
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int)
    parser.add_argument("jobs", type=int)
    parser.add_argument("--engine", choices=ENGINES, default="fake")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), given.kills, given.jobs, given.engine)
    print(json.dumps(asdict(report) | {"passed": report.passed}))
    raise SystemExit(not report.passed)


if __name__ == "__main__":
    main()
