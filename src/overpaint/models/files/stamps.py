"""Notice changes of files without reading them."""

import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

Stamp = tuple[tuple[str, int, int, int, int], ...]
"""The path, modification time, change time, size and inode of some files.

The change time differs also where a copy keeps the modification time of its source.
"""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def stamp_files(paths: Iterable[Path]) -> Stamp:
    """Return the stamp of some files, which differs after a change of any of them.

    Raises:
        OSError: A file does not exist.
    """
    return tuple(_stamp(os.fspath(path)) for path in paths)


def _stamp(path: str) -> tuple[str, int, int, int, int]:
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


class StampedValues(Generic[K, V]):
    """Values made from files: each is made again only after its files changed.

    Threads can share it; two that notice a change at the same time each make the values.
    """

    def __init__(self, make: Callable[[K], V | None]):
        """Use a function that makes a value, or returns None for files without one."""
        self._make = make
        # One attribute, so that another thread never sees stamps beside older values.
        self._state: tuple[Mapping[K, Stamp], Mapping[K, V | None], tuple[V, ...]] = ({}, {}, ())

    def update(self, stamps: Mapping[K, Stamp]) -> tuple[V, ...]:
        """Return the values of all keys in their order; the same tuple while nothing changes."""
        before, made, values = self._state
        if list(stamps.items()) != list(before.items()):
            made = {
                key: made[key] if before.get(key) == stamp else self._make(key)
                for key, stamp in stamps.items()
            }
            values = tuple(value for value in made.values() if value is not None)
            self._state = (stamps, made, values)
        return values
