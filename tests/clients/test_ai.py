"""The npm package `ai` with its providers for Replicate, fal and OpenAI against this server."""

from __future__ import annotations

import pytest

from tests.clients.checks import check_pictures, last_request
from tests.clients.javascript import check_version, needs_packages, run_scenario
from tests.clients.scenarios import SEED

pytestmark = [pytest.mark.smoke, needs_packages]


def test_installed_clients_have_pinned_versions() -> None:
    check_version("ai", "@ai-sdk/fal", "@ai-sdk/openai", "@ai-sdk/replicate")


@pytest.mark.parametrize(
    ("scenario", "number", "kind", "seed"),
    [
        ("replicate", 1, "WEBP", SEED),
        ("replicateSize", 2, "PNG", None),
        ("fal", 1, "JPEG", SEED),
        ("openai", 2, "PNG", None),
        ("openaiDallE", 1, "PNG", None),
    ],
)
def test_pictures_are_generated(
    url: str, scenario: str, number: int, kind: str, seed: int | None
) -> None:
    check_pictures(run_scenario("ai", scenario, url), number, kind, seed)
    assert last_request(url)["prompt"] == "a cup"


@pytest.mark.parametrize(
    ("scenario", "seed"),
    [("replicateRepaint", SEED), ("falRepaint", SEED), ("openaiRepaint", None)],
)
def test_given_picture_is_repainted(url: str, scenario: str, seed: int | None) -> None:
    check_pictures(run_scenario("ai", scenario, url), seed=seed)
    assert last_request(url)["image"]
