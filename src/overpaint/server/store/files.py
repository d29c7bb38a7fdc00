"""Files of jobs: the pictures that they need, by content, and those that they made.

data/files/ab/abcdef…           a picture that came with a request, named by its hash
data/results/JOB/ATTEMPT-0.png  what an attempt made
"""

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from overpaint.errors import PictureError, StoreError
from overpaint.request import Request
from overpaint.system.atomic_files import PARTIAL_SUFFIX, write_file

HASH_PATTERN = re.compile("[0-9a-f]{64}")
"""A file's name."""


class Files:
    """A folder of files."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _get_path(self, name: str) -> Path:
        if not HASH_PATTERN.fullmatch(name):
            raise StoreError(f"{name!r} is not the hash of a file: 64 of 0-9 and a-f.")
        return self.folder / "files" / name[:2] / name

    def put(self, data: bytes) -> str:
        """Keep data; returns its hash, which is its name.

        Raises:
            OSError: the disk is full or broken.
        """
        name = hashlib.sha256(data).hexdigest()
        path = self._get_path(name)
        if _holds(path, data):
            with contextlib.suppress(FileNotFoundError):  # it may expire at this moment
                os.utime(path)  # its age begins again
                return name
        write_file(path, data)
        return name

    def get(self, name: str) -> bytes:
        """The data of a hash.

        Raises:
            PictureError: there is none, or it is damaged.
        """
        try:
            data = self._get_path(name).read_bytes()
        except OSError as error:
            raise PictureError(f"there is no file {name}; upload it again.") from error
        if hashlib.sha256(data).hexdigest() != name:
            raise PictureError(f"file {name} is damaged on the server's disk; upload it again.")
        return data

    def exists(self, name: str) -> bool:
        """Whether there is a file of a hash."""
        return self._get_path(name).exists()

    def list_older_than(self, age: float) -> list[str]:
        """Names of what was put longer ago than `age` seconds."""
        before = time.time() - age
        # Others may leave files of their own here: .DS_Store, .nfs…
        paths = (p for p in (self.folder / "files").glob("*/*") if HASH_PATTERN.fullmatch(p.name))
        return [path.name for path in paths if _get_mtime(path) < before]

    def delete(self, name: str, age: float = 0.0) -> None:
        """Remove a file, unless it was put anew meanwhile: no longer ago than `age` seconds."""
        path = self._get_path(name)
        aside = path.with_suffix(PARTIAL_SUFFIX)  # from here on, whoever puts it writes it anew
        with contextlib.suppress(FileNotFoundError):
            path.replace(aside)
            if _get_mtime(aside) > time.time() - age:
                aside.replace(path)
            else:
                aside.unlink()

    def get_results_folder(self, job: str) -> Path:
        """The folder of what a job made."""
        return self.folder / "results" / job

    def delete_results(self, job: str) -> None:
        """Remove what a job made."""
        shutil.rmtree(self.get_results_folder(job), ignore_errors=True)

    def delete_partial_files(self, age: float = 0.0) -> None:
        """Remove what was being written when a server died, more than `age` seconds ago."""
        for path in self.folder.glob(f"*/*/*{PARTIAL_SUFFIX}"):
            if _get_mtime(path) <= time.time() - age:
                path.unlink(missing_ok=True)

    def pack_request(self, request: Request) -> tuple[dict[str, Any], list[str]]:
        """A request as JSON, its pictures as names of files that are kept now; and the names."""
        names: list[str] = []
        put = cache(self.put)  # a picture may come more than once

        def packed(value: Any) -> Any:
            match value:
                case {"data": bytes(data)}:
                    names.append(put(data))
                    return {"file": names[-1]}
                case Mapping():
                    return {key: packed(inner) for key, inner in value.items()}
                case list() | tuple():
                    return [packed(inner) for inner in value]
                case _:
                    return value

        return packed(request.model_dump()), names

    def unpack_request(self, stored: Mapping[str, Any]) -> Request:
        """The request that was packed.

        Raises:
            PictureError: a file is missing or damaged.
        """
        get = cache(self.get)

        def unpacked(value: Any) -> Any:
            match value:
                case {"file": str(name)} if len(value) == 1:
                    return {"data": get(name)}
                case Mapping():
                    return {key: unpacked(inner) for key, inner in value.items()}
                case list():
                    return [unpacked(inner) for inner in value]
                case _:
                    return value

        return Request.model_validate(unpacked(stored))


def _holds(path: Path, data: bytes) -> bool:
    """Return whether a file has this content. A crash or a full disk can leave another one."""
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def _get_mtime(path: Path) -> float:
    """When a file was put; later than anything if it is not there any more."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
