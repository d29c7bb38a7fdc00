"""What the rows of the batch under way have that others have not, for layers deep inside."""

from collections.abc import Generator, Hashable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

_SETS: ContextVar[tuple[Hashable, ...]] = ContextVar("sets", default=())


@contextmanager
def use_rows(sets: Sequence[Hashable]) -> Generator[None]:
    """Say what each row of the batches in here has: one set for each."""
    token = _SETS.set(tuple(sets))
    try:
        yield
    finally:
        _SETS.reset(token)


def get_rows() -> tuple[Hashable, ...]:
    """The sets of the rows of the batch under way."""
    return _SETS.get()
