"""The job store's database: SQLite or Postgres, its transactions and its clock."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import DBAPIError

from overpaint.errors import StoreError
from overpaint.server.store.upgrade import Report, prepare_schema

IDLE_IN_TRANSACTION_TIMEOUT_S = 30.0
"""Seconds after which Postgres ends a transaction that nothing is done in: of a server that stands
still in the middle of one, whose locks would else hold up all others."""

POSTGRES_TIMEOUTS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
"""Seconds (the last: milliseconds) until libpq takes Postgres for gone; the system's are hours."""

SQLITE_CACHE_KIB = 256
"""KiB of SQLite's pages that a connection keeps: those of one transaction, since any other that
writes makes them stale. The machine keeps the file's pages anyway."""


class Database:
    """Transactions on one database, from any thread."""

    def __init__(
        self,
        url: str,
        clock: Callable[[], float] | None = None,
        *,
        upgrade: bool = False,
        report: Report = lambda _: None,
    ):
        """Connect, and create the tables of a new store.

        Args:
            url: `sqlite:///path/jobs.db`, `postgresql+psycopg://…`.
            clock: seconds since 1970. By default the machine's, and for Postgres the database's,
                which all servers share.
            upgrade: whether to migrate an older store, as servers do when they start. Otherwise
                an older store is refused.
            report: receives the progress of a migration, also from another thread.

        Raises:
            StoreError: the store cannot be reached or migrated, or is newer than this program.
        """
        self._engine = create_store_engine(url)
        self._shared = self._engine.dialect.name == "postgresql"
        self._clock = clock
        name = _hide_password(url)
        try:
            prepare_schema(self._engine, name, upgrade=upgrade, report=report)
        except DBAPIError as error:
            self.close()
            raise StoreError(f"The job store {name} cannot be opened: {error.orig}.") from error
        except StoreError:
            self.close()
            raise

    def close(self) -> None:
        """Let the connections go."""
        self._engine.dispose()

    def write(self) -> AbstractContextManager[Connection]:
        """A transaction that may write, and is on the disk when it is over."""
        return self._engine.begin()

    def read(self) -> AbstractContextManager[Connection]:
        """A transaction that only reads."""
        return self._engine.execution_options(reads=True).begin()

    def now(self, connection: Connection) -> float:
        """Seconds since 1970."""
        if self._clock:
            return self._clock()
        if self._shared:
            epoch = func.extract("epoch", func.clock_timestamp())
            return float(connection.execute(select(epoch)).scalar_one())
        return time.time()


def get_store_url(data: Path, store: str | None) -> str:
    """Where a server's jobs are: in its folder, unless it was given a store."""
    return store or f"sqlite:///{data / 'jobs.db'}"


def create_store_engine(url: str) -> Engine:
    """An engine whose every transaction may write, and is durable when it is committed.

    SQLite: WAL; a commit returns once it is on the disk; whoever begins has the right to write, so
    that no transaction fails half-way because of another.

    Postgres: a transaction that is left alone for `HELD` seconds is ended, and a connection to a
    machine that says nothing any more is given up.
    """
    others = {} if url.startswith("sqlite") else POSTGRES_TIMEOUTS
    waits = {name: wait for name, wait in others.items() if name not in make_url(url).query}
    engine = create_engine(url, pool_pre_ping=bool(others), connect_args=waits)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def opened(connection: Any, _: Any) -> None:  # pyright: ignore[reportUnusedFunction]
            connection.isolation_level = None  # BEGIN is ours
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
            patience = f"{1000 * IDLE_IN_TRANSACTION_TIMEOUT_S:.0f}ms"
            connection.execute(f"SET idle_in_transaction_session_timeout = '{patience}'")
            connection.commit()

    return engine


def _hide_password(url: str) -> str:
    """A store's address without its password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
