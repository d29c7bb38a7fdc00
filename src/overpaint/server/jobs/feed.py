"""What happens to jobs now, for whoever listens: the part of a job's story that is not stored.

Steps and previews are worth telling while they happen, and nothing after; what lasts is in the
store's history. Whoever listens hears of both: from here, or that there is something to look up.
"""

import asyncio
import contextlib
import threading
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field

from overpaint.engine.worker import Shown
from overpaint.events import Step
from overpaint.server.jobs.supervisor import Heard

WAITING = 256
"""What a listener may be behind; beyond that it misses steps and previews."""


@dataclass
class Now:
    """Where a job is that is under way.

    Attributes:
        step: the latest.
        previews: the latest of each picture.
    """

    step: Step | None = None
    previews: dict[int, Shown] = field(default_factory=dict[int, Shown])


@dataclass(eq=False)
class Listener:
    """Somebody who listens to a job, in an event loop.

    Attributes:
        passing: whether steps and previews are of interest.
        known: the number of what was last said of the job, of what they have looked at.
    """

    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Heard]
    passing: bool
    known: int | None = None

    def tell(self, heard: Heard) -> None:
        """From any thread."""
        if isinstance(heard, Step | Shown) and not self.passing:
            return
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self.loop.call_soon_threadsafe(self._put, heard)

    def _put(self, heard: Heard) -> None:
        if isinstance(heard, Step | Shown) and self.queue.qsize() >= WAITING:
            return
        self.queue.put_nowait(heard)


class Hub:
    """Spreads what the supervisor hears."""

    def __init__(self) -> None:
        self._now: dict[str, Now] = {}
        self._listeners: dict[str, list[Listener]] = {}
        self._moved = set[str]()
        self._changing = threading.Lock()

    def hear(self, name: str, heard: Heard) -> None:
        """Something happened to a job; from any thread."""
        with self._changing:
            match heard:
                case "ended" | "requeued":
                    self._now.pop(name, None)
                case Step():
                    self._now.setdefault(name, Now()).step = heard
                    self._moved.add(name)
                case Shown(index):
                    self._now.setdefault(name, Now()).previews[index] = heard
                case _:
                    pass
            listeners = list(self._listeners.get(name, ()))
        for listener in listeners:
            listener.tell(heard)

    def rouse(self) -> None:
        """Have everybody who listens look at what is stored: nothing more happens here."""
        with self._changing:
            listeners = [one for those in self._listeners.values() for one in those]
        for listener in listeners:
            listener.tell("ended")

    def listened(self) -> list[str]:
        """Jobs that somebody listens to."""
        with self._changing:
            return list(self._listeners)

    def compare(self, latest: Mapping[str, int | None]) -> None:
        """Have those look at what is stored who do not know of the last that was said.

        Args:
            latest: its number, by job; None of those that are forgotten.
        """
        with self._changing:
            behind = [
                (listener, number)
                for name, number in latest.items()
                for listener in self._listeners.get(name, ())
                if listener.known != number or number is None
            ]
        for listener, number in behind:
            listener.known = number
            listener.tell("ended")

    def now(self, name: str) -> Now:
        """Where a job is; nothing is known of one that is not under way here."""
        with self._changing:
            now = self._now.get(name, Now())
            return Now(now.step, dict(now.previews))

    def moved(self) -> set[str]:
        """Jobs that made a step since this was last asked."""
        with self._changing:
            moved, self._moved = self._moved, set()
            return moved

    @contextlib.contextmanager
    def listening(self, name: str, *, passing: bool = True) -> Generator[Listener]:
        """Hear of a job from now on, in the event loop that asks.

        Args:
            name: of the job.
            passing: whether also of steps and previews.
        """
        listener = Listener(asyncio.get_running_loop(), asyncio.Queue(), passing)
        with self._changing:
            self._listeners.setdefault(name, []).append(listener)
        try:
            yield listener
        finally:
            with self._changing:
                self._listeners[name].remove(listener)
                if not self._listeners[name]:
                    del self._listeners[name]
