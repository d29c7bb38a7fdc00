"""The npm package `openai` against this server."""

from __future__ import annotations

import pytest

from tests.clients.checks import check_pictures, last_request
from tests.clients.javascript import check_version, needs_packages, run_scenario

pytestmark = [pytest.mark.smoke, needs_packages]


def test_installed_client_has_pinned_version() -> None:
    check_version("openai")


def test_generate_returns_pictures(url: str) -> None:
    check_pictures(run_scenario("openai", "generate", url), 2)


def test_generate_with_dall_e_3_returns_link(url: str) -> None:
    check_pictures(run_scenario("openai", "generateLink", url))
    assert last_request(url)["num_inference_steps"] == 50  # `quality: hd`


@pytest.mark.parametrize("scenario", ["edit", "variation"])
def test_sent_picture_is_repainted(url: str, scenario: str) -> None:
    check_pictures(run_scenario("openai", scenario, url))
    assert last_request(url)["image"]


def test_stream_has_previews_and_picture(url: str) -> None:
    streamed = run_scenario("openai", "stream", url)
    *previews, last = streamed["types"]
    assert set(previews) == {"image_generation.partial_image"}
    assert last == "image_generation.completed"
    check_pictures(streamed["pictures"])


def test_models_are_listed_and_known_by_other_names(url: str) -> None:
    models = run_scenario("openai", "models", url)
    assert models == {"names": ["miniature", "sdxl"], "alias": "dall-e-3"}


def test_errors_have_matching_class_and_field(url: str) -> None:
    assert run_scenario("openai", "errors", url) == {
        "invalid": {"name": "BadRequestError", "status": 400, "param": "n"},
        "missing": {"name": "NotFoundError", "status": 404, "param": "model"},
    }
