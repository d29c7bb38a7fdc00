"""Live updates of running jobs for clients that follow them.

The store keeps a job's history. Steps and previews matter only while the job runs, so they are only
here. A listener receives both: steps and previews directly, and for the history a signal to read
the store.
"""

import asyncio
import contextlib
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

from overpaint.engine.messages import PreviewImage
from overpaint.events import Step
from overpaint.server.jobs.supervisor import JobUpdate

MAX_QUEUED_UPDATES = 256
"""Updates that wait for a slow listener. Beyond that it misses steps and previews."""


@dataclass
class JobProgress:
    """Progress of a running job.

    Attributes:
        step: the last step.
        previews: the last preview of each picture.
    """

    step: Step | None = None
    previews: dict[int, PreviewImage] = field(default_factory=dict[int, PreviewImage])


@dataclass(eq=False)
class Listener:
    """A client that follows a job.

    Attributes:
        loop: the client's event loop.
        queue: updates for the client.
        live: whether the client wants steps and previews.
        known: number of the last history entry that the client has.
    """

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[JobUpdate]
    live: bool
    known: int | None = None

    def notify(self, update: JobUpdate) -> None:
        """Queue an update; from any thread."""
        if isinstance(update, Step | PreviewImage) and not self.live:
            return
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self.loop.call_soon_threadsafe(self._put, update)

    def _put(self, update: JobUpdate) -> None:
        is_live = isinstance(update, Step | PreviewImage)
        if is_live and self.queue.qsize() >= MAX_QUEUED_UPDATES:
            return
        self.queue.put_nowait(update)


class JobFeed:
    """Passes the supervisor's updates to listeners. Any thread may call it."""

    def __init__(self) -> None:
        self._progress: dict[str, JobProgress] = {}
        self._listeners: dict[str, list[Listener]] = {}
        self._stepped = set[str]()
        self._lock = threading.Lock()

    def publish(self, job_id: str, update: JobUpdate) -> None:
        """Record an update, and pass it to the job's listeners."""
        with self._lock:
            match update:
                case "ended" | "requeued":
                    self._progress.pop(job_id, None)
                case Step():
                    self._progress.setdefault(job_id, JobProgress()).step = update
                    self._stepped.add(job_id)
                case PreviewImage(index):
                    self._progress.setdefault(job_id, JobProgress()).previews[index] = update
                case _:
                    pass
            listeners = list(self._listeners.get(job_id, ()))
        for listener in listeners:
            listener.notify(update)

    def wake_all(self) -> None:
        """Make all listeners read the store, because no more updates come."""
        with self._lock:
            listeners = [one for group in self._listeners.values() for one in group]
        for listener in listeners:
            listener.notify("ended")

    def followed_jobs(self) -> list[str]:
        """Return the ids of jobs that have a listener."""
        with self._lock:
            return list(self._listeners)

    def wake_outdated(self, latest: Mapping[str, int | None]) -> None:
        """Make those listeners read the store whose history is older than the store's.

        Args:
            latest: number of the last history entry of each job; None if the job was removed.
        """
        with self._lock:
            outdated = [
                (listener, number)
                for job_id, number in latest.items()
                for listener in self._listeners.get(job_id, ())
                if listener.known != number or number is None
            ]
        for listener, number in outdated:
            listener.known = number
            listener.notify("ended")

    def progress(self, job_id: str) -> JobProgress:
        """Return a job's progress; an empty one if the job does not run on this server."""
        with self._lock:
            progress = self._progress.get(job_id, JobProgress())
            return JobProgress(progress.step, dict(progress.previews))

    def take_stepped_jobs(self) -> set[str]:
        """Return the ids of jobs that made a step since the last call."""
        with self._lock:
            stepped, self._stepped = self._stepped, set()
            return stepped

    @contextlib.contextmanager
    def listen(self, job_id: str, *, live: bool = True) -> Generator[Listener]:
        """Follow a job in the calling event loop.

        Args:
            job_id: of the job.
            live: whether to receive steps and previews.
        """
        listener = Listener(asyncio.get_running_loop(), asyncio.Queue(), live)
        with self._lock:
            self._listeners.setdefault(job_id, []).append(listener)
        try:
            yield listener
        finally:
            with self._lock:
                self._listeners[job_id].remove(listener)
                if not self._listeners[job_id]:
                    del self._listeners[job_id]
