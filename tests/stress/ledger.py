"""Kill processes while clients submit jobs; the usage ledger must agree with the jobs' records.

`python -m tests.stress.ledger KILLS JOBS` prints the report as JSON. Clients with several API keys
use several dialects. Some cancel, and some send requests that fail or kill the worker.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from overpaint.server.store.api_keys import ApiKeys
from overpaint.server.store.database import Database
from overpaint.server.store.files import Files
from overpaint.server.store.job_rows import Job
from overpaint.server.store.jobs import Jobs
from overpaint.server.store.tables import usage
from overpaint.server.store.usage import UsageReader
from tests.server.processes import Server, until
from tests.stress.kills import whole

KEYS = ("ann", "bob", "eve")
PROMPTS = ("a cup", "a car", "note", "refuse", "break")
DEADLY = 500
"""One job in this number kills every worker that runs it."""

STEPS, PICTURES = 15, 3
"""Largest number of steps of a job."""

CANCELED = 0.2
"""Share of jobs that are canceled."""

PAUSE = 0.6
"""Longest pause in seconds between kills."""

AGAIN = 0.05
"""Seconds until a client continues after a failed request."""

SIDE = 8
"""Side in pixels of a picture of the scripted engine."""


@dataclass(frozen=True)
class Dialect:
    """Requests of a dialect that submit and cancel a job.

    Attributes:
        path: path of the submission.
        body: makes the body from prompt, seed, steps and number of pictures.
        cancel: makes method and path of the cancellation from the job's id.
        id: reads the job's id from the response.
    """

    path: str
    body: Callable[[str, int, int, int], Mapping[str, Any]]
    cancel: tuple[str, str] = ("", "")
    id: str = "id"


def _ours(prompt: str, seed: int, steps: int, pictures: int) -> dict[str, Any]:
    fields = {"prompt": prompt, "seed": seed, "num_inference_steps": steps, "num_images": pictures}
    return {"request": fields}


def _fal(prompt: str, seed: int, steps: int, pictures: int) -> dict[str, Any]:
    return _ours(prompt, seed, steps, pictures)["request"]


def _replicate(prompt: str, seed: int, steps: int, pictures: int) -> dict[str, Any]:
    inputs = {"prompt": prompt, "seed": seed, "num_inference_steps": steps}
    return {"input": inputs | {"num_outputs": pictures}}


def _openai(prompt: str, seed: int, steps: int, pictures: int) -> dict[str, Any]:
    return {"prompt": prompt, "seed": seed, "steps": steps, "n": pictures}


def _a1111(prompt: str, seed: int, steps: int, pictures: int) -> dict[str, Any]:
    return {"prompt": prompt, "seed": seed, "steps": steps, "batch_size": pictures}


DIALECTS = {
    "native": Dialect("/api/jobs", _ours, ("POST", "/api/jobs/{}/cancel")),
    "replicate": Dialect(
        "/v1/models/any/miniature/predictions", _replicate, ("POST", "/v1/predictions/{}/cancel")
    ),
    "cog": Dialect("/predictions", _replicate, ("POST", "/predictions/{}/cancel")),
    "fal": Dialect(
        "/fal/queue/any/miniature",
        _fal,
        ("PUT", "/fal/queue/any/miniature/requests/{}/cancel"),
        "request_id",
    ),
    "openai": Dialect("/v1/images/generations", _openai),
    "a1111": Dialect("/sdapi/v1/txt2img", _a1111),
}


@dataclass
class Report:
    """Totals of the jobs and of the ledger.

    Attributes:
        jobs: number of jobs in the store, by dialect.
        states: number of jobs by final state.
        entries: number of ledger entries.
        recorded: pictures of each key by the jobs' records.
        on_disk: of these, readable files.
        in_ledger: pictures of each key by the ledger.
        again: jobs that started more than once.
        given_up: jobs that failed because processes died too often.
        wrong: entries with impossible values.
        refused: unexpected responses.
    """

    kills: int = 0
    restarts: int = 0
    jobs: int = 0
    dialects: dict[str, int] = field(default_factory=dict[str, int])
    states: dict[str, int] = field(default_factory=dict[str, int])
    entries: int = 0
    recorded: dict[str, int] = field(default_factory=dict[str, int])
    on_disk: dict[str, int] = field(default_factory=dict[str, int])
    in_ledger: dict[str, int] = field(default_factory=dict[str, int])
    again: int = 0
    given_up: int = 0
    wrong: list[str] = field(default_factory=list[str])
    refused: list[str] = field(default_factory=list[str])

    @property
    def passed(self) -> bool:
        """Return whether ledger, records and files agree."""
        equal = self.recorded == self.on_disk == self.in_ledger
        return equal and self.entries == self.jobs and not self.wrong and not self.refused


class Clients:
    """Clients, one for each key, until `count` jobs are submitted and `enough` is set."""

    def __init__(self, url: str, keys: Mapping[str, str], count: int):
        """Begin.

        Args:
            url: of the server.
            keys: API keys by name.
            count: of jobs, at least.
        """
        self.refused = list[str]()
        self._url, self._count = url, count
        self._numbers, self._lock = itertools.count(), threading.Lock()
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=one) for one in keys.items()]
        for thread in self._threads:
            thread.start()

    def enough(self) -> None:
        """Wait for the clients."""
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, name: str, key: str) -> None:
        rng = random.Random(name)
        headers = {"authorization": f"Bearer {key}", "prefer": "respond-async"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=10) as client:
            while True:
                with self._lock:
                    number = next(self._numbers)
                if number >= self._count and self._enough.is_set():
                    return
                dialect = DIALECTS[rng.choice(list(DIALECTS))]
                prompt = "die" if number % DEADLY == 1 else rng.choice(PROMPTS)
                steps, pictures = rng.randint(1, STEPS), rng.randint(1, PICTURES)
                body = dialect.body(prompt, number, steps, pictures)
                if (answer := self._post(client, "POST", dialect.path, body)) is None:
                    time.sleep(AGAIN)  # it may have been accepted all the same
                elif dialect.cancel[0] and rng.random() < CANCELED:
                    time.sleep(rng.uniform(0, AGAIN))
                    method, path = dialect.cancel
                    self._post(client, method, path.format(answer[dialect.id]))

    def _post(
        self, client: httpx.Client, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Any:
        """Return the response; None if the server died or the job failed."""
        try:
            answer = client.request(method, path, json=body)
        except httpx.HTTPError:
            return None
        if answer.is_success:
            return answer.json()
        # A request that is rejected as invalid is a mistake of this program.
        if answer.status_code in (400, 401, 404, 405, 422) and "refuse" not in str(body):
            self.refused.append(f"{path}: {answer.status_code} {answer.text[:300]}")
        return None


def run(folder: Path, kills: int, count: int, seed: int = 0) -> Report:
    """Submit `count` jobs while `kills` processes are killed."""
    report, rng = Report(), random.Random(seed)
    database = Database(f"sqlite:///{folder / 'jobs.db'}")
    keys = {name: ApiKeys(database).create(name) for name in KEYS}
    jobs = Jobs(database)
    try:
        with Server(folder) as server:
            clients = Clients(server.url, keys, count)
            while report.kills < kills:
                server.until_ready()
                time.sleep(rng.uniform(0, PAUSE))
                match rng.choice(("server", "worker", "restart")):
                    case "server":
                        server.kill()
                        report.kills += 1
                    case "worker":
                        report.kills += server.kill_worker()
                    case _:
                        server.end()
                        server.start()
                        report.restarts += 1
            clients.enough()
            until(lambda: not left(jobs), lambda: f"jobs do not end: {left(jobs)}")
        report.refused = clients.refused
        compare(report, jobs, Files(folder), UsageReader(database))
    finally:
        database.close()
    return report


def left(jobs: Jobs) -> dict[str, int]:
    """Return the number of unfinished jobs by state and number of crashes."""
    waiting = jobs.list_page(None, sys.maxsize, states=("queued", "running"))
    return dict(Counter(f"{job.state}, {job.crashes} crashes" for job in waiting))


def compare(report: Report, jobs: Jobs, files: Files, ledger: UsageReader) -> None:
    """Compare the ledger, the jobs' records, and the files on the disk."""
    with jobs.database.read() as connection:
        entries = {row.job: row for row in connection.execute(select(usage))}
    stored = jobs.list_page(None, sys.maxsize)
    names = {ledger.find_digest(name): name for name in KEYS}
    recorded, on_disk = Counter[str](), Counter[str]()
    for job in stored:
        made = (job.result or {}).get("files", [])
        recorded[names[job.key]] += len(made)
        on_disk[names[job.key]] += sum(
            whole(files.get_results_folder(job.id) / name, SIDE) for name in made
        )
        entry = entries[job.id]
        used = (entry.megapixel_steps, entry.device_seconds)
        same = (entry.key, entry.model, entry.state, entry.ended, entry.pictures)
        if same != (job.key, job.model, job.state, job.ended, len(made)) or not fits(job, *used):
            report.wrong.append(f"{job.id} {job.state}, attempt {job.attempt}, {made}: {entry}")
    report.jobs, report.entries = len(stored), len(entries)
    report.dialects = dict(Counter(job.origin.dialect for job in stored))
    report.states = dict(Counter(job.state for job in stored))
    report.again = sum(job.attempt > 1 for job in stored)
    report.given_up = sum("given up" in (job.error or "") for job in stored)
    report.recorded, report.on_disk = dict(recorded), dict(on_disk)
    report.in_ledger = {total.name: total.pictures for total in ledger.sum_usage("key")}


def fits(job: Job, megapixel_steps: float, seconds: float) -> bool:
    """Return whether the attempt that ended can have these costs with the scripted engine."""
    steps, wanted = round(1000 * seconds), job.request["num_inference_steps"]
    exact = round(1e6 * megapixel_steps) == steps * job.request["num_images"] * SIDE**2
    begun = job.attempt > 0 and "given up" not in (job.error or "")
    match job.state:
        case "succeeded":
            return exact and steps == wanted
        case "failed":
            return exact and steps == (wanted + 1) // 2 * begun
        case _:
            return exact and 0 <= steps <= wanted * begun


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), *map(int, sys.argv[1:]))
    print(json.dumps(asdict(report) | {"passed": report.passed}))
    raise SystemExit(not report.passed)


if __name__ == "__main__":
    main()
