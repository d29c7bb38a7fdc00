"""Write files atomically and durably, and lock files between processes."""

import os
import secrets
import sqlite3
from pathlib import Path

PARTIAL_SUFFIX = ".partial"
"""Suffix of files that are being written."""


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically, so that it survives a crash once this returns.

    The data goes to a temporary file in the same folder, is synced to the disk, and is renamed.

    Raises:
        OSError: the file cannot be written; no temporary file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        with temporary.open("wb") as file:
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


def lock_file(path: Path) -> sqlite3.Connection:
    """Lock a file for this process until the connection is closed or the process ends.

    The lock is SQLite's, which works on every system.

    Raises:
        BlockingIOError: another process holds the lock.
    """
    lock = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        raise BlockingIOError(f"{path} is locked by another process") from error
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
