"""The job store's database: SQLite or Postgres, its transactions and its clock."""

import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from overpaint.errors import StoreError
from overpaint.server.settings import StoreSettings
from overpaint.server.store.upgrade import Report, prepare_schema
from overpaint.server.store.vanished import watch_file
from overpaint.system.atomic_files import make_private_file

DEFAULT_STORE_SETTINGS = StoreSettings()

POSTGRES_TIMEOUTS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
"""Seconds (the last: milliseconds) after which libpq closes a connection to a silent Postgres."""

SQLITE_CACHE_KIB = 256
"""KiB of pages that a connection to SQLite caches: those of one transaction. Other writers make
them stale, and the system caches the file anyway."""


class Database:
    """Transactions on one database, from any thread."""

    def __init__(
        self,
        url: str,
        clock: Callable[[], float] | None = None,
        *,
        upgrade: bool = False,
        report: Report = lambda _: None,
        settings: StoreSettings = DEFAULT_STORE_SETTINGS,
    ):
        """Connect, and create the tables of a new store.

        Args:
            url: `sqlite:///path/jobs.db`, `postgresql+psycopg://…`.
            clock: seconds since 1970. By default the machine's, and for Postgres the database's,
                which all servers share.
            upgrade: whether to migrate an older store, as servers do when they start. Otherwise
                an older store is refused.
            report: receives the progress of a migration, also from another thread.
            settings: `idle_transaction_timeout_s` is read.

        Raises:
            StoreError: the store cannot be reached or migrated, or is newer than this program.
        """
        name = _hide_password(url)
        try:
            self._engine = create_store_engine(url, settings)
        except ModuleNotFoundError as error:
            raise StoreError(
                f"The job store {name} needs the package {error.name}, which is not installed. "
                "Install it: pip install 'overpaint[postgres]'."
            ) from error
        except SQLAlchemyError as error:
            raise StoreError(
                f"{name!r} is not the URL of a job store. Give one on Postgres: "
                "postgresql+psycopg://USER:PASSWORD@HOST/NAME."
            ) from error
        except OSError as error:
            raise StoreError(
                f"The job store {name} cannot be opened: {error.strerror or error}."
            ) from error
        self._shared = self._engine.dialect.name == "postgresql"
        self._clock = clock
        try:
            prepare_schema(self._engine, name, upgrade=upgrade, report=report)
        except DBAPIError as error:
            self.close()
            cause = " ".join(str(error.orig).split()).rstrip(".")  # libpq's has several lines
            raise StoreError(f"The job store {name} cannot be opened: {cause}.") from error
        except StoreError:
            self.close()
            raise
        if not self._shared:
            watch_file(self._engine)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def write(self) -> AbstractContextManager[Connection]:
        """Begin a transaction that can write; it is durable when the context ends."""
        return self._engine.begin()

    def read(self) -> AbstractContextManager[Connection]:
        """Begin a transaction that only reads."""
        return self._engine.execution_options(reads=True).begin()

    def now(self, connection: Connection) -> float:
        """Return the time in seconds since 1970."""
        if self._clock:
            return self._clock()
        if self._shared:
            epoch = func.extract("epoch", func.clock_timestamp())
            return float(connection.execute(select(epoch)).scalar_one())
        return time.time()


def get_store_url(data: Path, store: str | None) -> str:
    """Return the URL of the job store: the given one, or SQLite in the server's folder."""
    return store or f"sqlite:///{data / 'jobs.db'}"


def create_store_engine(url: str, settings: StoreSettings = DEFAULT_STORE_SETTINGS) -> Engine:
    """Create an engine whose transactions can write and are durable once they are committed.

    SQLite uses WAL, and a commit returns once it is on the disk. A transaction takes the write lock
    when it begins, so that it does not fail halfway because of another.

    Postgres ends a transaction that is idle for `idle_transaction_timeout_s`, so that the locks of
    a frozen server do not block other servers. A connection to a silent machine times out.

    Raises:
        SQLAlchemyError: the URL is malformed, or names another database.
        ModuleNotFoundError: the driver is not installed.
    """
    url = re.sub("^postgres(ql)?://", "postgresql+psycopg://", url)  # the driver that we install
    if make_url(url).get_backend_name() not in ("sqlite", "postgresql"):
        raise ArgumentError("a job store is on SQLite or Postgres")
    others = {} if url.startswith("sqlite") else POSTGRES_TIMEOUTS
    waits = {name: wait for name, wait in others.items() if name not in make_url(url).query}
    path = make_url(url).database
    if url.startswith("sqlite") and path:
        for file in (Path(path), *Path(path).parent.glob(f"{Path(path).name}-*")):
            make_private_file(file)  # SQLite gives new -wal and -shm files the same permissions.
    engine = create_engine(url, pool_pre_ping=bool(others), connect_args=waits)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def opened(connection: Any, _: Any) -> None:  # pyright: ignore[reportUnusedFunction]
            connection.isolation_level = None  # `begun` below sends BEGIN
            for setting in (
                "journal_mode = WAL",
                "synchronous = FULL",
                "foreign_keys = ON",
                "busy_timeout = 60000",
                f"cache_size = -{SQLITE_CACHE_KIB}",
            ):
                connection.execute(f"PRAGMA {setting}")

        @event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
            reads = connection.get_execution_options().get("reads", False)
            connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    else:

        @event.listens_for(engine, "connect")
        def joined(connection: Any, _: Any) -> None:  # pyright: ignore[reportUnusedFunction]
            patience = f"{1000 * settings.idle_transaction_timeout_s:.0f}ms"
            connection.execute(f"SET idle_in_transaction_session_timeout = '{patience}'")
            connection.commit()

    return engine


def _hide_password(url: str) -> str:
    """Return a store's URL without its password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
