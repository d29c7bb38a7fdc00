"""Keeps a worker alive, gives it jobs from the store, and publishes how they end.

The supervisor replaces a worker that dies or is silent for too long; the worker's jobs run again.
"""

import logging
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import wait
from queue import SimpleQueue
from typing import Literal

from sqlalchemy.exc import SQLAlchemyError

from overpaint.engine.counters import Counters
from overpaint.engine.messages import (
    CancelJob,
    Heartbeat,
    JobCanceled,
    JobFailed,
    JobMessage,
    JobSucceeded,
    PreviewImage,
    WorkerFailed,
    WorkerMessage,
    WorkerReady,
    job_failed,
)
from overpaint.engine.postprocess import NO_POSTPROCESSING, PostprocessConfig
from overpaint.engine.worker import EngineFactory
from overpaint.errors import OverpaintError
from overpaint.events import Notice, Spent, Step
from overpaint.server.jobs.job_ends import JobEnd, JobEnds, make_job_end, remove_files
from overpaint.server.jobs.worker_process import (
    WorkerProcess,
    attempt_tag,
    restart_delay_s,
    run_job,
    start_worker,
)
from overpaint.server.settings import WorkerSettings
from overpaint.server.store.files import Files
from overpaint.server.store.job_rows import ENDED, Job
from overpaint.server.store.jobs import Jobs
from overpaint.server.store.leases import LeaseClock
from overpaint.server.telemetry.logs import (
    RecordChange,
    log_event,
    log_job_change,
    record_lost_attempts,
)

STORE_RETRY_S = 1.0
"""Seconds until the supervisor tries a store again that failed."""

CLAIM_BATCH_JOBS = 8
"""Jobs that are claimed at once, so that the worker receives them well within their leases."""

STOP_POLL_S = 0.05
"""Seconds between two looks whether all jobs have ended, while the supervisor stops."""

JobUpdate = Step | Notice | PreviewImage | Literal["requeued", "ended"]
OnUpdate = Callable[[str, JobUpdate], None]
"""Receives a job's id and what happened to the job, in the supervisor's thread."""


