"""Make a server's disk and database fail; accepted jobs must end, and no file may be corrupt.

`python -m tests.stress.disk` makes every write, fsync and rename fail, and the database, one after
another. `python -m tests.stress.disk --full` fills a tmpfs that only the server uses (Linux). Both
print the report as JSON.
"""

from __future__ import annotations

import argparse
import base64
import errno
import io
import itertools
import json
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from overpaint.server.store.job_rows import ENDED
from overpaint.system.atomic_files import PARTIAL_SUFFIX
from tests.server import faults
from tests.server.processes import Server, until

CODES = {errno.ENOSPC: 507, errno.EIO: 503}
"""Status of the response by the error of the disk."""

OLD = 5
"""Jobs that run, and as many that wait, while something fails."""

SIZE = 160 * 2**20
"""Bytes of the real disk: more than the server needs free to accept a job."""

TMPFS = 'mount -t tmpfs -o size="$0" tmpfs "$1" && shift && exec "$@"'


@dataclass
class Report:
    """Results of a test.

    Attributes:
        answers: number of responses by request and status.
        wrong: responses with an unexpected status.
        corrupt: files that cannot be read.
    """

    faults: int = 0
    answers: dict[str, int] = field(default_factory=dict[str, int])
    wrong: list[str] = field(default_factory=list[str])
    jobs: int = 0
    states: dict[str, int] = field(default_factory=dict[str, int])
    ended_twice: int = 0
    corrupt: list[str] = field(default_factory=list[str])
    restarts: int = 0

    @property
    def passed(self) -> bool:
        """Return whether the server behaved as it must."""
        return not (self.wrong or self.ended_twice or self.corrupt or self.restarts)


