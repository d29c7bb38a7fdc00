"""The Python package `sd-backend-client` against this server, which it takes for a web UI."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.checks import check_pictures
from tests.clients.python import check_version, needs_packages, run_scenarios
from tests.clients.scenarios import SEED

pytestmark = [pytest.mark.smoke, needs_packages]


@pytest.fixture(scope="module")
def ran(url: str) -> dict[str, Any]:
    """The results of all scenarios."""
    return run_scenarios("sd_backend", url)


def test_installed_client_has_pinned_version() -> None:
    check_version("sd-backend-client")


def test_detected_server_makes_pictures_from_text(ran: dict[str, Any]) -> None:
    made = ran["txt2img"]
    assert made["client"] == "A1111Webservice"
    assert made["seeds"] == [SEED, SEED + 1]
    check_pictures(made["pictures"], 2)


@pytest.mark.parametrize(
    ("scenario", "number"), [("txt2img_in_two_passes", 2), ("img2img", 1), ("inpaint", 1)]
)
def test_pictures_arrive(ran: dict[str, Any], scenario: str, number: int) -> None:
    check_pictures(ran[scenario], number)


def test_listed_preprocessor_and_controlnet_are_used(ran: dict[str, Any]) -> None:
    steered = ran["control"]
    check_pictures(steered["pictures"])
    assert steered["used"] == ["canny", "miniature-canny"]
    assert steered["preview"] == [512, 512]
    assert {"processor_res", "threshold_a", "threshold_b"} <= set(steered["parameters"])


def test_names_and_capabilities_are_discovered(ran: dict[str, Any]) -> None:
    found = ran["discover"]
    assert found["checkpoints"] == ["miniature", "sdxl"]
    assert "miniature-comic" in found["loras"]
    assert "miniature-canny" in found["controlnets"]
    assert {"euler_ancestral", "dpmpp_2m", "ddim"} <= set(found["samplers"])
    assert {"karras", "exponential", "ddim_uniform"} <= set(found["schedulers"])
    assert (found["controlnet"], found["scheduler"], found["interrogate"]) == (True, True, False)


def test_running_request_is_canceled(ran: dict[str, Any]) -> None:
    assert ran["cancel"] == {"accepted": True, "status": "cancelled"}


def test_error_names_the_field(ran: dict[str, Any]) -> None:
    assert ran["errors"]["status"] == 422
    assert "tiling" in ran["errors"]["body"]
