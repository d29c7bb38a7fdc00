"""Long runs of all stress programs, the short ones first; `make stress` runs them.

Each test prints its report. `python -m tests.stress.NAME ARGUMENTS` runs one program with other
arguments.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.processes import Server
from tests.stress import (
    abuse,
    cancel,
    company,
    disk,
    frozen,
    fuzz,
    hostile,
    kills,
    ledger,
    overload,
    restart,
    soak,
)

pytestmark = [
    pytest.mark.stress,
    # The libraries of clients do not close all connections to a killed server.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    # schemathesis' own
    pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies"),
]


@pytest.fixture(autouse=True)
def collect_connections() -> Iterator[None]:
    """Collect interrupted connections here, and not during another test."""
    yield
    gc.collect()


def test_restart_with_long_queue_keeps_it(tmp_path: Path) -> None:
    report = restart.run(tmp_path, 10_000)
    print(report)
    assert report.passed


def test_abuse_neither_stops_others_nor_takes_much_memory(tmp_path: Path) -> None:
    with Server(tmp_path, "--engine", "miniature") as server:
        report = abuse.run(server.until_ready())
    print(report)
    assert report.passed


def test_many_concurrent_requests_do_not_change_pictures(tmp_path: Path) -> None:
    with Server(tmp_path, "--engine", "miniature") as server:
        report = company.run(server.until_ready(), 60)
    print(report)
    assert report.passed


def test_cancel_many_take_effect_within_a_step(tmp_path: Path) -> None:
    with Server(tmp_path, "--engine", "watched") as server:
        report = cancel.run(server.until_ready(), tmp_path, 200)
    print(report)
    assert report.passed


def test_disk_every_error_loses_nothing(tmp_path: Path) -> None:
    report = disk.inject(tmp_path)
    print(report)
    assert report.passed


def test_disk_really_full_loses_nothing(tmp_path: Path) -> None:
    report = disk.fill(tmp_path)
    print(report)
    assert report.passed
    assert set(report.states) == {"succeeded"}


def test_frozen_server_s_results_are_rejected_many_times(
    tmp_path: Path, empty_database: str
) -> None:
    report = frozen.run(tmp_path, empty_database, rounds=25)
    print(report)
    assert report.passed


def test_fuzz_long_run_passes(tmp_path: Path) -> None:
    report = fuzz.run(tmp_path, 12_000)
    print(report)
    assert report.passed
    assert report.cases >= 10_000


def test_ledger_long_run_agrees_with_jobs(tmp_path: Path) -> None:
    report = ledger.run(tmp_path, kills=100, count=2000)
    print(report)
    assert report.passed
    assert report.again > 0


def test_kills_thousand_kills_lose_no_job(tmp_path: Path) -> None:
    report = kills.run(tmp_path, kills=1000, count=20_000)
    print(report)
    assert report.passed
    assert report.acknowledged >= 20_000


def test_kills_of_the_miniature_lose_no_job(tmp_path: Path) -> None:
    report = kills.run(tmp_path, kills=50, count=300, engine="miniature")
    print(report)
    assert report.passed
    assert report.acknowledged >= 300


def test_hostile_clients_do_not_slow_others(tmp_path: Path) -> None:
    report = hostile.run(tmp_path, seconds=480)
    print(report)
    assert report.passed


def test_overload_long_run_keeps_memory_constant(tmp_path: Path) -> None:
    report = overload.run(tmp_path, seconds=600)
    print(report)
    assert report.passed


def test_soak_hour_keeps_resources_constant(tmp_path: Path) -> None:
    report = soak.run(tmp_path, seconds=3600)
    print(report)
    assert report.passed
