"""How long jobs and files are kept, also if a clock jumps."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from overpaint.server.jobs.cleanup import Retention
from overpaint.server.settings import DAY_S
from overpaint.server.store.database import Database
from overpaint.server.store.files import Files
from overpaint.server.store.job_rows import NewJob
from overpaint.server.store.jobs import Jobs
from overpaint.server.store.uploads import Uploads
from tests.server.conftest import Clock
from tests.server.live import settings_for

YEARS_S = 3660 * DAY_S


@pytest.fixture
def jobs(tmp_path: Path, clock: Clock) -> Jobs:
    """A store with a job that has ended, whose result is on the disk."""
    jobs = Jobs(Database(f"sqlite:///{tmp_path / 'jobs.db'}", clock))
    jobs.submit(NewJob("a", "", "m", {"prompt": "a cup"}, 1.0))
    (claimed,) = jobs.claim("me", 1, 60.0)
    jobs.finish(claimed, "succeeded", result={"files": ["1-0.png"]})
    result = Files(tmp_path).get_results_folder("a") / "1-0.png"
    result.parent.mkdir(parents=True)
    result.write_bytes(b"a picture")
    return jobs


def open_retention(folder: Path, jobs: Jobs) -> Retention:
    return Retention(settings_for(folder), jobs, Uploads(jobs.database), Files(folder))


@pytest.mark.parametrize("jump_s", [YEARS_S, -YEARS_S])
def test_jump_of_the_clock_of_a_running_server_deletes_nothing(
    tmp_path: Path, jobs: Jobs, clock: Clock, jump_s: float
) -> None:
    retention = open_retention(tmp_path, jobs)
    for jump in (0.0, jump_s, -jump_s):
        clock.now += jump
        retention.remove_expired()
        retention.remove_unknown_files()
    assert jobs.get("a")
    assert (tmp_path / "results" / "a" / "1-0.png").exists()
    jobs.database.close()


def test_jump_of_the_clock_while_no_server_runs_deletes_nothing(
    tmp_path: Path, jobs: Jobs, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.now += YEARS_S
    retention = open_retention(tmp_path, jobs)
    retention.remove_expired()
    retention.remove_unknown_files()
    assert jobs.get("a")
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.WARNING, "clock far ahead")
    jobs.database.close()


def test_server_that_was_off_for_weeks_removes_expired_jobs_at_once(
    tmp_path: Path, jobs: Jobs, clock: Clock
) -> None:
    clock.now += 30 * DAY_S
    retention = open_retention(tmp_path, jobs)
    retention.remove_expired()
    retention.remove_unknown_files()
    assert jobs.get("a") is None
    assert not (tmp_path / "results" / "a").exists()
    jobs.database.close()
