"""Bring a job store to this program's schema version, or refuse it.

A store's version is in the table `alembic_version`, up to version 4 in the table `about`. Reading
it is cheap: Alembic is imported only when there is something to migrate.
"""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, Engine, insert, inspect, select, text

from overpaint.errors import StoreError
from overpaint.server.store.tables import (
    ABOUT_VERSION,
    SCHEMA_VERSION,
    about,
    alembic_version,
    schema,
)

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationInfo

FIRST_VERSION_BY_ALEMBIC = 5
"""Schema version from which on `alembic_version` has a store's version."""

POSTGRES_LOCK = 7160
"""Number of the advisory lock that programs hold while they create or migrate a store."""

PROGRESS_INTERVAL_S = 1.0
"""Seconds between two reports of an upgrade that goes on."""

_one_at_a_time = threading.Lock()  # Alembic keeps the running migration in a global


@dataclass(frozen=True)
class UpgradeProgress:
    """How far the upgrade of a store is.

    Attributes:
        state: "started", "running" (reported every second) or "finished".
        from_version: schema version before the upgrade.
        reached_version: schema version that the upgrade has reached.
        to_version: schema version after the upgrade.
        seconds: since the upgrade started.
    """

    state: Literal["started", "running", "finished"]
    from_version: int
    reached_version: int
    to_version: int
    seconds: float


Report = Callable[[UpgradeProgress], None]
"""Receives the progress of an upgrade, also from another thread."""


def prepare_schema(engine: Engine, store: str, *, upgrade: bool, report: Report) -> None:
    """Create the tables of a new store, and migrate those of an older one.

    Either happens in one transaction, which one program at a time can have: a failure leaves the
    store unchanged, and of several programs that start at once one migrates.

    Args:
        engine: of the store.
        store: the store's URL for messages, without its password.
        upgrade: whether to migrate an older store; otherwise it is refused.
        report: receives the progress of a migration.

    Raises:
        StoreError: the store is newer than this program, is older and `upgrade` is false, or the
            migration failed.
    """
    with engine.execution_options(reads=True).begin() as connection:
        if read_version(connection, store) == SCHEMA_VERSION:
            _check_tables(connection, store)
            return
    with _exclusive(engine) as connection:
        version = read_version(connection, store)  # another program may have been faster
        if version is None:
            _refuse_other_tables(connection, store)
            schema.create_all(connection)
            alembic_version.create(connection)
            connection.execute(insert(about).values(version=ABOUT_VERSION))
            connection.execute(insert(alembic_version).values(version_num=f"{SCHEMA_VERSION:04}"))
        elif version > SCHEMA_VERSION:
            raise StoreError(
                f"The job store {store} has schema version {version}, but this version of "
                f"Overpaint only knows versions up to {SCHEMA_VERSION}. Nothing was changed. "
                "Install the version of Overpaint that last used this store, or a newer one."
            )
        elif version < SCHEMA_VERSION and not upgrade:
            raise StoreError(
                f"The job store {store} has schema version {version}, but this version of "
                f"Overpaint needs version {SCHEMA_VERSION}. Nothing was changed. Start the server "
                "with `overpaint serve`: it upgrades the store and keeps every row."
            )
        elif version < SCHEMA_VERSION:
            _migrate(connection, store, version, report)


def read_version(connection: Connection, store: str) -> int | None:
    """Return a store's schema version, or None if the database has no store.

    Raises:
        StoreError: another program manages the database.
    """
    tables = inspect(connection)
    if tables.has_table(alembic_version.name):
        revision = connection.execute(select(alembic_version.c.version_num)).scalar()
        if revision is not None:
            if not revision.isdecimal():
                raise _make_foreign_error(store, f"its schema is {revision!r}")
            return int(revision)
    if tables.has_table(about.name):
        version = connection.execute(select(about.c.version)).scalar()
        if not isinstance(version, int | None):
            raise _make_foreign_error(store, f"its version is {version!r}")
        return version
    return None


