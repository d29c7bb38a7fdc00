"""The routes of cog's server, with a scripted engine."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from overpaint.server.api.replicate import cog_routes
from overpaint.server.jobs.service import Service
from overpaint.server.settings import HttpSettings, WorkerSettings
from tests.server.live import client_of, running, until

HOUSE = (Path(__file__).parents[3] / "examples" / "house.png").read_bytes()
URI = f"data:image/png;base64,{base64.b64encode(HOUSE).decode()}"
ASYNC = {"Prefer": "respond-async"}
PATIENCE = 60.0


def broken() -> Any:
    """Stand for an engine whose model cannot be loaded."""
    raise SystemExit(3)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with client_of(tmp_path) as made:
        yield made


def service_of(client: TestClient) -> Service:
    application: Any = client.app
    return application.state.service


def health(client: TestClient) -> str:
    answer = client.get("/health-check")
    assert answer.status_code == 200
    return answer.json()["status"]


def test_prediction_without_preference_waits_for_end(client: TestClient) -> None:
    inputs = {"prompt": "note", "seed": 7, "num_outputs": 2, "num_inference_steps": 3}
    answer = client.post("/predictions", json={"input": inputs})
    made = answer.json()
    assert (answer.status_code, made["status"], made["error"]) == (200, "succeeded", None)
    assert made["input"] == inputs
    assert "Using seed: 7" in made["logs"]
    assert "noted" in made["logs"]
    assert made["metrics"]["predict_time"] >= 0
    times = [datetime.fromisoformat(made[f"{what}_at"]) for what in ("created", "completed")]
    assert times == sorted(times)
    for uri in made["output"]:
        data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
        assert Image.open(io.BytesIO(data)).getpixel((0, 0)) == (7, 0, 7)


def test_data_uri_inputs_are_stored_as_uploads(client: TestClient) -> None:
    """Stored whole, they would be read again with every look at the job."""
    inputs = {"image": URI, "mask": URI, "prompt_strength": 0.5}
    made = client.post("/predictions", json={"input": inputs}).json()
    name = f"http://testserver/v1/files/{hashlib.sha256(HOUSE).hexdigest()}"
    assert made["input"] == {"image": name, "mask": name, "prompt_strength": 0.5}
    assert made["status"] == "succeeded"
    assert client.get(name).json()["size"] == len(HOUSE)
    again = client.post("/predictions", json={"input": made["input"]}).json()
    assert (again["status"], again["input"]) == ("succeeded", made["input"])


def test_failing_prediction_returns_200_with_error(client: TestClient) -> None:
    answer = client.post("/predictions", json={"input": {"prompt": "refuse"}})
    made = answer.json()
    assert (answer.status_code, made["status"], made["output"]) == (200, "failed", None)
    assert "Refused" in made["error"]


def test_prediction_without_body_uses_default_inputs(client: TestClient) -> None:
    for answer in (client.post("/predictions"), client.post("/predictions", json={"input": None})):
        assert (answer.status_code, answer.json()["input"]) == (200, {})
        assert answer.json()["status"] == "succeeded"


def test_prediction_with_data_uris_succeeds(client: TestClient) -> None:
    inputs = {"image": URI, "mask": URI, "prompt_strength": 0.5, "num_inference_steps": 4}
    assert client.post("/predictions", json={"input": inputs}).json()["status"] == "succeeded"


def test_respond_async_returns_202_at_once(tmp_path: Path) -> None:
    with client_of(tmp_path, 0.02) as client:
        body = {
            "id": "mine",
            "input": {"num_inference_steps": 500},
            "created_at": "2026-01-02T03:04:05Z",
        }
        answer = client.post("/predictions", json=body, headers=ASYNC)
        made = answer.json()
        assert (answer.status_code, made["id"]) == (202, "mine")
        assert made["status"] in ("starting", "processing")
        assert made["created_at"] == body["created_at"]
        assert client.post("/predictions/mine/cancel").json() == {}
        again = client.put("/predictions/mine", json=body)
        assert (again.status_code, again.json()["status"]) == (200, "canceled")
        assert client.post("/predictions/mine/cancel").status_code == 200
        assert client.post("/predictions/other/cancel").status_code == 404


def test_cancel_by_server_id_ends_prediction(tmp_path: Path) -> None:
    with client_of(tmp_path, 0.02) as client:
        body = {"input": {"num_inference_steps": 500}}
        name = client.post("/predictions", json=body, headers=ASYNC).json()["id"]
        assert client.post(f"/predictions/{name}/cancel").status_code == 200
        until(lambda: client.get(f"/api/jobs/{name}").json()["state"] == "canceled")


def test_repeated_client_id_makes_one_prediction(client: TestClient) -> None:
    name = "x" * 256
    body = {"input": {"prompt": "a cup"}, "id": name}
    path = f"/predictions/{name}"
    first, second = (client.put(path, json=body).json() for _ in range(2))
    assert first == second
    assert len(client.get("/api/jobs").json()["jobs"]) == 1
    other = client.put(path, json={"input": {"prompt": "a car"}})
    assert other.status_code == 422
    assert other.json()["detail"][0]["loc"] == ["body", "id"]
    fresh = {"request": {"prompt": "a car"}}
    taken = client.post("/api/jobs", json=fresh, headers={"Idempotency-Key": name})
    assert taken.status_code == 201


def test_client_id_of_other_key_returns_404(tmp_path: Path) -> None:
    with client_of(tmp_path, 0.02, api_keys=("one", "two")) as client:
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        body = {"input": {"num_inference_steps": 500}}
        assert client.put("/predictions/x", json=body).status_code == 401
        mine = client.put("/predictions/x", json=body, headers=one | ASYNC)
        assert mine.status_code == 202
        assert client.post("/predictions/x/cancel", headers=two).status_code == 404
        (job,) = client.get("/api/jobs", headers=one).json()["jobs"]
        assert client.post(f"/predictions/{job['id']}/cancel", headers=two).status_code == 404
        assert client.post("/predictions/x/cancel", headers=one).status_code == 200
        assert health(client) in ("READY", "STARTING")
        assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("body", "place", "says"),
    [
        ({"input": {"size": "big"}}, ["input", "size"], "is not valid"),
        ({"input": {"num_outputs": 5}}, ["input", "num_outputs"], "less than or equal to 4"),
        ({"input": {"mask": URI}}, ["input", "mask"], "needs an image"),
        ({"input": {"image": "file:///etc/passwd"}}, ["input", "image"], "neither a data: URI"),
        ({"input": {"image": "data:;base64,%%"}}, ["input", "image"], "not base64"),
        ({"input": {"image": "data:,hello"}}, ["input"], "not a picture"),
        ({"input": {"width": 1023}}, ["input", "width"], "multiple of 8"),
        ({"input": {"refine": "base_image_refiner"}}, ["input", "refine"], "needs a refiner"),
        ({"input": {"replicate_weights": "x"}}, ["input", "replicate_weights"], "Unknown lora"),
        ({"input": {"prompt": "<lora:x:1>"}}, ["input", "prompt"], "Unknown lora"),
        ({"input": {"negative_prompt": "<embedding:x>"}}, ["input", "negative_prompt"], "Unknown"),
        ({"webhook": "ftp://a"}, ["webhook"], "match"),
        ({"webhook_events_filter": ["begin"]}, ["webhook_events_filter", 0], "start"),
        ({"id": "../x"}, ["id"], "match"),
        ({"id": "x" * 257}, ["id"], "match"),
    ],
)
def test_invalid_body_returns_422_in_cog_format(
    client: TestClient, body: Any, place: list[str], says: str
) -> None:
    answer = client.post("/predictions", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/json"
    (wrong,) = answer.json()["detail"]
    assert wrong["loc"] == ["body", *place]
    assert says in wrong["msg"]
    assert wrong["type"]
    assert client.get("/api/jobs").json()["jobs"] == []


def test_fields_without_effect_are_accepted_and_reported(client: TestClient) -> None:
    body = {
        "input": {"prompt": "a", "steps": 3, "seed": None},
        "output_file_prefix": "http://a/",
        "webhook_events_filter": None,
        "id": "",
        "created_at": None,
    }
    answer = client.post("/predictions", json=body, headers={"Prefer": "Respond-Async"})
    assert answer.status_code == 202
    assert set(answer.headers["x-ignored-fields"].split(", ")) == {
        *("input.steps", "input.seed"),
        *("output_file_prefix", "webhook_events_filter", "id", "created_at"),
    }


def test_body_id_different_from_url_returns_422(client: TestClient) -> None:
    answer = client.put("/predictions/a", json={"id": "b"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "id"]
    assert client.put("/predictions/a", json={"id": "a"}).status_code == 200


def test_accept_event_stream_returns_406(client: TestClient) -> None:
    answer = client.post("/predictions", headers={"Accept": "text/event-stream"})
    assert answer.status_code == 406


def test_client_disconnect_keeps_prediction(tmp_path: Path) -> None:
    http = HttpSettings(disconnect_poll_interval_s=0.05)
    with running(tmp_path, 0.02, http=http) as url:
        body = {"input": {"num_inference_steps": 100}}
        with pytest.raises(httpx.ReadTimeout):
            httpx.put(f"{url}/predictions/x", json=body, timeout=0.5)
        until(lambda: httpx.get(f"{url}/api/jobs").json()["jobs"])
        (job,) = httpx.get(f"{url}/api/jobs").json()["jobs"]
        assert job["state"] != "canceled"
        made = httpx.put(f"{url}/predictions/x", json=body, timeout=PATIENCE).json()
        assert (made["id"], made["status"]) == ("x", "succeeded")


def test_server_shutdown_returns_202_to_waiting_client(tmp_path: Path) -> None:
    with client_of(tmp_path, 0.02) as client, ThreadPoolExecutor(1) as waiting:
        body = {"input": {"num_inference_steps": 500}}
        answer = waiting.submit(client.put, "/predictions/x", json=body)
        until(lambda: bool(client.get("/api/jobs").json()["jobs"]))
        service_of(client).drained = True
        assert answer.result().status_code == 202
        assert answer.result().json()["status"] in ("starting", "processing")


def test_webhook_payload_has_client_id(client: TestClient) -> None:
    client.put("/predictions/x", json={"input": {"prompt": "a"}})
    service = service_of(client)
    job = service.jobs.get_by_token("", cog_routes.idempotency_token("x"))
    assert job is not None
    assert service.jobs.get_by_token("other", cog_routes.idempotency_token("x")) is None
    assert client.portal is not None
    told = client.portal.call(cog_routes.webhook_payload, service, job)
    assert (told["id"], told["status"]) == ("x", "succeeded")


def test_health_check_follows_load_and_shutdown(tmp_path: Path) -> None:
    with client_of(
        tmp_path, 0.02, worker=WorkerSettings(poll_interval_s=0.05, max_jobs=1)
    ) as client:
        assert health(client) in ("STARTING", "READY")
        until(lambda: health(client) == "READY")
        body = {"id": "long", "input": {"num_inference_steps": 500}}
        client.post("/predictions", json=body, headers=ASYNC)
        until(lambda: health(client) == "BUSY")
        client.post("/predictions/long/cancel")
        until(lambda: health(client) == "READY")
        service_of(client).draining = True
        assert health(client) == "DEFUNCT"
        assert "about to end" in client.get("/health-check").json()["setup"]["logs"]


def test_worker_that_gets_ready_during_a_health_check_is_not_defunct(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client_of(tmp_path) as client:
        service = service_of(client)
        until(lambda: health(client) == "READY")
        found = iter([False, True])  # before the reasons are found, and after it
        monkeypatch.setattr(
            type(service.supervisor), "ready", property(lambda _: next(found, True))
        )
        monkeypatch.setattr(service, "unready", lambda: ["the worker starts"])
        assert health(client) == "STARTING"
        assert health(client) == "DEFUNCT"


def test_worker_death_during_work_is_not_setup_failure(tmp_path: Path) -> None:
    with client_of(tmp_path) as client:
        client.post("/predictions", json={"input": {"prompt": "die"}})
        supervisor = service_of(client).supervisor
        assert supervisor.restarts >= 5
        assert supervisor.failures == 0
        until(lambda: health(client) == "READY")


def test_health_check_with_unloadable_model_reports_setup_failed(tmp_path: Path) -> None:
    with client_of(tmp_path, engine_factory=broken) as client:
        until(lambda: health(client) == "SETUP_FAILED")
        assert client.get("/health-check").json()["setup"]["status"] == "failed"
        unready = client.get("/readyz")
        assert unready.status_code == 503
        assert "in a row that died as they started" in unready.text


def test_index_lists_working_urls(client: TestClient) -> None:
    index = client.get("/").json()
    schemas = client.get(index["openapi_url"]).json()["components"]["schemas"]
    assert schemas["Input"]["properties"]["num_outputs"]["maximum"] == 4
    assert schemas["Input"]["properties"]["prompt"]["x-order"] == 0
    assert schemas["Output"]["type"] == "array"
    assert schemas["Output"]["items"] == {"type": "string", "format": "uri"}
    assert client.get(index["healthcheck_url"]).status_code == 200
    assert client.post(index["predictions_url"]).status_code == 200