class Supervisor:
    """One worker, and the thread that watches it.

    Attributes:
        owner: name of the supervisor in the store.
        restarts: number of workers that were replaced.
        failures: workers in a row that died before they accepted jobs.
        counters: totals of the worker's engine, from its last heartbeat.
        start_error: why the first worker could not start. Then there is no second one.
        natives: side in pixels of each model that was in memory at some time.
    """

    def __init__(
        self,
        jobs: Jobs,
        files: Files,
        engine_factory: EngineFactory,
        *,
        owner: str,
        models: tuple[str, ...],
        on_update: OnUpdate,
        settings: WorkerSettings,
        record_change: RecordChange = log_job_change,
        postprocess: PostprocessConfig = NO_POSTPROCESSING,
    ):
        """Prepare; nothing runs before `start`.

        Args:
            jobs: the store.
            files: pictures of jobs, and their results.
            engine_factory: makes the worker's engine, in the worker's process.
            owner: name in the store, different for every start of every server.
            models: models whose jobs the worker runs.
            on_update: receives the updates of jobs.
            settings: timeouts.
            record_change: records state changes of jobs, in the supervisor's thread.
            postprocess: checks, marks and signs pictures.
        """
        self.owner = owner
        self.restarts = self.failures = self._deaths = 0
        self.start_error: OverpaintError | None = None
        self.counters = Counters()
        self.natives = dict[str, int]()
        self._jobs, self._files = jobs, files
        self._engine_factory, self._postprocess = engine_factory, postprocess
        self._models = models
        self._on_update = on_update
        self._settings, self._leases = settings, LeaseClock(settings.lease_s)
        self._record_change = record_change
        self._worker: WorkerProcess | None = None
        self._ends = JobEnds(jobs, files, lambda job: on_update(job, "ended"), record_change)
        self._wake_receiver, self._wake_sender = multiprocessing.Pipe(duplex=False)
        self._cancel_requests: SimpleQueue[str] = SimpleQueue()
        self._waking = threading.Lock()
        self._woken = False
        self._stopping = threading.Event()
        self._draining = threading.Event()
        self._hurried, self._next = threading.Event(), dict[str, float]()
        self._thread = threading.Thread(target=self._run, name="overpaint-supervisor")

    @property
    def ready(self) -> bool:
        """Return whether there is a worker that accepts jobs."""
        return (worker := self._worker) is not None and worker.ready

    @property
    def held(self) -> int:
        """Number of running jobs."""
        worker = self._worker  # which the thread may replace
        return (len(worker.jobs) if worker else 0) + len(self._ends.waiting)

    @property
    def ended(self) -> Counter[str]:
        """Number of jobs whose end this supervisor published, by state."""
        return self._ends.states

    @property
    def pictures(self) -> Counter[str]:
        """Number of "published" and "flagged" pictures of these jobs."""
        return self._ends.pictures

    def start(self) -> None:
        """Start the worker."""
        self._thread.start()

    def wake(self) -> None:
        """Report a new job, or a job to cancel."""
        with self._waking:
            if not self._woken:
                self._woken = True
                self._wake_sender.send(None)

    def hurry(self) -> None:
        """End the grace period of `stop` now."""
        self._hurried.set()

    def cancel(self, job_id: str) -> None:
        """Cancel a job before its next step, if this supervisor's worker has it."""
        self._cancel_requests.put(job_id)
        self.wake()

    def stop(self, grace_s: float = 0.0) -> None:
        """Take no new jobs, let running jobs finish within `grace_s`, and requeue the others."""
        self._draining.set()
        self.wake()
        deadline = time.monotonic() + grace_s
        while self.held and time.monotonic() < deadline and self._thread.is_alive():
            if self._hurried.wait(STOP_POLL_S):
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
                # The state is kept, and the next turn tries again. A defect must not end this
                # thread either: the server would accept jobs that never end.
                external = isinstance(error, SQLAlchemyError | OSError)
                event = "store or disk out of order" if external else "defect"
                log_event(logging.ERROR, event, error)
                self._stopping.wait(STORE_RETRY_S)
        self._end_worker()

    def _turn(self) -> None:
        """Wait for something to happen, and handle it."""
        if self._worker is None and self._stopping.wait(
            None if self.start_error else restart_delay_s(self._deaths)
        ):
            return
        worker = self._worker or self._start_worker()
        # Messages come first: clients see steps even while the store fails.
        sources = [worker.pipe, self._wake_receiver, worker.process.sentinel]
        timeout_s = min(self._settings.poll_interval_s, self._settings.lease_s / 3)
        for source in wait(sources, timeout=timeout_s):
            if source is worker.pipe:
                self._receive(worker)
            elif source is self._wake_receiver:
                with self._waking:
                    self._wake_receiver.recv()
                    self._woken = False
                self._cancel_requested(worker)
                self._renew_leases(worker)
                self._claim(worker)
            else:
                self._end_worker(str(worker.error or "it died"))
                return
        settings = self._settings
        silence_limit_s = settings.step_timeout_s if worker.ready else settings.start_timeout_s
        if time.monotonic() - worker.last_message_at > silence_limit_s:
            self._end_worker("it said nothing any more")
            return
        self._ends.publish()
        if self._is_due("renew leases", settings.lease_s / 3):
            self._renew_leases(worker)
        if self._is_due("poll", settings.poll_interval_s):
            expired = self._jobs.requeue_expired(except_owner=self.owner, leases=self._leases)
            record_lost_attempts(self._jobs, expired, self._record_change)
            self._claim(worker)

    def _is_due(self, task: str, interval_s: float) -> bool:
        now = time.monotonic()
        if now < self._next.get(task, 0.0):
            return False
        self._next[task] = now + interval_s
        return True

    # The worker

    def _start_worker(self) -> WorkerProcess:
        timeout_s = self._settings.message_timeout_s
        self._worker = start_worker(self._engine_factory, self._postprocess, timeout_s)
        self.counters = Counters()
        return self._worker

    def _end_worker(self, cause: str | None = None) -> None:
        """Kill the worker, and requeue its jobs.

        Args:
            cause: why the worker is replaced; None if the server stops.
        """
        if (worker := self._worker) is None:
            return
        crashed = cause is not None
        if not worker.killed:  # else the store failed after the worker was killed
            was_ready = worker.ready
            code = worker.kill(self._settings.message_timeout_s)
            if crashed:
                jobs = len(worker.jobs)
                log_event(logging.ERROR, "worker replaced", cause=cause, exit_code=code, jobs=jobs)
            self.failures += crashed and not was_ready
            self.restarts += crashed
        self._receive(worker)  # messages that it sent before
        for tag, job in list(worker.jobs.items()):
            given_back = self._jobs.release(job, crashed=crashed)
            del worker.jobs[tag]
            now = self._jobs.get(job.id)
            if now and now.state in ENDED:
                self.ended[now.state] += given_back
                self._on_update(job.id, "ended")
            else:
                self._on_update(job.id, "requeued")
            if given_back:
                record_lost_attempts(self._jobs, [job.id], self._record_change)
        worker.close()
        self._deaths = 0 if worker.made_progress else self._deaths + crashed
        self._worker = None

    def _receive(self, worker: WorkerProcess) -> None:
        """Handle all messages of the worker; if the store fails, the next turn handles the rest."""
        for message in worker.receive():
            self._handle(worker, message)
        while worker.unhandled:
            tag, job_message = worker.unhandled.popleft()
            if tag in worker.jobs:
                self._handle_job_message(worker, tag, job_message)
            elif isinstance(job_message, JobSucceeded):
                remove_files(job_message.files)  # of an attempt that was lost
        if self._ends.waiting:
            self._ends.publish()
            self._claim(worker)

    def _handle(self, worker: WorkerProcess, message: WorkerMessage) -> None:
        worker.last_message_at = time.monotonic()
        match message:
            case WorkerFailed(error):
                worker.error = error
                if self.failures == self.restarts:  # no worker was ever ready
                    self.start_error = error
            case WorkerReady():
                worker.ready = True
                self.failures = 0
                self._claim(worker)
            case Heartbeat(counters):
                self.counters = counters or Counters()
                self.natives |= self.counters.resident
            case _:
                worker.made_progress = True
                worker.unhandled += message

    def _handle_job_message(self, worker: WorkerProcess, tag: str, message: JobMessage) -> None:
        job = worker.jobs[tag]
        match message:
            case JobSucceeded() | JobFailed() | JobCanceled():
                end = make_job_end(job, message, steps=worker.steps.get(tag, 0))
                self._add_end(worker, tag, end)
            case Notice(text):
                self._jobs.add_history(job.id, "notice", {"message": text})
                self._on_update(job.id, message)
            case Spent():
                worker.costs[tag] = message
            case Step(total=total):
                worker.steps[tag] = total
                self._on_update(job.id, message)
            case _:
                self._on_update(job.id, message)

    # Jobs

    def _claim(self, worker: WorkerProcess) -> None:
        """Give the worker as many jobs as it has room for.

        Reading their pictures may take long. So the other tasks, leases above all, have their turn
        in between.
        """
        deadline = time.monotonic() + self._settings.poll_interval_s
        while True:
            held = list(worker.jobs.values())
            room = min(self._settings.max_jobs - len(held), CLAIM_BATCH_JOBS)
            if not worker.ready or room <= 0 or self._draining.is_set():
                return
            claimed = self._jobs.claim(
                self.owner,
                room,
                self._settings.lease_s,
                self._models,
                held,
                self._settings.max_jobs_per_key,
            )
            worker.jobs |= {attempt_tag(job): job for job in claimed}
            failed = [job for job in claimed if not self._send_job(worker, job)]
            if failed:
                self._ends.publish()
            elif len(claimed) < room:
                return
            if time.monotonic() > deadline:
                self.wake()
                return

    def _send_job(self, worker: WorkerProcess, job: Job) -> bool:
        """Send a claimed job to the worker; if that is not possible, fail it and return False."""
        try:
            self._record_change("started", job)
            worker.send(run_job(job, self._files))
        except Exception as error:
            failed = job_failed(error)
            if not failed.expected:
                log_event(logging.ERROR, "defect", error)
            self._add_end(worker, attempt_tag(job), JobEnd(job, "failed", error=failed.message))
            return False
        return True

    def _cancel_requested(self, worker: WorkerProcess) -> None:
        """Send cancellations at once. The store also has them, but is slower than some steps."""
        while not self._cancel_requests.empty():
            job_id = self._cancel_requests.get()
            for tag in [tag for tag, job in worker.jobs.items() if job.id == job_id]:
                worker.send(CancelJob(tag))

    def _renew_leases(self, worker: WorkerProcess) -> None:
        """Renew the leases; cancel jobs that were lost to another server or canceled."""
        leased = self._jobs.renew_leases(self.owner, self._settings.lease_s)
        own = {attempt_tag(attempt): attempt for attempt in leased}
        for tag, job in list(worker.jobs.items()):
            if tag not in own:
                worker.forget(tag)
                self._on_update(job.id, "requeued")
            if tag not in own or own[tag].canceling:
                worker.send(CancelJob(tag))
        for tag in own.keys() - worker.jobs.keys() - self._ends.waiting.keys():
            if self._jobs.release(own[tag]):  # claimed while the store failed
                record_lost_attempts(self._jobs, [own[tag].id], self._record_change)

    def _add_end(self, worker: WorkerProcess, tag: str, end: JobEnd) -> None:
        end.spent = worker.forget(tag) or end.spent
        self._ends.waiting[tag] = end