def _check_tables(connection: Connection, store: str) -> None:
    """Check that a store of this version is complete.

    Raises:
        StoreError: a table is missing.
    """
    if missing := sorted(schema.tables.keys() - set(inspect(connection).get_table_names())):
        raise StoreError(
            f"The job store {store} is damaged: it has no table {missing[0]!r}. Restore it from a "
            "backup, or start with another store."
        )


def _refuse_other_tables(connection: Connection, store: str) -> None:
    """Refuse a database without a version that has tables already.

    On SQLite the file belongs to Overpaint alone. A database on Postgres may have other tables.

    Raises:
        StoreError: the tables belong to another program.
    """
    tables = set(inspect(connection).get_table_names())
    if connection.dialect.name != "sqlite":
        tables &= schema.tables.keys()
    if tables:
        raise _make_foreign_error(store, f"it has a table {min(tables)!r}")


def _make_foreign_error(store: str, sign: str) -> StoreError:
    return StoreError(
        f"The database {store} belongs to another program: {sign}. Nothing was changed. Give "
        "Overpaint a separate database."
    )


@contextmanager
def _exclusive(engine: Engine) -> Generator[Connection]:
    """Open a transaction that only one program at a time can have.

    SQLite: foreign keys are off, so that a migration can replace a table that others refer to;
    before the end they are checked.
    """
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.detach()  # is closed at the end, with its setting of foreign keys
            _dbapi(connection).execute("PRAGMA foreign_keys = OFF")
        with connection.begin():
            if engine.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})"))
            yield connection


def _dbapi(connection: Connection) -> Any:
    """Return the driver's own connection: executing there begins no transaction."""
    return connection.connection.dbapi_connection


def _migrate(connection: Connection, store: str, version: int, report: Report) -> None:
    """Migrate a store within the transaction that is open.

    Raises:
        StoreError: a migration failed; the transaction must be rolled back.
    """
    began, reached = time.monotonic(), version

    def tell(state: Literal["started", "running", "finished"]) -> None:
        seconds = time.monotonic() - began
        report(UpgradeProgress(state, version, reached, SCHEMA_VERSION, seconds))

    def reach(number: int) -> None:
        nonlocal reached
        reached = number

    tell("started")
    try:
        with _one_at_a_time, _every(PROGRESS_INTERVAL_S, lambda: tell("running")):
            run_migrations(connection, version, reach)
            _check_foreign_keys(connection)
    except Exception as error:
        raise StoreError(
            f"The job store {store} could not be upgraded from schema version {version} to "
            f"{SCHEMA_VERSION}: the step after version {reached} failed "
            f"({getattr(error, 'orig', None) or error}). Nothing was changed. Correct the cause "
            "and start again, or use the version of Overpaint that last used this store."
        ) from error
    tell("finished")


def run_migrations(
    connection: Connection, version: int, reach: Callable[[int], None] = lambda _: None
) -> None:
    """Run every migration after a schema version, in the transaction that is open.

    Args:
        connection: whose transaction it is.
        version: schema version of the store; 0 for an empty database.
        reach: called after each migration with the version that it led to.
    """
    from alembic import command
    from alembic.config import Config

    def applied(*, step: "MigrationInfo", **_: Any) -> None:
        if step.is_upgrade:
            reach(int(str(step.up_revision_id)))

    config = Config()
    config.set_main_option("script_location", "overpaint.server.store:migrations")
    config.attributes.update(connection=connection, on_version_apply=applied)
    if 0 < version < FIRST_VERSION_BY_ALEMBIC:
        command.stamp(config, f"{version:04}")
    command.upgrade(config, "head")


def _check_foreign_keys(connection: Connection) -> None:
    """Check what SQLite does not check while foreign keys are off.

    Raises:
        StoreError: a row refers to a row that does not exist.
    """
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if broken is not None:
            raise StoreError(f"Row {broken[1]} of {broken[0]} refers to no row of {broken[2]}")


@contextmanager
def _every(seconds: float, do: Callable[[], None]) -> Generator[None]:
    """Call a function again and again, from another thread, while in here."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(seconds):
            do()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
