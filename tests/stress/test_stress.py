"""Short runs of the stress programs; `test_long_runs.py` has the long ones.

Figures that depend on the machine's speed (rejections, restarts, memory) are only checked by long
runs.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.processes import Server
from tests.stress import (
    cancel,
    company,
    crowd,
    disk,
    frozen,
    hostile,
    ledger,
    overload,
    restart,
    soak,
)

pytestmark = pytest.mark.smoke


@pytest.fixture(scope="module")
def painting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server of the miniature, and the folder that says what its engine did."""
    folder = tmp_path_factory.mktemp("painting")
    with Server(folder, "--engine", "watched") as server:
        yield server.until_ready(), folder


def test_disk_full_errors_lose_nothing(tmp_path: Path) -> None:
    report = disk.inject(tmp_path, (errno.ENOSPC,))
    assert report.passed, report
    assert set(report.states) == {"succeeded"}


def test_frozen_server_s_result_is_rejected(tmp_path: Path, empty_database: str) -> None:
    report = frozen.run(tmp_path, empty_database, rounds=1)
    assert report.passed, report


def test_overload_short_run_ends_all_accepted_jobs(tmp_path: Path) -> None:
    report = overload.run(tmp_path, seconds=3, queue=10)
    assert report.all_ended, report
    assert report.answers["429"] > report.answers["201"]


def test_hostile_clients_are_disconnected(tmp_path: Path) -> None:
    report = hostile.run(tmp_path, seconds=6, clients=40, turns=1, patience=1)
    assert report.good, report
    assert report.listened == {"HTTP/1.1 200 OK": 40}
    assert report.ended.keys() == crowd.UNFINISHED.keys()
    assert min(report.ended.values()) >= 10  # every one of them


def test_soak_short_run_leaves_nothing_open(tmp_path: Path) -> None:
    report = soak.run(tmp_path, seconds=10)
    assert report.flat, report
    assert set(report.jobs.values()) == {report.rounds}


def test_restart_keeps_the_queue(tmp_path: Path) -> None:
    report = restart.run(tmp_path, 100, rounds=1)
    assert report.queued == 100


def test_ledger_short_run_agrees_with_jobs(tmp_path: Path) -> None:
    report = ledger.run(tmp_path, kills=3, count=40)
    assert report.passed, report
    assert report.entries > 0


def test_cancel_takes_effect_within_a_step(painting: tuple[Server, Path]) -> None:
    report = cancel.run(*painting, 3)
    assert report.states == {"canceled": 3}, report
    # Beside other tests the worker can begin one step before it reads the cancellation. The long
    # run, which is alone, allows only the step that runs.
    assert max(report.ended) <= 2, report


def test_concurrent_requests_do_not_change_pictures(painting: tuple[Server, Path]) -> None:
    report = company.run(painting[0], 5)
    assert report.gap <= 1
    assert report.together > 1
