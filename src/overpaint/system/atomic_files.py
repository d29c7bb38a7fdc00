"""Write files atomically and durably, and lock files between processes."""

import contextlib
import os
import secrets
import sqlite3
import stat
from pathlib import Path

PARTIAL_SUFFIX = ".partial"
"""Suffix of files that are being written."""

PRIVATE_FOLDER_MODE = 0o700
PRIVATE_FILE_MODE = 0o600
"""Permissions: the owner alone can read and write."""


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically, so that it survives a crash once this returns.

    The data goes to a temporary file in the same folder, is synced to the disk, and is renamed.
    The file and missing folders get at most the permissions of the folder around them.

    Raises:
        OSError: the file cannot be written; no temporary file is left.
    """
    _make_folder(path.parent)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            temporary.chmod(temporary.stat().st_mode & path.parent.stat().st_mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        try:
            _sync_folder(path.parent)
        except OSError:
            path.unlink()  # an unsynced entry may vanish in a crash
            raise
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _make_folder(path: Path) -> None:
    """Create a folder and those around it, with at most the permissions of the folder around."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(stat.S_IMODE(path.parent.stat().st_mode) & 0o777, exist_ok=True)


def make_private_folder(path: Path) -> None:
    """Create a folder, or take an existing one, and let its owner alone read it.

    An existing folder of another user keeps its permissions.

    Raises:
        OSError: the folder cannot be created.
    """
    path.mkdir(PRIVATE_FOLDER_MODE, parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        path.chmod(PRIVATE_FOLDER_MODE)


def make_private_file(path: Path) -> None:
    """Create an empty file, or take an existing one, and let its owner alone read it.

    Nothing happens if the folder is missing, or if another user owns the file.
    """
    with contextlib.suppress(OSError):
        path.touch(PRIVATE_FILE_MODE)
        path.chmod(PRIVATE_FILE_MODE)


def lock_file(path: Path) -> sqlite3.Connection:
    """Lock a file for this process until the connection is closed or the process ends.

    The lock is SQLite's, which works on every system.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be opened or written, or has other content.
    """
    make_private_file(path)
    lock = None
    try:
        lock = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.DatabaseError as error:
        if lock:
            lock.close()
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
            raise BlockingIOError(f"{path} is locked by another process") from error
        raise OSError(f"{path} cannot be locked: {error}") from error
    return lock


def _sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the disk, if the system supports it."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
