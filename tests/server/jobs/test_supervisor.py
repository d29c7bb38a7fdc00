"""The supervisor publishes each job once, even if the worker, the server or the store fails."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar, cast
from unittest.mock import MagicMock

import psutil
import pytest
from PIL import Image
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as BusyError

from overpaint.engine.messages import JobSucceeded, RunJob, WorkerMessage, WorkerReady
from overpaint.engine.worker import main
from overpaint.events import Notice, Spent, Step
from overpaint.picture import Picture
from overpaint.request import Request
from overpaint.server.jobs.supervisor import (
    CLAIM_BATCH_JOBS,
    JobUpdate,
    Supervisor,
)
from overpaint.server.jobs.worker_process import (
    MAX_RESTART_DELAY_S,
    encode_timeout,
    make_pipe,
    restart_delay_s,
)
from overpaint.server.settings import WorkerSettings
from overpaint.server.store.crashes import MAX_CRASHES
from overpaint.server.store.database import Database
from overpaint.server.store.files import Files
from overpaint.server.store.job_rows import Job, NewJob
from overpaint.server.store.jobs import Jobs
from overpaint.server.store.origins import NativeOrigin, OutputOptions
from overpaint.server.store.usage import UsageReader
from overpaint.testing import ScriptedEngine
from tests.server.conftest import Clock

LONG = 60.0  # until a test gives up


@dataclass
class House:
    """A store, its files, and supervisors on them."""

    folder: Path
    jobs: Jobs
    files: Files
    heard: list[tuple[str, JobUpdate]] = field(default_factory=list[tuple[str, JobUpdate]])
    running: list[Supervisor] = field(default_factory=list[Supervisor])
    changed: threading.Condition = field(default_factory=threading.Condition)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def open(self, seconds: float = 0.0, **changes: Any) -> Supervisor:
        settings: dict[str, Any] = {"poll_interval_s": 0.05} | changes
        made = Supervisor(
            self.jobs,
            self.files,
            partial(ScriptedEngine, seconds),
            owner=f"server{len(self.running)}",
            models=("m",),
            on_update=self.hear,
            settings=WorkerSettings(**settings),
        )
        made.start()
        self.running.append(made)
        return made

    def hear(self, name: str, heard: JobUpdate) -> None:
        with self.changed:
            self.heard.append((name, heard))
            self.changed.notify_all()

    def submit(
        self,
        prompt: str = "",
        steps: int = 3,
        image: bytes | None = None,
        priority: int = 0,
        **origin: Any,
    ) -> str:
        name = f"job{next(self.numbers)}"
        asked = Request(prompt=prompt, num_inference_steps=steps, seed=5, num_images=2)
        request = asked.model_copy(update={"image": Picture(data=image)}) if image else asked
        stored, files = self.files.pack_request(request)
        self.jobs.submit(
            NewJob(
                name, "", "m", stored, 1.0, NativeOrigin(**origin), files=files, priority=priority
            )
        )
        for supervisor in self.running:
            supervisor.wake()
        return name

    def until(self, true: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(true, LONG), self.heard[-5:]

    def ended(self, name: str) -> Job:
        self.until(lambda: (name, "ended") in self.heard)
        job = self.jobs.get(name)
        assert job is not None
        return job


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path, Jobs(Database(f"sqlite:///{tmp_path}/jobs.db")), Files(tmp_path))
    yield made
    for supervisor in made.running:
        supervisor.stop()
    made.jobs.database.close()


def test_supervisor_publishes_a_job_s_pictures(house: House) -> None:
    house.open()
    output = OutputOptions(kind="webp", options={"quality": 50}, preview_every=2)
    name = house.submit("note", output=output)
    job = house.ended(name)
    assert job.state == "succeeded"
    assert job.result is not None
    assert job.result["files"] == ["1-0.webp", "1-1.webp"]
    assert job.result["seeds"] == [5, 6]
    for made in job.result["files"]:
        with Image.open(house.files.get_results_folder(name) / made) as image:
            assert (image.format, image.size) == ("WEBP", (8, 8))
    heard = [event for of, event in house.heard if of == name]
    assert [e.done for e in heard if isinstance(e, Step)] == [1, 2, 3]
    assert heard[0] == Notice("noted")
    assert [type(e).__name__ for e in heard].count("PreviewImage") == 1
    kinds = [entry.kind for entry in house.jobs.list_history(name)]
    assert kinds == ["queued", "started", "notice", "succeeded"]


def test_supervisor_failed_job_has_its_error(house: House) -> None:
    house.open()
    refused, broken = house.submit("refuse"), house.submit("break")
    assert house.ended(refused).error == "prompt: Refused"
    assert "defect in Overpaint: ZeroDivisionError" in (house.ended(broken).error or "")


def test_supervisor_restart_delay_grows_with_deaths(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [restart_delay_s(deaths) for deaths in range(6)] == [0, 0, 0, 1, 2, 4]
    assert restart_delay_s(2000) == MAX_RESTART_DELAY_S
    deaths = list[int]()

    def noted(count: int) -> float:
        deaths.append(count)
        return 0.0

    monkeypatch.setattr("overpaint.server.jobs.supervisor.restart_delay_s", noted)
    house.open()
    for steps in (1, 3):
        assert house.ended(house.submit("die", steps)).state == "failed"
        assert house.ended(house.submit()).state == "succeeded"
    in_vain, after_steps = [1, 2, 3, 4, 5], [0, 0, 0, 0, 0]
    assert deaths == [0, *in_vain, *after_steps]


def test_supervisor_unreadable_picture_fails_only_its_job(house: House) -> None:
    house.jobs.submit(NewJob("bad", "", "m", {"prompt": "", "image": {"file": "0" * 64}}, 1.0))
    house.open()
    good = house.submit()
    assert "upload it again" in (house.ended("bad").error or "")
    assert house.ended(good).state == "succeeded"


@pytest.mark.usefixtures("spawned_workers")
def test_worker_starts_without_copies_of_the_pipe_s_handle(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows, a pipe has a handle, which `os.dup` refuses."""

    def refuse(_: int) -> int:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(os, "dup", refuse)
    house.open()
    assert house.ended(house.submit()).state == "succeeded"


