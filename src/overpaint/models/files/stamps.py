"""Notice changes of files without reading them."""

import os
from collections.abc import Iterable
from pathlib import Path

Stamp = tuple[tuple[str, int, int, int], ...]
"""The path, modification time, change time and size of some files.

The change time differs also where a copy keeps the modification time of its source.
"""


def stamp_files(paths: Iterable[Path]) -> Stamp:
    """Return the stamp of some files, which differs after a change of any of them.

    Raises:
        OSError: A file does not exist.
    """
    return tuple(_stamp(os.fspath(path)) for path in paths)


def _stamp(path: str) -> tuple[str, int, int, int]:
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_ctime_ns, status.st_size
