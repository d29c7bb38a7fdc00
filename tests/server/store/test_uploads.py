"""The table of uploads: records by API key, content that follows, deletion and expiry."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from overpaint.server.store.database import Database
from overpaint.server.store.uploads import NewUpload, Uploads
from tests.server.postgres import database as new_database

HASH, OTHER = "a" * 64, "b" * 64


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, postgres: str, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    if not postgres:
        pytest.skip("no Postgres here: apt-get install postgresql")
    return new_database(postgres)


@pytest.fixture
def times() -> list[float]:
    """The clock of the store: its last value is now."""
    return [1000.0]


@pytest.fixture
def uploads(url: str, times: list[float]) -> Iterator[Uploads]:
    database = Database(url, clock=lambda: times[-1])
    yield Uploads(database)
    database.close()


def new(key: str, name: str, **more: object) -> NewUpload:
    return NewUpload(key=key, id=name, file=name, size=3, name="a.png", **more)  # pyright: ignore


def test_recorded_upload_belongs_to_its_key(uploads: Uploads) -> None:
    made = uploads.record(new("one", HASH, details={"a": [1, None]}))
    assert uploads.get("one", HASH) == made
    assert uploads.get("two", HASH) is None
    assert not uploads.delete("two", HASH)
    assert uploads.list_page("two", 10) == []


def test_repeated_upload_replaces_the_earlier_one(uploads: Uploads, times: list[float]) -> None:
    uploads.record(new("one", HASH))
    assert uploads.delete("one", HASH)
    assert not uploads.delete("one", HASH)
    deleted = uploads.get("one", HASH)
    assert deleted
    assert deleted.deleted
    assert uploads.list_page("one", 10) == []
    times.append(2000.0)
    again = uploads.record(new("one", HASH))
    assert (again.deleted, again.created) == (False, 2000.0)
    assert uploads.list_page("one", 10) == [again]


def test_content_arrives_once(uploads: Uploads) -> None:
    uploads.record(NewUpload(key="one", id="c" * 32))
    assert uploads.complete("c" * 32, HASH, 5)
    assert uploads.complete("c" * 32, HASH, 5)
    assert not uploads.complete("c" * 32, OTHER, 5)
    assert not uploads.complete("d" * 32, HASH, 5)
    found = uploads.get("one", "c" * 32)
    assert found
    assert (found.file, found.size) == (HASH, 5)


def test_list_has_pages_newest_first(uploads: Uploads, times: list[float]) -> None:
    names = [f"{number:064}" for number in range(5)]
    for number, name in enumerate(names):
        times.append(1000.0 + number // 2)
        uploads.record(new("one", name))
    uploads.record(NewUpload(key="one", id="c" * 32, file=HASH))  # listed by no route
    listed = [upload.id for upload in uploads.list_page("one", 10)]
    assert listed == names[::-1]
    first = uploads.list_page("one", 2)
    assert [each.id for each in uploads.list_page("one", 9, first[-1])] == listed[2:]


def test_old_uploads_are_removed(uploads: Uploads, times: list[float]) -> None:
    uploads.record(new("one", HASH))
    times.append(1500.0)
    uploads.record(new("one", OTHER))
    uploads.delete_before(1100.0)
    assert uploads.get("one", HASH) is None
    assert uploads.get("one", OTHER) is not None


def test_uploads_of_the_same_content_at_once_are_one(uploads: Uploads) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(uploads.record, [new("one", HASH)] * 20))
    assert len(uploads.list_page("one", 10)) == 1