def test_pipe_fails_when_a_message_stops_halfway() -> None:
    first, second = make_pipe(0.05)
    with first, second, pytest.raises(BlockingIOError):
        first.send(b"x" * 2**22)


@pytest.mark.parametrize(
    ("seconds", "platform", "encoded"),
    [
        (0.0004, "win32", struct.pack("@L", 1)),
        (60.0, "win32", struct.pack("@L", 60_000)),
        (1.5, "linux", struct.pack("@ll", 1, 500_000)),
    ],
)
def test_timeout_is_encoded_for_the_platform(seconds: float, platform: str, encoded: bytes) -> None:
    assert encode_timeout(seconds, platform) == encoded


def test_supervisor_ignores_jobs_of_other_models(house: House) -> None:
    house.jobs.submit(NewJob("other", "", "sdxl", {"prompt": ""}, 1.0))
    house.open()
    house.ended(house.submit())
    assert house.jobs.count_by_state()["queued"] == 1


def test_supervisor_cancel_ends_queued_and_running_jobs(house: House) -> None:
    supervisor = house.open(0.02)
    name = house.submit(steps=1000)
    house.until(lambda: any(of == name for of, _ in house.heard))
    house.jobs.cancel(name)
    supervisor.wake()
    assert house.ended(name).state == "canceled"
    assert house.ended(house.submit()).state == "succeeded"


def test_supervisor_dead_worker_is_replaced_and_its_jobs_rerun(house: House) -> None:
    supervisor = house.open(0.05)
    names = [house.submit(steps=20) for _ in range(4)]
    house.until(lambda: len({of for of, _ in house.heard}) == 4)
    worker = supervisor._worker  # pyright: ignore[reportPrivateUsage]
    assert worker is not None
    assert worker.process.pid
    os.kill(worker.process.pid, signal.SIGKILL)
    for name in names:
        job = house.ended(name)
        assert (job.state, job.attempt, job.crashes) == ("succeeded", 2, 1)
        assert job.result is not None
        assert job.result["files"] == ["2-0.png", "2-1.png"]
    assert supervisor.restarts == 1


@pytest.mark.parametrize("steps", [1, 3])
def test_supervisor_job_that_kills_workers_fails(house: House, steps: int) -> None:
    """Also at its first step, when the worker has said nothing of it; the others end well."""
    house.open()
    deadly = house.submit("die", steps)
    others = [house.submit(steps=steps) for _ in range(5)]
    found = house.ended(deadly)
    assert (found.state, found.attempt) == ("failed", MAX_CRASHES)
    for name in [*others, house.submit()]:
        assert house.ended(name).state == "succeeded"


