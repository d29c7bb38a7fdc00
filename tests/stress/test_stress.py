"""What the service promises, proved end to end: shortly here, at length where it is marked slow.

What depends on how fast the machine is (rejections, restarts, memory) is measured by the programs
themselves, and not asked for here.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.postgres import database
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


@pytest.fixture(scope="module")
def painting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server of the miniature, and the folder that says what its engine did."""
    folder = tmp_path_factory.mktemp("painting")
    with Server(folder, "--engine", "watched") as server:
        yield server.until_ready(), folder


@pytest.fixture
def empty(postgres: str) -> str:
    if not postgres:
        pytest.skip("no Postgres here: apt-get install postgresql")
    return database(postgres)


def test_writes_and_transactions_that_fail(tmp_path: Path) -> None:
    found = disk.inject(tmp_path, (errno.ENOSPC,))
    assert found.kept, found
    assert set(found.states) == {"succeeded"}


@pytest.mark.slow
def test_every_error_of_a_disk(tmp_path: Path) -> None:
    found = disk.inject(tmp_path)
    print(found)
    assert found.kept


@pytest.mark.slow
def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    found = disk.fill(tmp_path)
    print(found)
    assert found.kept
    assert set(found.states) == {"succeeded"}


def test_a_frozen_server_is_refused(tmp_path: Path, empty: str) -> None:
    found = frozen.run(tmp_path, empty, rounds=1)
    assert found.kept, found


@pytest.mark.slow
def test_a_server_that_is_frozen_again_and_again(tmp_path: Path, empty: str) -> None:
    found = frozen.run(tmp_path, empty, rounds=25)
    print(found)
    assert found.kept


def test_overload(tmp_path: Path) -> None:
    found = overload.run(tmp_path, seconds=3, queue=10)
    assert found.all_ended, found
    assert found.answers["429"] > found.answers["201"]


@pytest.mark.slow
def test_overload_for_long(tmp_path: Path) -> None:
    found = overload.run(tmp_path, seconds=600)
    print(found)
    assert found.all_ended
    assert max(found.growth.values()) < overload.FLAT


def test_hostile_clients_are_not_waited_for(tmp_path: Path) -> None:
    found = hostile.run(tmp_path, seconds=6, clients=40, turns=1, patience=1)
    assert found.good, found
    assert found.listened == {"HTTP/1.1 200 OK": 40}
    assert found.ended.keys() == crowd.UNFINISHED.keys()
    assert min(found.ended.values()) >= 10  # every one of them


@pytest.mark.slow
def test_normal_clients_are_as_swift_beside_hostile_ones(tmp_path: Path) -> None:
    found = hostile.run(tmp_path, seconds=480)
    print(found)
    assert found.kept


def test_every_dialect_leaves_nothing_open(tmp_path: Path) -> None:
    found = soak.run(tmp_path, seconds=20)
    assert found.flat, found
    assert set(found.jobs.values()) == {found.rounds}


@pytest.mark.slow
def test_every_dialect_for_an_hour(tmp_path: Path) -> None:
    found = soak.run(tmp_path, seconds=3600)
    print(found)
    assert found.kept


def test_a_restart_keeps_the_queue(tmp_path: Path) -> None:
    found = restart.run(tmp_path, 100, rounds=1)
    assert found.queued == 100


@pytest.mark.slow
def test_a_restart_with_a_long_queue(tmp_path: Path) -> None:
    found = restart.run(tmp_path, 10_000)
    print(found)
    assert found.queued == 10_000


def test_the_ledger_says_what_the_jobs_say(tmp_path: Path) -> None:
    found = ledger.run(tmp_path, kills=3, count=40)
    assert found.kept, found
    assert found.entries > 0


@pytest.mark.slow
def test_the_ledger_says_what_many_jobs_say(tmp_path: Path) -> None:
    found = ledger.run(tmp_path, kills=100, count=2000)
    print(found)
    assert found.kept
    assert found.again > 0


def test_a_cancel_takes_effect_within_a_step(painting: tuple[Server, Path]) -> None:
    found = cancel.run(*painting, 3)
    assert found.kept, found


@pytest.mark.slow
def test_many_cancels(painting: tuple[Server, Path]) -> None:
    found = cancel.run(*painting, 200)
    print(found)
    assert found.kept


def test_pictures_do_not_depend_on_company(painting: tuple[Server, Path]) -> None:
    found = company.run(painting[0], 5)
    assert found.gap <= 1
    assert found.together > 1


@pytest.mark.slow
def test_pictures_do_not_depend_on_much_company(painting: tuple[Server, Path]) -> None:
    found = company.run(painting[0], 60)
    print(found)
    assert found.kept
