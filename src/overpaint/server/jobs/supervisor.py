"""Keeps a worker alive, brings it jobs from the store, and publishes what comes of them.

A worker that dies or stands still is replaced, and its jobs run again. Another server may have
taken over a job meanwhile: then its end is not published, and its files are removed.
"""

import contextlib
import logging
import multiprocessing
import os
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError, StatementError

from overpaint.engine.counters import Counters
from overpaint.engine.postprocess import NO_POSTPROCESSING, PostprocessConfig
from overpaint.engine.worker import (
    DEFECT,
    Alive,
    Broken,
    Cancel,
    Done,
    EngineFactory,
    Order,
    Ready,
    Report,
    Said,
    Shown,
    Stopped,
    broken,
    main,
)
from overpaint.events import NO_COST, Notice, Spent, Step
from overpaint.server.settings import WorkerSettings
from overpaint.server.store.files import Files
from overpaint.server.store.jobs import ENDED, Attempt, Job, Jobs
from overpaint.server.telemetry.logs import (
    RecordChange,
    log_event,
    log_job_change,
    record_lost_attempts,
)

AGAIN = 1.0
"""Seconds until a store that failed is tried again."""

AT_ONCE = 3
"""Workers in a row that may die before a job went on; before those that follow it waits."""

AT_A_TIME = 8
"""Jobs that are claimed at once, so that their orders are made well within their leases."""

LONGEST = 30.0
"""Seconds that it waits for the next worker, at most."""


def pause(deaths: int) -> float:
    """Seconds before the next worker, after so many in a row that died before a job went on."""
    if deaths < AT_ONCE:
        return 0.0
    return min(2.0 ** min(deaths - AT_ONCE, 10), LONGEST)  # which no float overflows


Heard = Step | Notice | Shown | Literal["requeued", "ended"]
Hear = Callable[[str, Heard], None]
"""Told what happens to a job by its id, in the supervisor's thread."""


@dataclass
class End:
    """An end that is to be published."""

    job: Job
    state: Literal["succeeded", "failed", "canceled"]
    result: dict[str, Any] | None = None
    error: str | None = None
    spent: Spent = NO_COST


@dataclass
class Worker:
    """A process and the pipe to it.

    Attributes:
        heard: when it last said anything.
        ready: it takes orders.
        went_on: it has said something of a job.
        over: it was ended, but not all is done that follows of that.
        held: jobs that it has, by what it knows their attempts as.
        steps: of these, how many those take that it has begun.
        spent: of these, what those have cost that are about to end.
        told: what it has said of jobs, and was not taken in yet.
    """

    process: BaseProcess
    pipe: "Connection[Any, Any]"
    heard: float
    ready: bool = False
    went_on: bool = False
    over: bool = False
    held: dict[str, Job] = field(default_factory=dict[str, Job])
    steps: dict[str, int] = field(default_factory=dict[str, int])
    spent: dict[str, Spent] = field(default_factory=dict[str, Spent])
    told: deque[tuple[str, Said]] = field(default_factory=deque[tuple[str, Said]])