def test_supervisor_silent_worker_is_replaced(house: House) -> None:
    supervisor = house.open(step_timeout_s=2.0)
    name = house.submit("hang", steps=4)
    house.until(lambda: (name, "requeued") in house.heard)
    assert supervisor.restarts == 1
    house.jobs.cancel(name)
    supervisor.wake()
    house.until(lambda: house.jobs.count_by_state()["canceled"] == 1)


def test_supervisor_worker_that_reads_nothing_is_replaced(house: House) -> None:
    """An order is larger than what the pipe takes in; the one who sends it also watches."""
    supervisor = house.open(step_timeout_s=1.0, message_timeout_s=1.0)
    frozen = house.submit("freeze", steps=4)
    house.until(lambda: (frozen, Step(1, 4, 3.0)) in house.heard)
    large = house.submit(image=os.urandom(2**21))
    assert house.ended(large).state == "succeeded"
    assert house.ended(frozen).state == "failed"
    assert supervisor.restarts == MAX_CRASHES


def wait_for_stopped_child() -> None:
    """Wait until the worker is stopped, since it reads messages until then."""
    until = time.monotonic() + LONG
    process = psutil.Process()
    while all(own.status() != psutil.STATUS_STOPPED for own in process.children(recursive=True)):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_supervisor_message_that_stops_halfway_times_out_early(house: House) -> None:
    supervisor = house.open(step_timeout_s=600.0, message_timeout_s=0.5)
    frozen = house.submit("freeze", steps=4)
    house.until(lambda: (frozen, Step(1, 4, 3.0)) in house.heard)
    wait_for_stopped_child()
    house.submit(image=os.urandom(2**21))
    house.until(lambda: supervisor.restarts == 1)


def test_supervisor_own_expired_lease_requeues_the_job(tmp_path: Path, clock: Clock) -> None:
    """The machine slept, or its clock was put right: nothing died."""
    jobs = Jobs(Database(f"sqlite:///{tmp_path}/jobs.db", clock))
    house = House(tmp_path, jobs, Files(tmp_path))
    supervisor = house.open(0.05)
    try:
        name = house.submit(steps=20)
        for done in (2, 8, 14):
            house.until(lambda done=done: (name, Step(done, 20, 20.0 - done)) in house.heard)
            clock.now += 3600
        job = house.ended(name)
    finally:
        supervisor.stop()
        jobs.database.close()
    assert (job.state, job.attempt, job.crashes) == ("succeeded", 1, 0)


def test_supervisor_attempt_taken_by_another_is_dropped(house: House) -> None:
    house.open(0.05, lease_s=1.0)
    name = house.submit(steps=40)
    house.until(lambda: (name, Step(1, 40, 39.0)) in house.heard)
    assert house.jobs.requeue_expired(owners_are_gone=True) == [name]
    house.until(lambda: (name, "requeued") in house.heard)
    assert house.ended(name).attempt == 2


def defects(caplog: pytest.LogCaptureFixture) -> list[type[BaseException] | None]:
    """Those that were said aloud since the last time."""
    found = [record for record in caplog.records if record.getMessage() == "defect"]
    caplog.clear()
    return [record.exc_info[0] for record in found if record.exc_info]


