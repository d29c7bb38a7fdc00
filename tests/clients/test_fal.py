"""The npm package `@fal-ai/client` against this server."""

from __future__ import annotations

import base64

import httpx
import pytest

from tests.clients.checks import HOUSE, check_pictures, last_request
from tests.clients.javascript import check_version, needs_packages, run_scenario
from tests.clients.scenarios import SEED
from tests.server.live import until

pytestmark = [pytest.mark.smoke, needs_packages]


def test_installed_client_has_pinned_version() -> None:
    check_version("@fal-ai/client")


def test_run_returns_pictures_and_request_id(url: str) -> None:
    ran = run_scenario("fal", "run", url)
    check_pictures(ran["pictures"], 2)
    assert httpx.get(f"{url}/api/jobs/{ran['requestId']}").json()["state"] == "succeeded"


def test_subscribe_uploads_blob_and_returns_picture(url: str) -> None:
    done = run_scenario("fal", "subscribe", url)
    check_pictures(done["pictures"], kind="JPEG")
    assert last_request(url)["image"]
    assert httpx.get(f"{url}/api/jobs/{done['requestId']}").json()["state"] == "succeeded"
    assert (done["prompt"], done["seed"]) == ("note", SEED)
    assert "noted" in done["logs"]


def test_uploaded_file_is_stored_as_it_is(url: str) -> None:
    uploaded = run_scenario("fal", "upload", url)
    assert uploaded["address"].startswith(url)
    assert base64.b64decode(uploaded["content"]) == HOUSE.read_bytes()


def test_stream_has_previews_and_result(url: str) -> None:
    streamed = run_scenario("fal", "stream", url)
    check_pictures(streamed["pictures"])
    assert streamed["events"] > 1
    assert httpx.get(f"{url}/api/jobs/{streamed['requestId']}").json()["state"] == "succeeded"


def test_status_stream_of_queue_ends_with_result(url: str) -> None:
    queued = run_scenario("fal", "queue", url)
    assert queued["status"] == "COMPLETED"
    assert queued["received"] == queued["requestId"]
    check_pictures(queued["pictures"])


def test_canceled_request_ends(url: str) -> None:
    canceled = run_scenario("fal", "cancel", url)
    assert canceled["status"] in ("IN_QUEUE", "IN_PROGRESS")
    job = f"{url}/api/jobs/{canceled['requestId']}"
    until(lambda: httpx.get(job).json()["state"] == "canceled")


def test_errors_have_status_and_field(url: str) -> None:
    errors = run_scenario("fal", "errors", url)
    assert errors["invalid"]["name"] == "ValidationError"
    assert errors["invalid"]["body"]["detail"][0]["loc"] == ["body", "num_inference_steps"]
    assert (errors["missing"]["name"], errors["missing"]["status"]) == ("ApiError", 404)
