"""A store on SQLite whose file is removed or replaced while it is open."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from overpaint.server.settings import Limits
from overpaint.server.store.database import Database
from overpaint.server.store.job_rows import NewJob
from overpaint.server.store.jobs import Jobs
from tests.server.live import client_of


def new(name: str) -> NewJob:
    return NewJob(name, "", "m", {"prompt": "a cup"}, 1.0)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    made = Jobs(Database(f"sqlite:///{tmp_path / 'jobs.db'}"))
    yield made
    made.database.close()


def test_store_without_its_file_fails_until_the_file_is_back(tmp_path: Path, jobs: Jobs) -> None:
    jobs.submit(new("a"))
    file = tmp_path / "jobs.db"
    file.rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(OperationalError, match="is gone"):
            jobs.submit(new("b"))
        with pytest.raises(OperationalError, match="is gone"):
            jobs.get("a")
    assert not file.exists()
    (tmp_path / "away").rename(file)
    assert jobs.get("a")
    jobs.submit(new("b"))


def test_transaction_of_a_removed_file_fails_at_its_commit(tmp_path: Path, jobs: Jobs) -> None:
    def write() -> None:
        with jobs.database.write() as connection:
            jobs._insert(connection, new("a"))  # pyright: ignore[reportPrivateUsage]
            (tmp_path / "jobs.db").unlink()

    with pytest.raises(OperationalError, match="is gone"):
        write()


def test_store_whose_file_is_replaced_is_opened_again(tmp_path: Path, jobs: Jobs) -> None:
    jobs.submit(new("a"))
    other = Jobs(Database(f"sqlite:///{tmp_path / 'backup.db'}"))
    other.submit(new("b"))
    other.database.close()
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"jobs.db{suffix}").unlink(missing_ok=True)
    (tmp_path / "backup.db").rename(tmp_path / "jobs.db")
    assert jobs.get("a") is None
    assert jobs.get("b")
    jobs.submit(new("c"))
    assert jobs.get("c")


@pytest.mark.parametrize("lost", ["jobs.db", ""])
def test_server_without_its_store_accepts_nothing_until_it_is_back(
    tmp_path: Path, lost: str
) -> None:
    data, away = tmp_path / "data", tmp_path / "away"
    body = {"request": {"prompt": "a cup", "num_inference_steps": 2}}
    with client_of(data, limits=Limits(free_disk_bytes=0)) as client:
        assert client.post("/api/jobs?wait=30", json=body).status_code == 201
        (data / lost).rename(away)
        assert client.post("/api/jobs", json=body).status_code == 503
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert any("fails" in why for why in answer.json()["why"])
        if not lost:
            shutil.rmtree(data, ignore_errors=True)
        away.rename(data / lost)
        assert client.post("/api/jobs?wait=30", json=body).status_code == 201
        assert client.get("/readyz").status_code == 200