def test_supervisor_end_that_cannot_be_stored_fails_the_job(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    finish = house.jobs.finish

    def failing(*arguments: Any, **keywords: Any) -> bool:
        if keywords.get("error") == "prompt: Refused":
            raise UnicodeError
        return finish(*arguments, **keywords)

    monkeypatch.setattr(house.jobs, "finish", failing)
    house.open()
    strange, good = house.submit("refuse"), house.submit()
    assert house.ended(good).state == "succeeded"
    job = house.ended(strange)
    assert job.state == "failed"
    assert "a defect in Overpaint: UnicodeError" in str(job.error)
    assert defects(caplog) == [UnicodeError]


OUT_OF_ORDER = OperationalError("UPDATE", {}, Exception("disk I/O error"))


def fail_at_first(
    house: House,
    monkeypatch: pytest.MonkeyPatch,
    method: str = "finish",
    error: Exception = OUT_OF_ORDER,
) -> None:
    """Have the store refuse the first two ends, or what another method does."""
    real, failures = getattr(house.jobs, method), itertools.count()

    def failing(*arguments: Any, **keywords: Any) -> Any:
        if next(failures) < 2:
            raise error
        return real(*arguments, **keywords)

    monkeypatch.setattr(house.jobs, method, failing)


def test_supervisor_busy_store_gets_ends_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at_first(house, monkeypatch, error=BusyError("QueuePool limit reached"))
    house.open()
    assert house.ended(house.submit()).state == "succeeded"


def test_supervisor_end_stored_without_answer_is_published(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks between the commit and its answer."""
    finish, calls = house.jobs.finish, itertools.count()

    def failing(*arguments: Any, **keywords: Any) -> bool:
        stored = finish(*arguments, **keywords)
        if not next(calls):
            raise OperationalError("COMMIT", {}, Exception("server closed the connection"))
        return stored

    monkeypatch.setattr(house.jobs, "finish", failing)
    supervisor = house.open()
    job = house.ended(house.submit())
    assert job.state == "succeeded"
    assert job.result is not None
    assert all(
        (house.files.get_results_folder(job.id) / made).exists() for made in job.result["files"]
    )
    assert supervisor.ended["succeeded"] == 1


def test_supervisor_job_that_cannot_be_sent_fails_alone(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unpack, calls = house.files.unpack_request, itertools.count()

    def failing(stored: Any) -> Request:
        if next(calls) == 1:
            raise MemoryError
        return unpack(stored)

    monkeypatch.setattr(house.files, "unpack_request", failing)
    names = [house.submit() for _ in range(3)]
    house.open()
    ended = [house.ended(name) for name in names]
    assert [job.state for job in ended] == ["succeeded", "failed", "succeeded"]
    assert "a defect in Overpaint: MemoryError" in str(ended[1].error)
    assert defects(caplog) == [MemoryError]


def test_supervisor_isolated_job_stays_alone_if_another_fails(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It made room, while others had been claimed with it."""
    suspect = house.submit(steps=9)
    for _ in range(3):
        (held,) = house.jobs.claim("before", 1, LONG)
        assert house.jobs.release(held, crashed=True)
    claim, together = house.jobs.claim, list[list[int]]()

    def noted(
        owner: str, count: int, lease: float, models: Any, beside: Any, most: int
    ) -> list[Job]:
        taken = claim(owner, count, lease, models, beside, most)
        together.append([job.crashes for job in (*beside, *taken)])
        return taken

    monkeypatch.setattr(house.jobs, "claim", noted)
    missing = house.submit(image=b"a picture", priority=1)
    for upload in house.files.list_put_before(float("inf")):
        house.files.delete(upload)
    others = [house.submit(priority=1) for _ in range(3)]
    house.open(max_jobs=5)
    assert "upload it again" in str(house.ended(missing).error)
    for name in (*others, suspect):
        assert house.ended(name).state == "succeeded"
    assert [3] in together
    assert all(crashes == [3] for crashes in together if 3 in crashes)


def test_supervisor_claims_jobs_in_small_batches(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of many may take longer to read than a lease lasts."""
    names = [house.submit() for _ in range(20)]
    claim, claims = house.jobs.claim, list[int]()

    def claiming(*arguments: Any) -> list[Job]:
        taken = claim(*arguments)
        claims.append(len(taken))
        return taken

    monkeypatch.setattr(house.jobs, "claim", claiming)
    house.open(poll_interval_s=0.0)  # each claim takes longer than it may
    for name in names:
        assert house.ended(name).state == "succeeded"
    assert (sum(claims), max(claims)) == (20, CLAIM_BATCH_JOBS)


def test_supervisor_failing_store_loses_no_job(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at_first(house, monkeypatch)
    house.open()
    names = [house.submit() for _ in range(3)]
    for name in names:
        job = house.ended(name)
        assert (job.state, job.attempt) == ("succeeded", 1)


def test_supervisor_defect_does_not_end_its_thread(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said aloud, and every job ends all the same."""
    hear, failures = house.hear, itertools.count()

    def failing(name: str, heard: JobUpdate) -> None:
        if isinstance(heard, Step) and next(failures) < 2:
            raise ZeroDivisionError
        hear(name, heard)

    monkeypatch.setattr(house, "hear", failing)
    house.open()
    for name in [house.submit() for _ in range(3)]:
        assert house.ended(name).state == "succeeded"
    assert defects(caplog) == [ZeroDivisionError] * 2


def test_supervisor_worker_death_with_failing_store_counts_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at_first(house, monkeypatch, "release")
    supervisor = house.open()
    assert house.ended(house.submit("die")).crashes == MAX_CRASHES - 1
    assert supervisor.restarts == MAX_CRASHES


def test_supervisor_messages_wait_while_the_store_fails(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that end in one tick; the store fails at the first, and each is charged all the same."""
    fail_at_first(house, monkeypatch)
    names = [house.submit("refuse", steps=4) for _ in range(8)]
    house.open(0.2)  # while the first is stepped, the others come
    for name in names:
        assert house.ended(name).error == "prompt: Refused"
    (total,) = UsageReader(house.jobs.database).sum_usage("model")
    assert (total.jobs, total.device_seconds) == (8, pytest.approx(8 * 0.002))


def test_supervisor_frozen_server_s_result_is_rejected(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server sleeps past its lease just before it publishes, and another one runs the job."""
    frozen, thawed = threading.Event(), threading.Event()
    finish = house.jobs.finish

    def late(job: Job, state: Any, **keywords: Any) -> bool:
        if job.owner == "server0":
            frozen.set()
            assert thawed.wait(LONG)
        return finish(job, state, **keywords)

    monkeypatch.setattr(house.jobs, "finish", late)
    house.open(lease_s=0.5)
    name = house.submit()
    assert frozen.wait(LONG)
    house.open(lease_s=30.0)
    house.until(lambda: house.jobs.count_by_state()["succeeded"] == 1)
    thawed.set()
    house.until(lambda: house.heard.count((name, "ended")) == 2)
    job = house.jobs.get(name)
    assert job is not None
    assert (job.state, job.attempt) == ("succeeded", 2)
    assert sorted(p.name for p in house.files.get_results_folder(name).iterdir()) == [
        "2-0.png",
        "2-1.png",
    ]
    assert [e.kind for e in house.jobs.list_history(name)].count("succeeded") == 1


def test_supervisor_stop_finishes_running_jobs_and_keeps_queued_ones(house: House) -> None:
    supervisor = house.open(0.02, max_jobs=2)
    names = [house.submit(steps=10) for _ in range(5)]
    house.until(lambda: len({of for of, _ in house.heard}) == 2)
    supervisor.stop(grace_s=LONG)
    counts = house.jobs.count_by_state()
    assert counts["succeeded"] == 2
    assert counts["queued"] == 3
    other = house.open()
    assert {house.ended(name).state for name in names} == {"succeeded"}
    assert other.restarts == 0


def test_supervisor_stop_without_grace_requeues(house: House) -> None:
    supervisor = house.open(0.05)
    name = house.submit(steps=1000)
    house.until(lambda: any(of == name for of, _ in house.heard))
    supervisor.stop()
    job = house.jobs.get(name)
    assert job is not None
    assert (job.state, job.crashes) == ("queued", 0)


def test_worker_end_of_a_job_is_its_last_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast its pictures are written: here at once."""
    said = list[Any]()

    class EndOfTest(BaseException): ...

    class Pipe:
        orders: ClassVar = [RunJob("a", Request(prompt="", seed=5), "m", tmp_path, "1")]

        def recv(self) -> RunJob:
            if not self.orders:
                threading.Event().wait()
            return self.orders.pop()

        def send(self, report: WorkerMessage) -> None:
            said.extend(report if isinstance(report, list) else [])
            if said and isinstance(said[-1][1], JobSucceeded):
                raise EndOfTest

    class AtOnce:
        def __init__(self, *_: object) -> None:
            """Take the arguments of `FairThreads`."""

        def submit(self, key: str, call: Callable[..., None], *arguments: object) -> None:
            call(*arguments)

    monkeypatch.setattr("overpaint.engine.worker.FairThreads", AtOnce)
    for name in ("signal.signal", "limit_heaps"):  # of a process, which here is the tests' own
        monkeypatch.setattr(f"overpaint.engine.worker.{name}", MagicMock())
    with pytest.raises(EndOfTest):
        main(cast(Any, Pipe()), ScriptedEngine)
    kinds = [type(one) for _, one in said]
    assert kinds[-3:] == [Step, Spent, JobSucceeded]


@pytest.fixture
def worker() -> Iterator[tuple[Connection, BaseProcess]]:
    """One that is ready, and the pipe to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=main, args=(theirs, ScriptedEngine))
    process.start()
    theirs.close()
    assert ours.recv() == WorkerReady()
    yield ours, process
    ours.close()
    process.join(LONG)


def test_worker_ends_with_its_server(worker: tuple[Connection, BaseProcess]) -> None:
    ours, process = worker
    ours.close()
    process.join(LONG)
    assert process.exitcode == 1


def test_worker_unreadable_message_ends_it(worker: tuple[Connection, BaseProcess]) -> None:
    ours, process = worker
    ours.send_bytes(b"no pickle")
    process.join(LONG)
    assert process.exitcode == 1
