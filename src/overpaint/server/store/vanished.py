"""Notice that the file of a job store on SQLite is removed or replaced while it is open.

A removed file stays open: programs read and write it as before, and everything is lost when they
end. So each transaction compares the open file with the one at the path. If there is no file, the
transaction fails, and the server accepts nothing. If there is another one, such as a restored
backup, new connections open that.
"""

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DisconnectionError, OperationalError

_FILE = "file"
"""Name of the open file's identity in the information about a connection."""


def watch_file(engine: Engine) -> None:
    """Let transactions of an engine fail from now on if the store's file is not at its path.

    Args:
        engine: of a store on SQLite that exists.
    """
    path = Path(engine.url.database or "")

    @event.listens_for(engine, "do_connect")
    def connecting(*_: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        _identify(path)  # SQLite would make an empty file.

    @event.listens_for(engine, "checkout")
    def begins(_: Any, record: Any, __: Any) -> None:  # pyright: ignore[reportUnusedFunction]
        there = _identify(path)
        if record.info.setdefault(_FILE, there) != there:
            raise DisconnectionError("another file is in the place of the job store")

    @event.listens_for(engine, "commit")
    def commits(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        try:
            is_same = connection.info[_FILE] == _identify(path)
        except sqlite3.OperationalError as error:
            raise OperationalError("COMMIT", None, error) from error
        if not is_same:
            error = sqlite3.OperationalError("another file is in the place of the job store")
            raise OperationalError("COMMIT", None, error)


def _identify(path: Path) -> tuple[int, int]:
    """Return the device and the number of a file.

    Raises:
        OperationalError: of sqlite3, there is no such file.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise sqlite3.OperationalError(f"the file of the job store is gone: {path}") from error
    return status.st_dev, status.st_ino
