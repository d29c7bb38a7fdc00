"""The Python package `litellm` against this server: its providers openai and fal_ai."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.clients.checks import check_pictures
from tests.clients.python import check_version, needs_packages, run_scenarios
from tests.clients.scenarios import SEED

pytestmark = [pytest.mark.smoke, needs_packages]


@pytest.fixture(scope="module")
def ran(url: str) -> dict[str, Any]:
    """The results of all scenarios."""
    return run_scenarios("litellm", url)


def test_installed_client_has_pinned_version() -> None:
    check_version("litellm")


@pytest.mark.parametrize(
    ("scenario", "number", "seed"),
    [
        ("generate", 2, SEED),
        ("generate_link", 1, SEED),
        ("generate_async", 1, SEED),
        ("edit", 1, SEED),
        ("edit_many", 2, None),
        ("generate_with_fal", 2, SEED),
        ("generate_with_generic_fal", 1, SEED),
        ("edit_with_fal", 1, None),
    ],
)
def test_pictures_arrive(ran: dict[str, Any], scenario: str, number: int, seed: int | None) -> None:
    check_pictures(ran[scenario], number, seed=seed)


def test_sizes_of_openai_are_used(url: str, ran: dict[str, Any]) -> None:
    jobs = httpx.get(f"{url}/api/jobs").json()["jobs"]
    sizes = [(job["request"]["width"], job["request"]["height"]) for job in jobs]
    assert {(1024, 1024), (512, 512), (1024, 768)} <= set(sizes)
    assert [bool(job["request"]["image"]) for job in jobs].count(True) == 3
