"""Progress of work whose size is known: the time that is left, and bytes that are read.

    with watch_bytes(show):         # in the code that shows progress
        ...
        expect_bytes(total)         # in the code that reads
        add_bytes(count)

Both functions do nothing outside `watch_bytes`.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import perf_counter


class Estimate:
    """The time that is left, from the share of the work that is done."""

    def __init__(self, clock: Callable[[], float] = perf_counter):
        """Begin now.

        Args:
            clock: returns seconds.
        """
        self._clock = clock
        self._end: float | None = None
        self.restart()

    def restart(self) -> None:
        """Begin now, with no work done."""
        self._start = self._clock()
        self._end = None

    def update(self, share: float) -> None:
        """Set the share of the work that is done, 0 to 1."""
        if share > 0:
            now = self._clock()
            self._end = self._start + (now - self._start) / min(share, 1)

    @property
    def seconds_left(self) -> float | None:
        """The seconds until the end; None before any work is done."""
        return None if self._end is None else max(0.0, self._end - self._clock())


@dataclass
class ByteCount:
    """Bytes that are read, and that will be read."""

    done: int = 0
    total: int = 0


_count: ContextVar[tuple[ByteCount, Callable[[ByteCount], None]] | None] = ContextVar(
    "bytes", default=None
)


@contextmanager
def watch_bytes(show: Callable[[ByteCount], None]) -> Generator[None]:
    """Call a function whenever the code in this context announces bytes or has read them."""
    token = _count.set((ByteCount(), show))
    try:
        yield
    finally:
        _count.reset(token)


def expect_bytes(count: int) -> None:
    """Announce bytes that will be read."""
    if watched := _count.get():
        state, show = watched
        state.total += count
        show(state)


def add_bytes(count: int) -> None:
    """Report bytes that have been read."""
    if watched := _count.get():
        state, show = watched
        state.done += count
        show(state)
