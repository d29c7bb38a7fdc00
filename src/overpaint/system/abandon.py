"""Let a thread give up work whose result is not needed anymore.

    with abandonable(event):        # in the thread that works
        ...
        check_abandoned()           # between two parts of the work

Another thread sets the event. Code that takes long calls `check_abandoned`, which does nothing
outside `abandonable`.
"""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

_event: ContextVar[threading.Event | None] = ContextVar("abandoned", default=None)


class AbandonedError(Exception):
    """The result of the work is not needed anymore."""


@contextmanager
def abandonable(event: threading.Event) -> Generator[None]:
    """Make `check_abandoned` raise in this thread once another thread has set the event."""
    token = _event.set(event)
    try:
        check_abandoned()
        yield
    finally:
        _event.reset(token)


def check_abandoned() -> None:
    """Raise AbandonedError if the work of this thread is abandoned."""
    event = _event.get()
    if event is not None and event.is_set():
        raise AbandonedError