class DiskTest:
    """A server, and requests to it while its disk or database fails."""

    def __init__(self, folder: Path, server: Server):
        """Start without jobs.

        Args:
            folder: the server's data, as seen from here.
            server: to be asked.
        """
        self.folder, self.server = folder, server.until_ready()
        self.report, self.names = Report(), list[str]()
        self._numbers = itertools.count()
        self._pids = self._processes()

    def _processes(self) -> list[int | None]:
        worker = self.server.worker
        return [self.server.process.pid, worker.pid if worker else None]

    def picture(self) -> bytes:
        """Return a different picture each time."""
        buffer, number = io.BytesIO(), next(self._numbers)
        Image.new("RGB", (8, 8), (number % 256, number // 256, 3)).save(buffer, "PNG")
        return buffer.getvalue()

    def body(self, picture: bytes, steps: int = 2) -> dict[str, Any]:
        image = {"data": base64.b64encode(picture).decode()}
        return {"request": {"image": image, "prompt": "", "num_inference_steps": steps, "seed": 1}}

    def accept(self, picture: bytes, steps: int = 2) -> None:
        """Submit a job that the server must accept."""
        answer = self.server.client.post("/api/jobs", json=self.body(picture, steps))
        self.expect("healed", answer.status_code, {201})
        if answer.status_code == 201:
            self.names.append(answer.json()["id"])

    def expect(self, what: str, status: int, good: Iterable[int]) -> None:
        """Record a response."""
        self.report.answers[str(status)] = self.report.answers.get(str(status), 0) + 1
        if status not in good:
            self.report.wrong.append(f"{what}: {status}")

    def refused(self, what: str, picture: bytes, good: set[int]) -> None:
        """Send an upload and a job that the server cannot accept."""
        client = self.server.client
        self.expect(what, client.post("/api/files", content=picture).status_code, good)
        answer = client.post("/api/jobs", json=self.body(picture))
        self.expect(what, answer.status_code, good)
        self.report.faults += 1

    def ended(self) -> None:
        """Check that every accepted job ends, and that there are no others."""
        for name in self.names:
            job = self.server.ended(name)
            self.report.ended_twice += sum(k in ENDED for k in self.server.kinds(name)) != 1
            for made in job["results"]:
                answer = self.server.client.get(made["url"])
                try:
                    Image.open(io.BytesIO(answer.content)).load()
                except OSError as error:
                    self.report.corrupt.append(f"{made['url']}: {answer.status_code} {error}")
        self.report.jobs = len(self.names)
        self.report.states = dict(Counter(self.server.job(name)["state"] for name in self.names))
        self.report.restarts = self._processes() != self._pids

    def inspect(self) -> None:
        """Check the files on the disk."""
        report = self.report
        report.corrupt += [str(path) for path in self.folder.rglob(f"*{PARTIAL_SUFFIX}")]
        with tempfile.TemporaryDirectory() as copied:
            for path in self.folder.glob("jobs.db*"):
                shutil.copy(path, copied)
            store = sqlite3.connect(Path(copied) / "jobs.db")
            (integrity,) = store.execute("PRAGMA integrity_check").fetchone()
            (count,) = store.execute("SELECT count(*) FROM jobs").fetchone()
            store.close()
        if integrity != "ok":
            report.corrupt.append(f"jobs.db: {integrity}")
        if count != len(self.names):
            report.wrong.append(f"{count} jobs in the store")


@contextmanager
def failing(test: DiskTest, who: str, point: str, code: int = errno.ENOSPC) -> Generator[None]:
    """Make a point fail during the block."""
    faults.fail(test.folder, who, point, code)
    try:
        yield
    finally:
        faults.heal(test.folder)


def inject(folder: Path, codes: Iterable[int] = tuple(CODES)) -> Report:
    """Fail at every point of the server and the worker, with each error."""
    with Server(folder, "--faults", "--seconds", "0.01") as server:
        test = DiskTest(folder, server)
        for code, point in itertools.product(codes, faults.FILES):
            picture = test.picture()
            with failing(test, "server", point, code):
                test.refused(f"{point} {os.strerror(code)}", picture, {CODES[code]})
            test.accept(picture)
        for point in faults.DATABASE:
            for steps in [100] * OLD:
                test.accept(test.picture(), steps)
            picture = test.picture()
            with failing(test, "server", point):
                refused_by_store(test, point, picture)
            test.accept(picture)
        for point in faults.FILES:
            with failing(test, "worker", point):
                test.accept(test.picture())
                name = test.names[-1]
                until(lambda name=name: waits(server, name), f"{point}: it does not wait")
                test.report.faults += 1
            if (state := server.ended(name)["state"]) != "succeeded":
                test.report.wrong.append(f"{point} in the worker: {state}")
        test.ended()
    test.inspect()
    return test.report


def refused_by_store(test: DiskTest, point: str, picture: bytes) -> None:
    """Check that requests fail at once while the store fails."""
    client, known = test.server.client, test.names[-1]
    answer = client.post("/api/jobs", json=test.body(picture))
    test.expect(f"job, {point}", answer.status_code, {503})
    for path in (f"/api/jobs/{known}", "/api/jobs", "/readyz"):
        test.expect(f"{path}, {point}", client.get(path).status_code, {503})
    answer = client.post(f"/api/jobs/{known}/cancel")
    test.expect(f"cancel, {point}", answer.status_code, {503})
    test.report.faults += 1


def waits(server: Server, name: str) -> bool:
    """Return whether a finished job waits for space on the disk."""
    with server.client.stream("GET", f"/api/jobs/{name}/events") as story:
        for line in story.iter_lines():
            if "disk is full" in line:
                return True
    return False


def fill(folder: Path) -> Report:
    """Fill a real disk while jobs run, then free the space.

    Raises:
        RuntimeError: the system does not let us mount one.
    """
    wrapper = ("unshare", "--mount", "--map-root-user", "sh", "-c", TMPFS, str(SIZE), str(folder))
    with Server(folder, "--seconds", "0.02", wrapper=wrapper) as server:
        inside = Path(f"/proc/{server.process.pid}/root{folder}")
        test, filler = DiskTest(inside, server), inside / "filler"
        for _ in range(3):
            for steps in [60] * OLD:
                test.accept(test.picture(), steps)
            with filler.open("wb") as file:
                try:
                    while True:
                        os.write(file.fileno(), bytes(2**12))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
            test.refused("full", test.picture(), {507, 503})
            test.expect("/readyz", server.client.get("/readyz").status_code, {503})
            until(lambda: painted(server, test.names), "jobs do not go on")
            filler.unlink()
            server.until_ready()
            test.accept(test.picture())
            test.ended()
        test.inspect()
    return test.report


def painted(server: Server, names: Iterable[str]) -> bool:
    """Return whether all pictures are painted, even if they are not written."""
    jobs = [server.job(name) for name in names]
    return all(job["state"] in ENDED or (job["done"] or 0) == job["total"] for job in jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = (fill if given.full else inject)(Path(folder))
    print(json.dumps(asdict(report) | {"passed": report.passed}))
    raise SystemExit(not report.passed)


if __name__ == "__main__":
    main()
