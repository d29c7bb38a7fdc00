"""Make calls of a running server fail while a file in its folder describes a fault."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import stat
from dataclasses import dataclass
from functools import partial
from io import BufferedWriter, FileIO
from pathlib import Path
from typing import Any
from unittest import mock

from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from overpaint.system.atomic_files import PARTIAL_SUFFIX

FILES = ("mkdir", "open", "write", "fsync", "replace", "fsync of the folder")
"""Points on a file's way to the disk, in order."""

DATABASE = {"begin": "begin", "execute": "before_cursor_execute", "commit": "commit"}
"""Points of a transaction, in order, and SQLAlchemy's events just before."""


def fail(folder: Path, who: str, point: str, code: int = errno.ENOSPC) -> None:
    """From now on, a point fails in the "server" or the "worker"."""
    path = folder / "faults.new"
    path.write_text(json.dumps([who, point, code]))
    path.replace(folder / "faults.json")


def heal(folder: Path) -> None:
    (folder / "faults.json").unlink()


def install(folder: Path, who: str) -> None:
    """Make this process's calls for a folder and for its database fail as `faults.json`
    describes."""
    faults = Faults(folder, who)
    mkdir, opened, replace, fsync = Path.mkdir, Path.open, os.replace, os.fsync

    def failing_mkdir(path: Path, *arguments: Any, **options: Any) -> None:
        if path.is_relative_to(folder):
            faults.pass_by("mkdir")
        mkdir(path, *arguments, **options)

    def failing_open(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.suffix != PARTIAL_SUFFIX:
            return opened(path, *arguments, **options)
        faults.pass_by("open")
        return HalfWritten(path, faults)

    def failing_fsync(handle: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        faults.pass_by("fsync of the folder" if is_folder else "fsync")
        fsync(handle)

    def failing_replace(source: Path, target: Path) -> None:
        faults.pass_by("replace")
        replace(source, target)

    mock.patch.object(Path, "mkdir", failing_mkdir).start()
    mock.patch.object(Path, "open", failing_open).start()
    mock.patch.object(os, "fsync", failing_fsync).start()
    mock.patch.object(os, "replace", failing_replace).start()
    for point, name in DATABASE.items():
        event.listen(Engine, name, partial(faults.pass_by_in_database, point))


@dataclass(frozen=True)
class Faults:
    """The faults of a process."""

    folder: Path
    who: str

    def _code(self, point: str) -> int | None:
        try:
            *where, code = json.loads((self.folder / "faults.json").read_bytes())
        except FileNotFoundError:
            return None
        return code if where == [self.who, point] else None

    def pass_by(self, point: str) -> None:
        if code := self._code(point):
            raise OSError(code, os.strerror(code))

    def pass_by_in_database(self, point: str, *_: object) -> None:
        if self._code(point):
            raise OperationalError(point, None, sqlite3.OperationalError("disk I/O error"))


class HalfWritten(BufferedWriter):
    """A file whose writing fails half-way."""

    def __init__(self, path: Path, faults: Faults):
        super().__init__(FileIO(path, "w"))
        self._faults = faults

    def write(self, data: Any) -> int:
        written = super().write(data[: len(data) // 2])
        self.flush()
        self._faults.pass_by("write")
        return written + super().write(data[len(data) // 2 :])
