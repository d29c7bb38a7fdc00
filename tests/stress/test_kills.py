"""kill -9 of server and worker, at random: no job is lost, none ends twice."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stress.kills import Report, run

# The connections of clients whose server is killed are not always closed by their library.
pytestmark = [
    pytest.mark.smoke,
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect interrupted connections here, and not during another test."""
    yield
    gc.collect()


def nothing_lost(report: Report) -> None:
    assert report.lost == 0
    assert report.ended_twice == 0
    assert report.results_missing == 0
    assert sum(report.states.values()) == report.acknowledged


def test_kills_short_run_loses_no_job(tmp_path: Path) -> None:
    report = run(tmp_path, kills=6, count=60)
    nothing_lost(report)
    assert report.acknowledged >= 60
