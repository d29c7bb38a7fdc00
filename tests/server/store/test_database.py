"""Opening stores."""

from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError

from overpaint.errors import StoreError
from overpaint.server.settings import StoreSettings
from overpaint.server.store.database import Database, create_store_engine
from overpaint.server.store.job_rows import NewJob
from overpaint.server.store.jobs import Jobs
from overpaint.server.store.tables import alembic_version, jobs
from tests.server.postgres import database


def test_database_that_cannot_be_opened_raises_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        Database(f"sqlite:///{tmp_path}/nowhere/jobs.db")
    with pytest.raises(StoreError) as error:
        Database("postgresql+psycopg://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(error.value)
    (tmp_path / "text.db").write_text("not a database, but long enough to look like one" * 20)
    with pytest.raises(StoreError, match="cannot be opened"):
        Database(f"sqlite:///{tmp_path}/text.db")


def test_database_of_a_newer_store_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    Database(url).close()
    with create_store_engine(url).begin() as connection:
        connection.execute(alembic_version.update().values(version_num="0099"))
    with pytest.raises(StoreError, match="has schema version 99"):
        Database(url)


def test_database_without_a_clock_uses_system_time(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/jobs.db")
    assert Jobs(database).submit(NewJob("a", "", "m", {}, 1.0)).created > 1.7e9
    database.close()


def test_database_frozen_transaction_on_postgres_does_not_block_other_servers(
    postgres: str,
) -> None:
    if not postgres:
        pytest.skip("no Postgres here: apt-get install postgresql")
    url = database(postgres)
    Database(url).close()  # its tables are made without the short timeout
    hurried = StoreSettings(idle_transaction_timeout_s=0.2)
    still, other = Database(url, settings=hurried), Database(url, settings=hurried)
    Jobs(other).submit(NewJob("a", "", "m", {}, 1.0))
    row = jobs.select().where(jobs.c.id == "a").with_for_update()
    with pytest.raises(SQLAlchemyError), still.write() as held:  # noqa: PT012
        held.execute(row)
        with other.write() as connection:  # waits for the other's lock, until that is let go
            assert connection.execute(row).one().id == "a"
        held.execute(row)
    with still.read() as connection:  # goes on with another connection
        assert connection.execute(jobs.select()).one().id == "a"
    still.close()
    other.close()
