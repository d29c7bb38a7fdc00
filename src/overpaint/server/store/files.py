"""Files of jobs: the pictures of requests, named by their content, and the results.

data/files/ab/abcdef…           a picture of a request, named by its hash
data/results/JOB/ATTEMPT-0.png  a result of an attempt
"""

import contextlib
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from overpaint.errors import PictureError, StoreError
from overpaint.picture import Picture
from overpaint.request import Request
from overpaint.system.atomic_files import (
    PARTIAL_SUFFIX,
    PRIVATE_FOLDER_MODE,
    make_private_folder,
    write_file,
)

HASH_PATTERN = re.compile("[0-9a-f]{64}")
"""The name of a file: the SHA-256 of its content."""


JOB_PATTERN = re.compile("[0-9a-f]{32}")
"""The id of a job, which its folder of results has as a name."""

OWN_NAMES = {"jobs.db", "server.lock", "files", "results"}
"""Names in the data folder of a server, of which it has at least one."""


def prepare_data_folder(folder: Path) -> None:
    """Create the data folder of a server, or take an existing one.

    Its owner alone can read it: jobs have prompts and secrets of webhooks. A folder that has other
    things alone, such as `/tmp`, keeps its permissions; the folders in it are private.

    Raises:
        OSError: the folder cannot be created.
    """
    folder.mkdir(PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    names = {path.name for path in folder.iterdir()}
    is_shared = folder.stat().st_mode & stat.S_ISVTX
    if not is_shared and (not names or names & OWN_NAMES):
        make_private_folder(folder)
    for name in ("files", "results"):
        make_private_folder(folder / name)


def hash_content(data: bytes) -> str:
    """Return the name of a file with this content."""
    return hashlib.sha256(data).hexdigest()


class Files:
    """The files of all jobs, in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def get_path(self, name: str) -> Path:
        """Return the path of a file.

        Raises:
            StoreError: the name is not a hash.
        """
        if not HASH_PATTERN.fullmatch(name):
            raise StoreError(f"{name!r} is not the hash of a file: 64 of 0-9 and a-f.")
        return self.folder / "files" / name[:2] / name

    def put(self, data: bytes) -> str:
        """Store data and return its name, which is its hash.

        Raises:
            OSError: the disk is full or broken.
        """
        name = hash_content(data)
        path = self.get_path(name)
        if _holds(path, data):
            with contextlib.suppress(FileNotFoundError):  # Another thread may delete it now.
                os.utime(path)  # The age of the file starts at zero again.
                return name
        write_file(path, data)
        return name

    def get_size(self, name: str) -> int:
        """Return the number of bytes of a file, without reading it; 0 if there is no such file."""
        try:
            return self.get_path(name).stat().st_size
        except OSError:
            return 0

    def get(self, name: str) -> bytes:
        """Return the data of a file.

        Raises:
            PictureError: the file is missing or damaged.
        """
        with self._open(name) as file:
            data = file.read()
        _check_hash(name, hash_content(data))
        return data

    def measure(self, name: str) -> int:
        """Check a file as `get` does, without keeping its data; return the number of its bytes.

        Raises:
            PictureError: the file is missing or damaged.
        """
        with self._open(name) as file:
            _check_hash(name, hashlib.file_digest(file, "sha256").hexdigest())
            return file.tell()

    def _open(self, name: str) -> BufferedReader:
        try:
            return self.get_path(name).open("rb")
        except OSError as error:
            raise PictureError(f"There is no file {name}; upload it again.") from error

    def get_time(self, name: str) -> float:
        """Return the time of the last `put` in seconds since 1970; infinity without the file."""
        return _get_mtime(self.get_path(name))

    def list_put_before(self, until: float) -> Iterator[str]:
        """Yield the names of files that were last put before a time, in seconds since 1970."""
        for group in _scan(self.folder / "files"):
            yield from _list_older(group.path, HASH_PATTERN, until)

    def delete(self, name: str, until: float = float("inf")) -> None:
        """Delete a file, unless it was put at or after a time, in seconds since 1970."""
        path = self.get_path(name)
        aside = path.with_suffix(PARTIAL_SUFFIX)  # After the move, `put` writes the file again.
        with contextlib.suppress(FileNotFoundError):
            path.replace(aside)
            if _get_mtime(aside) >= until:
                aside.replace(path)
            else:
                aside.unlink()

    def list_results_before(self, until: float) -> Iterator[str]:
        """Yield the ids of jobs whose results were written before a time, in seconds since 1970."""
        return _list_older(self.folder / "results", JOB_PATTERN, until)

    def get_results_folder(self, job: str) -> Path:
        """Return the folder of a job's results."""
        return self.folder / "results" / job

    def delete_results(self, job: str) -> None:
        """Delete a job's results."""
        shutil.rmtree(self.get_results_folder(job), ignore_errors=True)

    def delete_partial_files(self, age: float = 0.0) -> None:
        """Delete partly written files, which a server leaves when it dies, of at least this age.

        Args:
            age: seconds since the last change of the file.
        """
        until = time.time() - age
        groups = (group for part in _scan(self.folder) for group in _scan(part.path))
        for entry in (entry for group in groups for entry in _scan(group.path)):
            if entry.name.endswith(PARTIAL_SUFFIX) and _get_mtime(entry) <= until:
                Path(entry.path).unlink(missing_ok=True)

    def pack_request(self, request: Request) -> tuple[dict[str, Any], list[str]]:
        """Store the pictures of a request.

        Returns:
            The request as JSON with `{"file": name}` in place of pictures, and the names.
        """
        names: list[str] = []
        put = cache(self.put)  # A request may hold the same picture twice.

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
        """Return the request that `pack_request` packed.

        Fields with the same file share one `Picture`, so that it is decoded once.

        Raises:
            PictureError: a file is missing or damaged.
        """

        @cache
        def read(name: str) -> Picture:
            return Picture(data=self.get(name))

        def unpacked(value: Any) -> Any:
            match value:
                case {"file": str(name)} if len(value) == 1:
                    return read(name)
                case Mapping():
                    return {key: unpacked(inner) for key, inner in value.items()}
                case list():
                    return [unpacked(inner) for inner in value]
                case _:
                    return value

        return Request.model_validate(unpacked(stored))


def _check_hash(name: str, found: str) -> None:
    if found != name:
        raise PictureError(f"File {name} is damaged on the server's disk; upload it again.")


def _holds(path: Path, data: bytes) -> bool:
    """Return whether a file has this content. A crash or a full disk can leave another one."""
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def _scan(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder, one at a time: a server may have millions of results.

    A file has no entries, and neither has a folder that is gone.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from entries


def _list_older(folder: str | Path, pattern: re.Pattern[str], until: float) -> Iterator[str]:
    """Yield the names in a folder that match a pattern and were last changed before a time.

    The system may leave other files there: .DS_Store, .nfs…
    """
    for entry in _scan(folder):
        if pattern.fullmatch(entry.name) and _get_mtime(entry) < until:
            yield entry.name


def _get_mtime(path: Path | os.DirEntry[str]) -> float:
    """Return the time at which a file was last put; infinity if the file is gone."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
