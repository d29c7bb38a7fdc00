"""Files that are whole or not there, and stay."""

import os
import secrets
import sqlite3
from pathlib import Path

PARTIAL = ".partial"
"""What names of files end with that are being written."""


def write(path: Path, data: bytes) -> None:
    """Write a file that survives whatever comes after this returns.

    It is written beside its place, brought to the disk, and renamed.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        try:
            _sync(path.parent)
        except OSError:
            path.unlink()  # else it would be there, but might not stay
            raise
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def hold(path: Path) -> sqlite3.Connection:
    """Have a file that nobody else has, until this is closed or the process ends, however it does.

    The lock is SQLite's, which every system has.

    Raises:
        BlockingIOError: somebody else has it.
    """
    lock = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        lock.close()
        raise BlockingIOError(f"{path} is held by somebody else") from error
    return lock


def _sync(folder: Path) -> None:
    """Bring a folder's names to the disk, where the system has that."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
