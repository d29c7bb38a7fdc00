"""Stores to test against: SQLite always, Postgres where Debian's `postgresql` is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from overpaint.server.store.database import Database
from overpaint.server.store.jobs import Jobs
from tests.server.postgres import database
from tests.server.postgres import postgres as running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A new Postgres server: its URL without a database name; "" if Postgres is missing."""
    with running_postgres() as url:
        yield url


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Open = Callable[[], Jobs]


@pytest.fixture(params=["sqlite", "postgres"])
def opened(
    request: pytest.FixtureRequest, postgres: str, tmp_path: Path, clock: Clock
) -> Iterator[Open]:
    """Opens the same store again and again, as several servers do."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'jobs.db'}"
    elif postgres:
        url = database(postgres)
    else:
        pytest.skip("no Postgres here: apt-get install postgresql")
    stores = list[Jobs]()

    def another() -> Jobs:
        stores.append(Jobs(Database(url, clock)))
        return stores[-1]

    yield another
    for store in stores:
        store.database.close()


@pytest.fixture
def store(opened: Open) -> Jobs:
    return opened()


@pytest.fixture(autouse=True)
def no_defects(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A supervisor survives its own defects; a test of anything else does not."""
    yield
    assert "defect" not in [record.getMessage() for record in caplog.get_records("call")]
