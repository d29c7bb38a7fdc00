"""The worker: a process that owns the device, with an engine and a pipe to its supervisor.

The worker knows neither the store nor clients. When its pipe breaks it ends at once, because nobody
would receive its results. It reports a result after the files are on the disk.
"""

import errno
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from overpaint.engine.config import EngineConfig
from overpaint.engine.messages import (
    CancelJob,
    Heartbeat,
    JobCanceled,
    JobFailed,
    JobMessage,
    JobSucceeded,
    PreviewImage,
    RunJob,
    WorkerFailed,
    WorkerMessage,
    WorkerReady,
    job_failed,
)
from overpaint.engine.postprocess import NO_POSTPROCESSING, PostprocessConfig, Postprocessor
from overpaint.errors import OverpaintError
from overpaint.events import Canceled, Failed, Finished, Notice, Preview, Spent
from overpaint.provenance import metadata
from overpaint.provenance.safety import Flag
from overpaint.system.atomic_files import write_file
from overpaint.system.fair_threads import FairThreads
from overpaint.system.malloc import limit_heaps, release_memory
from overpaint.system.signals import STOP_SIGNALS
from overpaint.system.unused_packages import hide_unused_packages

if TYPE_CHECKING:
    from PIL.Image import Image

    from overpaint.events import Event
    from overpaint.request import Request

IDLE_WAIT_S = 0.25
"""Seconds that an idle worker waits for a message, and the interval of heartbeats."""

PREVIEW_JPEG_QUALITY = 80

DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)

WRITER_THREADS = 3
"""Threads that write results: encoding eight pictures of 4096 x 4096 takes 45 s."""

WRITER_THREADS_PER_KEY = 2

DISK_FULL_RETRY_S = 1.0
"""Seconds until the worker writes pictures again for which the disk had no space."""

ALL_FLAGGED = (
    "the safety checker flagged every picture, so none is published; try another prompt or seed."
)


class JobRunner(Protocol):
    """The part of an engine that a worker uses; see `overpaint.engine.engine.Engine`."""

    @property
    def busy(self) -> bool: ...  # noqa: D102

    def submit(  # noqa: D102
        self,
        name: str,
        request: "Request",
        model: str,
        *,
        key: str,
        priority: int,
        preview_every: int,
    ) -> None: ...

    def cancel(self, name: str) -> None: ...  # noqa: D102

    def release(self, name: str) -> None: ...  # noqa: D102

    def tick(self) -> "Sequence[tuple[str, Event | Failed | Canceled | Spent]]": ...  # noqa: D102


EngineFactory = Callable[[], JobRunner]
"""Makes the engine of a worker, in the worker's process. It must be picklable."""


def make_engine(config: EngineConfig) -> JobRunner:
    """Return an engine that paints, with its first model loaded; see `model_pool.open_engine`.

    The import happens here, so that only the worker's process imports torch.
    """
    from overpaint.engine.model_pool import open_engine

    return open_engine(config)


def run_process(
    pipe: "Connection[Any, Any]", engine_factory: EngineFactory, postprocess: PostprocessConfig
) -> None:
    """Be a worker's process; see `main`.

    A new process imports the module of this function. So it must not be one of the server, which
    takes a second to import.
    """
    hide_unused_packages()
    main(pipe, engine_factory, postprocess)


def main(
    pipe: "Connection[Any, Any]",
    engine_factory: EngineFactory,
    postprocess: PostprocessConfig = NO_POSTPROCESSING,
) -> None:
    """Run a worker until the pipe breaks.

    Args:
        pipe: receives `RunJob` and `CancelJob`, sends `WorkerMessage`.
        engine_factory: makes the engine.
        postprocess: checks, marks and signs pictures before they are written.

    Raises:
        SystemExit: the worker cannot start. It has sent `WorkerFailed`.
    """
    # A terminal or service manager signals all processes of a server. The worker ends by its pipe,
    # after the server has let running jobs finish.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    limit_heaps()
    try:
        worker = _Worker(pipe, engine_factory(), Postprocessor(postprocess))
    except OverpaintError as error:
        pipe.send(WorkerFailed(error))
        raise SystemExit(error.exit_code) from None
    try:
        worker.run()
    except Exception:
        traceback.print_exc()
        os._exit(1)  # at once: with a broken device, other threads would fail more jobs


