"""The Python package `langchain-community` against this server: DALL-E and Replicate."""

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
    return run_scenarios("langchain", url)


def test_installed_client_has_pinned_version() -> None:
    check_version("langchain-community")


@pytest.mark.parametrize(
    ("scenario", "number", "seed"),
    [
        ("generate", 2, None),
        ("generate_in_quality", 1, None),
        ("call_tool", 1, None),
        ("call_replicate", 1, SEED),
        ("call_pinned_replicate", 1, SEED),
        ("stream_replicate", 2, SEED),
    ],
)
def test_pictures_arrive(ran: dict[str, Any], scenario: str, number: int, seed: int | None) -> None:
    check_pictures(ran[scenario], number, seed=seed)


def test_size_and_quality_of_dall_e_are_used(url: str, ran: dict[str, Any]) -> None:
    requests = [job["request"] for job in httpx.get(f"{url}/api/jobs").json()["jobs"]]
    assert (1792, 1024, 50) in [
        (request["width"], request["height"], request["num_inference_steps"])
        for request in requests
    ]
    assert {request["prompt"] for request in requests} == {"a cup"}
