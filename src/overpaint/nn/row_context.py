"""Pass the adapter set of each row of the current batch to layers deep inside a network."""

from collections.abc import Generator, Hashable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_SETS: ContextVar[tuple[Hashable, ...]] = ContextVar("sets", default=())


@contextmanager
def use_rows(sets: Sequence[Hashable]) -> Generator[None]:
    """Set the adapter set of each row, for all network calls within the `with` block."""
    token = _SETS.set(tuple(sets))
    try:
        yield
    finally:
        _SETS.reset(token)


def get_rows() -> tuple[Hashable, ...]:
    """Return the adapter set of each row of the current batch."""
    return _SETS.get()