class Supervisor:
    """One worker, and the thread that watches over it.

    Attributes:
        owner: what the store knows it as.
        restarts: workers that were replaced.
        failures: workers in a row that died before they took orders.
        ended: jobs whose end was published here, by the state they ended in.
        pictures: of these, by whether they were published or flagged.
        counters: what the worker's engine has counted, as it last said.
        natives: models that were in memory once, and the sides in pixels that they draw.
    """

    def __init__(
        self,
        jobs: Jobs,
        files: Files,
        engine_factory: EngineFactory,
        *,
        owner: str,
        models: tuple[str, ...],
        hear: Hear,
        settings: WorkerSettings,
        note: RecordChange = log_job_change,
        postprocess: PostprocessConfig = NO_POSTPROCESSING,
    ):
        """Nothing runs before `start`.

        Args:
            jobs: the store.
            files: pictures of jobs, and their results.
            engine_factory: makes the worker's engine, in its process.
            owner: another one for every start of every server.
            models: whose jobs it takes.
            hear: told what happens.
            settings: its timeouts.
            note: takes down what happened to jobs, in the supervisor's thread.
            postprocess: what is done to pictures before they are written.
        """
        self.owner = owner
        self.restarts = 0
        self.failures = 0
        self._deaths = 0
        self.ended = Counter[str]()
        self.pictures = Counter[str](published=0, flagged=0)
        self.counters = Counters()
        self.natives = dict[str, int]()
        self._jobs, self._files = jobs, files
        self._engine_factory, self._postprocess = engine_factory, postprocess
        self._models = models
        self._hear = hear
        self._settings = settings
        self._note = note
        self._worker: Worker | None = None
        self._ends: dict[str, End] = {}
        self._called, self._wakes = multiprocessing.Pipe(duplex=False)
        self._canceled: SimpleQueue[str] = SimpleQueue()
        self._waking = threading.Lock()
        self._woken = False
        self._stopping = threading.Event()
        self._draining = threading.Event()
        self._hurried = threading.Event()
        self._next: dict[str, float] = {}
        self._thread = threading.Thread(target=self._run, name="overpaint-supervisor")

    @property
    def ready(self) -> bool:
        """Whether there is a worker that takes orders."""
        worker = self._worker
        return worker is not None and worker.ready

    @property
    def held(self) -> int:
        """Jobs that are under way."""
        worker = self._worker  # which the thread may change meanwhile
        return (len(worker.held) if worker else 0) + len(self._ends)

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    def wake(self) -> None:
        """Say that there may be something to do: a new job, or one to cancel."""
        with self._waking:
            if not self._woken:
                self._woken = True
                self._wakes.send(None)

    def hurry(self) -> None:
        """Give what `stop` waits for no more time."""
        self._hurried.set()

    def cancel(self, name: str) -> None:
        """Have a job that is to be canceled ended before its next step, if it is under way here."""
        self._canceled.put(name)
        self.wake()

    def stop(self, grace: float = 0.0) -> None:
        """End: take nothing new, finish what ends within `grace` seconds, give back the rest."""
        self._draining.set()
        self.wake()
        until = time.monotonic() + grace
        while self.held and time.monotonic() < until and self._thread.is_alive():
            if self._hurried.wait(0.05):
                break
        self._stopping.set()
        self.wake()
        self._thread.join()

    # The thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._turn()
            except Exception as error:
                # What is known is kept, and tried again. Nor does a defect end this thread: without
                # it no job would end any more, while others were accepted.
                outside = isinstance(error, SQLAlchemyError | OSError)
                log_event(
                    logging.ERROR, "store or disk out of order" if outside else "defect", error
                )
                self._stopping.wait(AGAIN)
        self._end_worker()

    def _turn(self) -> None:
        if self._worker is None and self._stopping.wait(pause(self._deaths)):
            return
        worker = self._worker or self._start_worker()
        # First of all it listens: steps are told also while the store is out of order.
        watched = [worker.pipe, self._called, worker.process.sentinel]
        for source in wait(
            watched, timeout=min(self._settings.poll_interval_s, self._settings.lease_s / 3)
        ):
            if source is worker.pipe:
                self._listen(worker)
            elif source is self._called:
                with self._waking:
                    self._called.recv()
                    self._woken = False
                self._cancel(worker)
                self._beat(worker)
                self._claim(worker)
            else:
                self._end_worker("it died")
                return
        patience = self._settings.step_timeout_s if worker.ready else self._settings.start_timeout_s
        if time.monotonic() - worker.heard > patience:
            self._end_worker("it said nothing any more")
            return
        self._publish()
        if self._every("beat", self._settings.lease_s / 3):
            self._beat(worker)
        if self._every("look", self._settings.poll_interval_s):
            record_lost_attempts(self._jobs, self._jobs.expire(but=self.owner), self._note)
            self._claim(worker)

    def _every(self, what: str, seconds: float) -> bool:
        now = time.monotonic()
        if now < self._next.get(what, 0.0):
            return False
        self._next[what] = now + seconds
        return True

    # The worker

    def _start_worker(self) -> Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(
            target=main,
            args=(theirs, self._engine_factory, self._postprocess),
            name="overpaint-worker",
        )
        process.start()
        theirs.close()
        _limit(ours, self._settings.message_timeout_s)
        self._worker = Worker(process, ours, time.monotonic())
        self.counters = Counters()
        return self._worker

    def _end_worker(self, cause: str | None = None) -> None:
        """Kill the worker; its jobs go back to the queue. `cause` says what went wrong with it."""
        if (worker := self._worker) is None:
            return
        crashed = cause is not None
        if not worker.over:  # else the store failed behind this
            worker.over = True
            worker.process.kill()
            worker.process.join(
                self._settings.message_timeout_s
            )  # none that the system holds can be killed
            if crashed:
                code, held = worker.process.exitcode, len(worker.held)
                log_event(logging.ERROR, "worker replaced", cause=cause, exit_code=code, jobs=held)
            self.failures += crashed and not worker.ready
            self.restarts += crashed
            worker.ready = False
        self._listen(worker)  # what it said before
        for tag, job in list(worker.held.items()):
            mine = self._jobs.give_back(job, crashed=crashed)
            del worker.held[tag]
            now = self._jobs.get(job.id)
            if now and now.state in ENDED:
                self.ended[now.state] += mine
                self._hear(job.id, "ended")
            else:
                self._hear(job.id, "requeued")
            if mine:
                record_lost_attempts(self._jobs, [job.id], self._note)
        worker.pipe.close()
        if worker.process.exitcode is not None:
            worker.process.close()
        self._deaths = 0 if worker.went_on else self._deaths + crashed
        self._worker = None

    def _listen(self, worker: Worker) -> None:
        """Take in all that the worker has said; if the store fails, the rest at the next turn."""
        for report in _reports(worker):
            self._heard(worker, report)
        while worker.told:
            tag, said = worker.told.popleft()
            if tag in worker.held:
                self._said(worker, tag, said)
            elif isinstance(said, Done):
                _remove(said.files)  # of an attempt that was lost meanwhile
        if self._ends:
            self._publish()
            self._claim(worker)

    def _heard(self, worker: Worker, report: Report) -> None:
        worker.heard = time.monotonic()
        match report:
            case Ready():
                worker.ready = True
                self.failures = 0
                self._claim(worker)
            case Alive(counters):
                self.counters = counters or Counters()
                self.natives |= self.counters.resident
            case _:
                worker.went_on = True
                worker.told += report

    def _said(self, worker: Worker, tag: str, said: Said) -> None:
        job = worker.held[tag]
        match said:
            case Done(files, seeds, sizes, flagged):
                result: dict[str, Any] = {
                    "files": [path.name for path in files],
                    "seeds": list(seeds),
                    "sizes": [list(size) for size in sizes],
                    "steps": worker.steps.get(tag, 0),
                    "flagged": [asdict(flag) for flag in flagged],
                }
                self._ending(worker, tag, End(job, "succeeded", result))
            case Broken(message, _, flagged):
                told = {"flagged": [asdict(flag) for flag in flagged]} if flagged else None
                self._ending(worker, tag, End(job, "failed", told, message))
            case Stopped():
                self._ending(worker, tag, End(job, "canceled"))
            case Notice(message):
                self._jobs.say(job.id, "notice", {"message": message})
                self._hear(job.id, said)
            case Spent():
                worker.spent[tag] = said
            case Step(total=total):
                worker.steps[tag] = total
                self._hear(job.id, said)
            case _:
                self._hear(job.id, said)

    # Jobs

    def _claim(self, worker: Worker) -> None:
        """Bring the worker as many jobs as it has room for.

        Their pictures may take long to read: then all else has its turn, and beats, in between.
        """
        until = time.monotonic() + self._settings.poll_interval_s
        while True:
            held = list(worker.held.values())
            room = min(self._settings.max_jobs - len(held), AT_A_TIME)
            if not worker.ready or room <= 0 or self._draining.is_set():
                return
            taken = self._jobs.claim(self.owner, room, self._settings.lease_s, self._models, held)
            worker.held |= {_tag(job): job for job in taken}
            failed = [job for job in taken if not self._bring(worker, job)]
            if failed:
                self._publish()
            elif len(taken) < room:
                return
            if time.monotonic() > until:
                self.wake()
                return

    def _bring(self, worker: Worker, job: Job) -> bool:
        """Order a job that was claimed. False if that cannot be: it ends, and makes room."""
        try:
            self._note("started", job)
            _send(worker, self._order(job))
        except Exception as error:
            said = broken(error)
            if not said.mine:
                log_event(logging.ERROR, "defect", error)
            self._ending(worker, _tag(job), End(job, "failed", error=said.message))
            return False
        return True

    def _order(self, job: Job) -> Order:
        output = job.origin.output
        return Order(
            _tag(job),
            self._files.unpack(job.request),
            job.model,
            self._files.results(job.id),
            str(job.attempt),
            job.key,
            job.priority,
            output.kind,
            dict(output.options),
            output.preview_every,
            job.origin.check_safety,
        )

    def _cancel(self, worker: Worker) -> None:
        """Tell the worker at once: the store, which tells it too, takes longer than some steps."""
        while not self._canceled.empty():
            name = self._canceled.get()
            for tag in [tag for tag, job in worker.held.items() if job.id == name]:
                _send(worker, Cancel(tag))

    def _beat(self, worker: Worker) -> None:
        """Keep the leases; drop what was lost, end what was canceled."""
        mine = {_tag(job): job for job in self._jobs.beat(self.owner, self._settings.lease_s)}
        for tag in list(worker.held):
            if tag not in mine:
                lost = worker.held.pop(tag)
                worker.steps.pop(tag, None)
                worker.spent.pop(tag, None)
                self._hear(lost.id, "requeued")
            if tag not in mine or mine[tag].canceling:
                _send(worker, Cancel(tag))
        for tag in mine.keys() - worker.held.keys() - self._ends.keys():
            if self._jobs.give_back(mine[tag]):  # claimed as the store failed
                record_lost_attempts(self._jobs, [mine[tag].id], self._note)

    def _ending(self, worker: Worker, tag: str, end: End) -> None:
        del worker.held[tag]
        worker.steps.pop(tag, None)
        end.spent = worker.spent.pop(tag, end.spent)
        self._ends[tag] = end

    def _publish(self) -> None:
        """Publish ends; those that the store does not take now stay."""
        for tag, end in list(self._ends.items()):
            name = end.job.id
            published = self._finish(end)
            made = end.result or {}
            if published:
                self.ended[end.state] += 1
                self.pictures["published"] += len(made.get("files", ()))
                self.pictures["flagged"] += len(made.get("flagged", ()))
            else:
                results = self._files.results(name)
                _remove(results / file for file in made.get("files", ()))
            del self._ends[tag]
            self._hear(name, "ended")
            if published:
                now = replace(end.job, state=end.state, ended=time.time(), error=end.error)
                self._note(end.state, now)

    def _finish(self, end: End) -> bool:
        """Store an end, or in place of one that no store takes, that there is a defect.

        Returns:
            False if the attempt is not under way any more.
        """
        try:
            stored = self._jobs.finish(
                end.job, end.state, result=end.result, error=end.error, spent=end.spent
            )
        except Exception as error:
            if not _is_of_values(error):
                raise
            log_event(logging.ERROR, "defect", error)
            what = f"{DEFECT}{type(error).__name__}: what came of it could not be stored."
            end.state, end.result, end.error = "failed", None, what
            return self._jobs.finish(end.job, end.state, error=what)
        if stored or end.state != "succeeded":
            return stored
        # A connection may break when all is stored, and before that is heard of.
        now = self._jobs.get(end.job.id)
        return now is not None and (now.state, now.attempt) == (end.state, end.job.attempt)


def _is_of_values(error: Exception) -> bool:
    """Whether it comes of what was to be stored, and not of the store."""
    if isinstance(error, DBAPIError):
        return isinstance(error, DataError)
    return isinstance(error, StatementError | ValueError | TypeError | OverflowError)


def _limit(pipe: "Connection[Any, Any]", seconds: float) -> None:
    """Have a message fail that stands still half-way for so long: else all would wait for it."""
    whole, part = divmod(seconds, 1)
    span = struct.pack("@ll", int(whole), int(part * 1e6))  # C's struct timeval
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, span)


def _reports(worker: Worker) -> Iterator[Report]:
    """What the worker has said; where it is dead or stands still, its sentinel tells its end."""
    try:
        while worker.pipe.poll():
            yield worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.kill()


def _send(worker: Worker, order: Order | Cancel) -> None:
    """Tell the worker; as for `_reports`."""
    try:
        worker.pipe.send(order)
    except OSError:
        worker.process.kill()


def _remove(files: Iterable[Path]) -> None:
    """Remove what nobody will ask for; what cannot be removed goes with its job."""
    for file in files:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def _tag(job: Job | Attempt) -> str:
    """What the worker knows an attempt as: the same job may come to it once more."""
    return f"{job.id}.{job.attempt}"