class _Worker:
    def __init__(
        self, pipe: "Connection[Any, Any]", engine: JobRunner, postprocessor: Postprocessor
    ):
        self._pipe = pipe
        self._engine = engine
        self._postprocessor = postprocessor
        self._jobs: dict[str, RunJob] = {}
        self._unwritten: set[str] = set()
        self._inbox: SimpleQueue[RunJob | CancelJob] = SimpleQueue()
        self._sending = threading.Lock()
        self._last_heartbeat = 0.0
        self._trim_memory_at = 0.0
        self._writers = FairThreads(WRITER_THREADS, WRITER_THREADS_PER_KEY, "overpaint-write")
        self._checking = threading.Lock()

    def run(self) -> None:
        """Receive, tick and report, until the process ends."""
        threading.Thread(target=self._receive, name="overpaint-listen", daemon=True).start()
        self._send(WorkerReady())
        while True:
            self._take_messages()
            if self._engine.busy:
                self._tick()
            if time.monotonic() - self._last_heartbeat > IDLE_WAIT_S:
                self._last_heartbeat = time.monotonic()
                self._send(Heartbeat(getattr(self._engine, "counters", None)))
            if time.monotonic() > self._trim_memory_at:
                self._trim_memory_at = time.monotonic() + release_memory()

    def _receive(self) -> None:
        try:
            while True:
                self._inbox.put(self._pipe.recv())
        finally:
            os._exit(1)  # the supervisor is gone, or has sent an unreadable message

    def _take_messages(self) -> None:
        """Pass all received messages to the engine; if there is no work, wait for a message."""
        while True:
            try:
                message = self._inbox.get(timeout=0 if self._engine.busy else IDLE_WAIT_S)
            except Empty:
                return
            if isinstance(message, CancelJob):
                self._engine.cancel(message.tag)
                self._unwritten.discard(message.tag)
                continue
            self._jobs[message.tag] = message
            self._engine.submit(
                message.tag,
                message.request,
                message.model,
                key=message.key,
                priority=message.priority,
                preview_every=0 if self._is_checked(message) else message.preview_every,
            )

    def _tick(self) -> None:
        events = self._engine.tick()
        messages = [self._message(tag, event) for tag, event in events]
        if report := [message for message in messages if message]:
            self._send(report)
        for tag, event in events:
            if isinstance(event, Finished):  # after the report, since its end must come last
                job = self._jobs.pop(tag)
                self._writers.submit(job.key, self._finish, job, event)

    def _is_checked(self, job: RunJob) -> bool:
        return job.checked and self._postprocessor.checks

    def _message(self, tag: str, event: Any) -> tuple[str, JobMessage] | None:
        """Return the message for an event; None for `Finished`, which `_finish` reports."""
        match event:
            case Finished():
                self._unwritten.add(tag)
                return None
            case Failed(error):
                del self._jobs[tag]
                return tag, job_failed(error)
            case Canceled():
                self._jobs.pop(tag, None)
                return tag, JobCanceled()
            case Preview(index, image):
                return tag, PreviewImage(index, _encode_jpeg(image))
            case _:
                return tag, event

    # In the writers' threads

    def _finish(
        self,
        job: RunJob,
        event: Finished,
        tries: int = 0,
        flagged: tuple[Flag, ...] | None = None,
    ) -> None:
        """Write a job's pictures, then report its end. An error fails the job.

        A full disk fails no job: the worker writes again until there is space or the job is
        canceled.

        Args:
            job: to be finished.
            event: its pictures.
            tries: how often the disk was full before.
            flagged: result of the safety check, known from the first try on.
        """
        if job.tag not in self._unwritten:
            self._engine.release(job.tag)
            self._send([(job.tag, JobCanceled())])
            return
        try:
            if flagged is None:
                flagged = self._check_pictures(job, event)
            messages = self._write_pictures(job, event, flagged)
        except BaseException as error:  # a checker may even raise SystemExit
            if isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS:
                if not tries:
                    self._send([(job.tag, Notice("the disk is full; its pictures wait."))])
                self._retry_later(job, event, tries + 1, flagged)
                return
            messages = [job_failed(error)]
        self._unwritten.discard(job.tag)
        self._engine.release(job.tag)
        try:
            self._send([(job.tag, message) for message in messages])
        except Exception as error:  # a message cannot be pickled
            self._send([(job.tag, job_failed(error))])

    def _retry_later(
        self, job: RunJob, event: Finished, tries: int, flagged: tuple[Flag, ...] | None
    ) -> None:
        call = (job.key, self._finish, job, event, tries, flagged)
        timer = threading.Timer(DISK_FULL_RETRY_S, self._writers.submit, call)
        timer.daemon = True
        timer.start()

    def _check_pictures(self, job: RunJob, event: Finished) -> tuple[Flag, ...]:
        """Return the pictures that must not be published."""
        if not self._is_checked(job):
            return ()
        with self._checking:  # a checker need not be safe for threads
            return self._postprocessor.find_flagged(event.images, event.seeds)

    def _write_pictures(
        self, job: RunJob, event: Finished, flagged: tuple[Flag, ...]
    ) -> list[JobMessage]:
        """Write the pictures that are not flagged; return the messages about that."""
        messages: list[JobMessage] = [
            Notice(f"{flag} was flagged by the safety checker.") for flag in flagged
        ]
        flagged_indices = {flag.index for flag in flagged}
        kept = [i for i in range(len(event.images)) if i not in flagged_indices]
        if not kept:
            return [*messages, JobFailed(ALL_FLAGGED, True, flagged)]
        files: list[Path] = []
        for i in kept:
            image, problem = self._postprocessor.add_watermark(event.images[i])
            if problem:
                messages.append(Notice(f"picture {i}: {problem}"))
            data = metadata.encode_picture(image, job.kind, event.metadata[i], **job.options)
            data = self._postprocessor.sign(data, job.kind, job.request.image)
            files.append(job.folder / f"{job.stem}-{i}.{job.kind}")
            write_file(files[-1], data)
        succeeded = JobSucceeded(
            tuple(files),
            tuple(event.seeds[i] for i in kept),
            tuple(event.images[i].size for i in kept),
            flagged,
        )
        return [*messages, succeeded]

    def _send(self, message: WorkerMessage) -> None:
        try:
            with self._sending:
                self._pipe.send(message)
        except (BrokenPipeError, OSError):
            os._exit(1)


def _encode_jpeg(image: "Image") -> bytes:
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=PREVIEW_JPEG_QUALITY)
    return buffer.getvalue()
