"""The npm package `replicate` against this server."""

from __future__ import annotations

import hashlib

import pytest

from tests.clients.checks import HOUSE, check_pictures, last_request
from tests.clients.javascript import check_version, needs_packages, run_scenario

pytestmark = [pytest.mark.smoke, needs_packages]


def test_installed_client_has_pinned_version() -> None:
    check_version("replicate")


def test_run_returns_pictures(url: str) -> None:
    check_pictures(run_scenario("replicate", "run", url), 2)


def test_run_of_pinned_version_returns_picture(url: str) -> None:
    check_pictures(run_scenario("replicate", "runPinned", url))


def test_blob_and_buffer_are_used_as_image_and_mask(url: str) -> None:
    check_pictures(run_scenario("replicate", "repaint", url))
    request = last_request(url)
    assert request["image"]
    assert request["mask"]
    assert request["strength"] == 0.5


def test_polled_prediction_succeeds(url: str) -> None:
    done = run_scenario("replicate", "poll", url)
    assert done["atFirst"] in ("starting", "processing")
    assert done["status"] == "succeeded"
    assert done["input"] == {"prompt": "note", "num_inference_steps": 20, "seed": 9}
    assert "noted" in done["logs"]
    assert done["listed"]


def test_canceled_prediction_ends(url: str) -> None:
    assert run_scenario("replicate", "cancel", url) == "canceled"


def test_stream_ends_with_output_and_done(url: str) -> None:
    events = run_scenario("replicate", "stream", url)
    names = [event["event"] for event in events]
    assert names[-2:] == ["output", "done"]
    assert set(names[:-2]) == {"logs"}
    assert events[0]["data"] == "noted\n"
    assert events[-2]["data"].startswith((url, "data:image/png;base64,"))


def test_uploaded_file_is_used_and_deleted(url: str) -> None:
    used = run_scenario("replicate", "files", url)
    sent = used["sent"]
    assert sent["content_type"] == "image/png"
    assert sent["checksums"]["sha256"] == hashlib.sha256(HOUSE.read_bytes()).hexdigest()
    assert used["listed"]
    assert used["deleted"]
    check_pictures(used["pictures"])
    assert last_request(url)["image"]


def test_errors_have_status_and_field(url: str) -> None:
    errors = run_scenario("replicate", "errors", url)
    assert "Refused" in errors["failed"]["message"]
    assert errors["invalid"]["status"] == 422
    assert "num_inference_steps" in errors["invalid"]["message"]
    assert errors["missing"]["status"] == 404


def test_account_models_and_deployments_are_described(url: str) -> None:
    assert run_scenario("replicate", "describe", url) == {
        "account": "organization",
        "collections": [],
        "deployed": "succeeded",
        "deployments": ["miniature", "sdxl"],
        "found": ["sdxl"],
        "hardware": ["overpaint"],
        "models": ["miniature", "sdxl"],
        "secret": "whsec_",
        "trainings": [],
    }
