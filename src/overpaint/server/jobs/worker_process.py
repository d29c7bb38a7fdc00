"""The worker process as its supervisor sees it: a pipe, its jobs, and its signs of life."""

import multiprocessing
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from overpaint.engine.messages import CancelJob, JobMessage, RunJob, WorkerMessage
from overpaint.engine.postprocess import PostprocessConfig
from overpaint.engine.worker import EngineFactory, run_process
from overpaint.errors import OverpaintError
from overpaint.events import Spent
from overpaint.server.store.files import Files
from overpaint.server.store.job_rows import Attempt, Job

FREE_RESTARTS = 3
"""Workers in a row that may die before any job makes progress, until the supervisor waits before
the next."""

MAX_RESTART_DELAY_S = 30.0


@dataclass
class WorkerProcess:
    """A worker's process, and the pipe to it.

    Attributes:
        last_message_at: when it last sent a message, on the monotonic clock.
        ready: whether it accepts jobs.
        made_progress: whether it has sent a message about a job.
        killed: whether the supervisor has killed it.
        jobs: jobs that it has, by the tags of their attempts.
        steps: number of steps of each job that it has begun.
        costs: costs of jobs that are about to end.
        error: why it could not start, once it has said so.
        unhandled: messages about jobs that the supervisor has not handled yet.
    """

    process: BaseProcess
    pipe: "Connection[Any, Any]"
    last_message_at: float
    ready: bool = False
    made_progress: bool = False
    killed: bool = False
    error: OverpaintError | None = None
    jobs: dict[str, Job] = field(default_factory=dict[str, Job])
    steps: dict[str, int] = field(default_factory=dict[str, int])
    costs: dict[str, Spent] = field(default_factory=dict[str, Spent])
    unhandled: deque[tuple[str, JobMessage]] = field(default_factory=deque[tuple[str, JobMessage]])

    def send(self, message: RunJob | CancelJob) -> None:
        """Send a message. If the pipe is broken or stalled, kill the process."""
        try:
            self.pipe.send(message)
        except OSError:
            self.process.kill()

    def receive(self) -> Iterator[WorkerMessage]:
        """Yield the messages that have come. If the pipe is broken or stalled, kill the process."""
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
        except (EOFError, OSError):
            self.process.kill()

    def kill(self, timeout_s: float) -> int | None:
        """Kill the process and return its exit code.

        Args:
            timeout_s: seconds to wait, because nobody can kill a process that waits for the system.
        """
        self.killed = True
        self.process.kill()
        self.process.join(timeout_s)
        self.ready = False
        return self.process.exitcode

    def close(self) -> None:
        """Close the pipe."""
        self.pipe.close()
        if self.process.exitcode is not None:
            self.process.close()

    def forget(self, tag: str) -> Spent | None:
        """Remove a job that ended or was lost; return its costs, if the worker has sent them."""
        del self.jobs[tag]
        self.steps.pop(tag, None)
        return self.costs.pop(tag, None)


def start_worker(
    engine_factory: EngineFactory, postprocess: PostprocessConfig, message_timeout_s: float
) -> WorkerProcess:
    """Start a worker.

    Args:
        engine_factory: makes its engine.
        postprocess: checks, marks and signs its pictures.
        message_timeout_s: seconds after which a message that stops halfway fails.
    """
    context = multiprocessing.get_context("spawn")
    pipe, workers_end = make_pipe(message_timeout_s)
    process = context.Process(
        target=run_process, args=(workers_end, engine_factory, postprocess), name="overpaint-worker"
    )
    process.start()
    workers_end.close()
    return WorkerProcess(process, pipe, time.monotonic())


def restart_delay_s(deaths: int) -> float:
    """Return the seconds before the next worker starts.

    Args:
        deaths: workers in a row that died before any job made progress.
    """
    if deaths < FREE_RESTARTS:
        return 0.0
    return min(2.0 ** min(deaths - FREE_RESTARTS, 10), MAX_RESTART_DELAY_S)  # floats overflow


def attempt_tag(job: Job | Attempt) -> str:
    """Return the tag of an attempt, since the same job may come to a worker again."""
    return f"{job.id}.{job.attempt}"


def run_job(job: Job, files: Files) -> RunJob:
    """Return the message that gives a job to a worker.

    Args:
        job: a claimed job.
        files: its pictures.

    Raises:
        PictureError: a picture of the job is missing or damaged.
    """
    output, request = job.origin.output, files.unpack_request(job.request)
    if job.origin.set_fields is not None:
        request = request.mark_set(job.origin.set_fields)
    return RunJob(
        tag=attempt_tag(job),
        request=request,
        model=job.model,
        folder=files.get_results_folder(job.id),
        stem=str(job.attempt),
        key=job.key,
        priority=job.priority,
        kind=output.kind,
        options=dict(output.options),
        preview_every=output.preview_every,
        checked=job.origin.check_safety,
    )


def make_pipe(timeout_s: float) -> "tuple[Connection[Any, Any], Connection[Any, Any]]":
    """Make both ends of a pipe; the second one is for another process.

    At the first end, messages fail that stop halfway, because the supervisor's thread would wait
    for them. That takes a socket: Windows has no timeouts for the pipes of `multiprocessing`.

    Args:
        timeout_s: seconds without progress of a message.
    """
    first, second = socket.socketpair()
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        first.setsockopt(socket.SOL_SOCKET, option, encode_timeout(timeout_s, sys.platform))
    return Connection(first.detach()), Connection(second.detach())


def encode_timeout(seconds: float, platform: str) -> bytes:
    """Return a timeout as the socket options of a platform take it.

    Args:
        seconds: of the timeout.
        platform: as `sys.platform`. Windows takes milliseconds, others C's struct timeval.
    """
    if platform == "win32":
        return struct.pack("@L", max(1, round(seconds * 1000)))
    whole, part = divmod(seconds, 1)
    return struct.pack("@ll", int(whole), int(part * 1e6))
