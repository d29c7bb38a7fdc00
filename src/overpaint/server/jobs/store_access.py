"""Open a server's job store: lock the server's folder, and create or upgrade the store."""

import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from overpaint.errors import StoreError
from overpaint.server.settings import StoreSettings
from overpaint.server.store.database import DEFAULT_STORE_SETTINGS, Database, get_store_url
from overpaint.server.store.files import prepare_data_folder
from overpaint.server.telemetry.logs import log_upgrade
from overpaint.system.atomic_files import lock_file


def open_database(
    data: Path, store: str | None, settings: StoreSettings = DEFAULT_STORE_SETTINGS
) -> Database:
    """Open a server's job store: create a new one, upgrade an older one.

    Args:
        data: the server's folder.
        store: URL of the job store, unless it is in `data`.
        settings: how the server uses the store.

    Raises:
        StoreError: the store cannot be opened or upgraded, or is newer than this program.
    """
    url = get_store_url(data, store)
    return Database(url, upgrade=True, report=log_upgrade, settings=settings)


def prepare_store(data: Path, store: str | None) -> None:
    """Create or upgrade a server's job store before the server starts.

    Here an error ends the command with one sentence, and no server has started.

    Args:
        data: as for `open_database`.
        store: as for `open_database`.

    Raises:
        StoreError: another server uses the folder, or as `open_database`.
    """
    with explain_store_errors(data):
        prepare_data_folder(data)
        lock = contextlib.closing(lock_folder(data)) if store is None else contextlib.nullcontext()
        with lock:
            open_database(data, store).close()


@contextlib.contextmanager
def explain_store_errors(data: Path) -> Generator[None]:
    """Raise `StoreError`, which has one sentence, for errors of the system and the database.

    Args:
        data: the server's folder.

    Raises:
        StoreError: in place of `OSError` and `SQLAlchemyError`.
    """
    try:
        yield
    except SQLAlchemyError as error:
        cause = " ".join(str(getattr(error, "orig", None) or error).split()).rstrip(".")
        raise StoreError(f"The job store cannot be used: {cause}.") from error
    except OSError as error:
        raise StoreError(
            f"The folder {data} cannot be used: {error.strerror or error}. Give another folder "
            "with --data."
        ) from error


def lock_folder(folder: Path) -> sqlite3.Connection:
    """Lock a server's folder until the returned connection is closed.

    Raises:
        StoreError: another server uses the folder.
    """
    try:
        return lock_file(folder / "server.lock")
    except BlockingIOError as error:
        raise StoreError(
            f"Another server has the folder {folder}. Give this one another with --data; servers "
            "that share one need a --store on Postgres."
        ) from error
