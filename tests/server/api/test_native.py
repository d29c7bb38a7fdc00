"""Our own wire format over HTTP, with an engine that paints nothing."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from overpaint.errors import RequestError
from overpaint.server.api.image_inputs import load_nested_images
from overpaint.server.jobs.service import Service
from overpaint.server.outbound.image_fetch import ImageSources
from overpaint.server.settings import Limits, WorkerSettings
from overpaint.server.store import files
from overpaint.server.store.files import Files
from tests.server.live import client_of

HOUSE = (Path(__file__).parents[3] / "examples" / "house.png").read_bytes()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with client_of(tmp_path) as made:
        yield made


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[TestClient]:
    with client_of(tmp_path, 0.02) as made:
        yield made


def submit(client: TestClient, prompt: str = "a cup", steps: int = 3, **body: Any) -> Any:
    fields = {"prompt": prompt, "num_inference_steps": steps, "seed": 7}
    answer = client.post("/api/jobs", json={"request": fields | body.pop("fields", {})} | body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def read_events(client: TestClient, name: str, **headers: str) -> list[tuple[str | None, str, Any]]:
    """(id, event, data) until the job ends."""
    events: list[tuple[str | None, str, Any]] = []
    with client.stream("GET", f"/api/jobs/{name}/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for block in "".join(answer.iter_text()).strip().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.split("\n"))
            events.append((lines.get("id"), lines["event"], json.loads(lines["data"])))
    return events


def wait_until_ended(client: TestClient, name: str) -> Any:
    read_events(client, name)
    return client.get(f"/api/jobs/{name}").json()


def test_job_runs_from_request_to_result(client: TestClient, tmp_path: Path) -> None:
    job = submit(client, output={"format": "webp", "quality": 60}, fields={"num_images": 2})
    assert (job["state"], job["model"]) == ("queued", "m")
    done = wait_until_ended(client, job["id"])
    assert (done["state"], done["error"], done["attempt"]) == ("succeeded", None, 1)
    assert [(made["seed"], made["width"]) for made in done["results"]] == [(7, 8), (8, 8)]
    picture = client.get(done["results"][1]["url"])
    assert picture.headers["content-type"] == "image/webp"
    assert picture.headers["x-content-type-options"] == "nosniff"
    assert Image.open(io.BytesIO(picture.content)).size == (8, 8)
    assert client.get(f"/api/jobs/{job['id']}/results/1-2.webp").status_code == 404
    assert client.get(f"/api/jobs/{job['id']}/results/..%2f..%2fjobs.db").status_code == 404
    shutil.rmtree(tmp_path / "results" / job["id"])
    assert client.get(done["results"][0]["url"]).status_code == 410


@pytest.mark.parametrize("prompt", ["", "(" * 10_000, "[" * 10_000])
def test_job_with_unusual_prompt_is_accepted(client: TestClient, prompt: str) -> None:
    assert wait_until_ended(client, submit(client, prompt)["id"])["state"] == "succeeded"


def test_event_stream_resumes_after_last_event_id(slow: TestClient) -> None:
    job = submit(slow, "note", steps=5, output={"preview_every": 2})
    events = read_events(slow, job["id"])
    lasting = [(number, kind) for number, kind, _ in events if number]
    assert [kind for _, kind in lasting] == ["queued", "started", "notice", "succeeded"]
    assert [number for number, _ in lasting] == ["1", "2", "3", "4"]
    steps = [data["done"] for _, kind, data in events if kind == "step"]
    assert steps == sorted(steps)
    assert {data["total"] for _, kind, data in events if kind == "step"} <= {5}
    again = read_events(slow, job["id"], **{"Last-Event-ID": "2"})
    assert [(number, kind) for number, kind, _ in again] == [("3", "notice"), ("4", "succeeded")]


def test_avif_is_accepted_in_every_dialect(client: TestClient) -> None:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(HOUSE)) as house:
        house.save(buffer, "AVIF")
    data = base64.b64encode(buffer.getvalue()).decode()
    uri, prompt = f"data:image/avif;base64,{data}", {"prompt": "a cup"}
    answers = [
        client.post("/api/files", content=buffer.getvalue()),
        client.post("/api/jobs", json={"request": prompt | {"image": {"data": data}}}),
        client.post("/v1/predictions", json={"input": prompt | {"image": uri}, "version": "o/m"}),
        client.post("/fal/queue/o/m", json=prompt | {"image_url": uri}),
        client.post("/v1/images/edits", data=prompt, files={"image": buffer.getvalue()}),
        client.post("/sdapi/v1/img2img", json=prompt | {"init_images": [data]}),
    ]
    assert [answer.status_code for answer in answers] == [201, 201, 201, 200, 200, 200]


def test_upload_is_named_by_its_hash(client: TestClient) -> None:
    name = hashlib.sha256(HOUSE).hexdigest()
    assert client.get(f"/api/files/{name}").status_code == 404
    answer = client.post("/api/files", content=HOUSE)
    assert (answer.status_code, answer.json()) == (201, {"file": name, "size": len(HOUSE)})
    assert client.get(f"/api/files/{name}").json()["size"] == len(HOUSE)
    job = submit(client, fields={"image": {"file": name}, "strength": 0.5})
    assert job["request"]["image"] == {"file": name}
    inline = {"data": base64.b64encode(HOUSE).decode()}
    other = submit(client, fields={"image": inline, "strength": 0.5})
    assert other["request"] == job["request"]
    assert wait_until_ended(client, other["id"])["state"] == "succeeded"


def test_cancel_ends_the_job(slow: TestClient) -> None:
    job = submit(slow, steps=1000)
    answer = slow.post(f"/api/jobs/{job['id']}/cancel")
    assert answer.status_code == 200
    assert wait_until_ended(slow, job["id"])["state"] == "canceled"
    again = slow.post(f"/api/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json()["state"]) == (200, "canceled")


def test_wait_returns_the_ended_job(slow: TestClient) -> None:
    body = {"request": {"prompt": "a cup", "num_inference_steps": 3}}
    made = slow.post("/api/jobs?wait=60", json=body).json()
    assert made["state"] == "succeeded"
    assert len(made["results"]) == 1
    assert slow.get(f"/api/jobs/{made['id']}?wait=60").json() == made
    job = slow.post("/api/jobs?wait=0.01", json={"request": {"prompt": "a cup"}}).json()
    assert job["state"] in ("queued", "running")
    slow.post(f"/api/jobs/{job['id']}/cancel")
    assert slow.get(f"/api/jobs/{job['id']}?wait=60").json()["state"] == "canceled"
    answer = slow.get(f"/api/jobs/{job['id']}?wait=61")
    assert answer.status_code == 422
    assert "wait" in answer.text


def test_job_list_is_paged(client: TestClient) -> None:
    names = [submit(client)["id"] for _ in range(5)]
    for name in names:
        wait_until_ended(client, name)
    first = client.get("/api/jobs", params={"limit": 3}).json()
    assert [job["id"] for job in first["jobs"]] == names[:1:-1]
    second = client.get("/api/jobs", params={"limit": 3, "before": first["before"]}).json()
    assert [job["id"] for job in second["jobs"]] == names[1::-1]
    assert second["before"] is None
    assert client.get("/api/jobs", params={"state": "failed"}).json()["jobs"] == []


def test_queued_job_shows_its_position(tmp_path: Path) -> None:
    with client_of(
        tmp_path, 0.02, worker=WorkerSettings(poll_interval_s=0.05, max_jobs=1)
    ) as client:
        first = submit(client, steps=100)
        while client.get(f"/api/jobs/{first['id']}").json()["state"] == "queued":
            pass
        second, third = submit(client, steps=10), submit(client, steps=20)
        assert [job["position"] for job in (second, third)] == [0, 1]
        assert second["eta"] < third["eta"]
        running = client.get(f"/api/jobs/{first['id']}").json()
        assert running["position"] is None


def test_upload_named_many_times_is_read_once(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    application: Any = client.app
    service: Service = application.state.service
    names = [service.files.put(data) for data in (HOUSE, b"{}")]
    picture, pose = ({"file": name} for name in names)
    control = {"kind": "canny", "hint": picture, "mask": picture}
    fields = {"image": picture, "controls": [control] * 16 + [{"kind": "pose", "image": pose}]}
    got = list[str]()

    def get(name: str) -> bytes:
        got.append(name)
        return Files.get(service.files, name)

    monkeypatch.setattr(service.files, "get", get)
    made = load_nested_images(fields, ImageSources(service.files))
    assert got == names
    assert all(
        control["hint"]["data"] is made["image"]["data"] for control in made["controls"][:16]
    )
    with pytest.raises(
        RequestError, match=r"^controls\.16\.image: The uploads have .* bytes together"
    ):
        load_nested_images(fields, ImageSources(service.files, max_bytes=len(HOUSE)))


def test_priority_above_zero_with_keys_is_refused(tmp_path: Path) -> None:
    with client_of(tmp_path, api_keys=("one",)) as client:
        asked: dict[str, Any] = {"request": {"prompt": "a"}, "priority": 1}
        key = {"Authorization": "Bearer one"}
        answer = client.post("/api/jobs", json=asked, headers=key)
        assert (answer.status_code, "priority: " in answer.json()["detail"]) == (422, True)
        answer = client.post("/api/jobs", json=asked | {"priority": -1}, headers=key)
        assert answer.status_code == 201


def test_idempotency_key_repeated_returns_the_first_job(client: TestClient) -> None:
    body = {"request": {"prompt": "a cup", "seed": 1}}
    answers = [
        client.post("/api/jobs", json=body, headers={"Idempotency-Key": "k"}) for _ in range(2)
    ]
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = client.post(
        "/api/jobs", json={"request": {"prompt": "a car"}}, headers={"Idempotency-Key": "k"}
    )
    assert other.status_code == 422
    assert "take a new one" in other.json()["detail"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"request": {"prompt": "a", "steps_": 3}}, "steps_: There is no such field"),
        ({"request": {"prompt": "a", "num_inference_steps": 10**9}}, "num_inference_steps"),
        ({"request": {"prompt": "a", "num_inference_steps": 1.5}}, "num_inference_steps"),
        ({"request": {"prompt": "a", "width": 1023}}, "1023 is not a multiple of 8"),
        ({"request": {"prompt": "a", "strength": 0.5}}, "without an image"),
        ({"request": {"prompt": "a"}, "model": "x"}, "There is no model 'x' here"),
        ({"request": {"image": {"data": "%%"}}}, "not base64"),
        ({"request": {"image": {"data": "aGVsbG8="}}}, "not a picture"),
        ({"request": {"image": {"file": "0" * 64}}}, "upload it again"),
        ({"request": {"image": {"file": "../../etc/passwd"}}}, "not the hash"),
        ({"request": {"image": "http://127.0.0.1/"}}, "image"),
        ({"request": {"prompt": "a"}, "prompt": "b"}, "prompt"),
        ({"request": {"prompt": "a"}, "output": {"format": "gif"}}, "format"),
        ({}, "request"),
    ],
)
def test_invalid_request_names_the_field(client: TestClient, body: Any, says: str) -> None:
    answer = client.post("/api/jobs", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in json.dumps(answer.json()["detail"])
    assert client.get("/api/jobs").json()["jobs"] == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"request": {"prompt": NaN}}', "\x00"])
def test_body_invalid_json_is_refused(client: TestClient, text: str) -> None:
    answer = client.post("/api/jobs", content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_queue_full_is_answered_429(tmp_path: Path) -> None:
    pace = WorkerSettings(poll_interval_s=0.05, max_jobs=1)
    with client_of(tmp_path, 0.05, limits=Limits(queued_jobs=2), worker=pace) as client:
        answers = [
            client.post("/api/jobs", json={"request": {"num_inference_steps": 1000}})
            for _ in range(5)
        ]
        full = answers[-1]
        assert full.status_code == 429
        assert int(full.headers["retry-after"]) >= 5
        assert "jobs are waiting" in full.json()["detail"]


def test_key_missing_is_answered_401(tmp_path: Path) -> None:
    with client_of(tmp_path, api_keys=("one", "two")) as client:
        assert client.get("/api/jobs").status_code == 401
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        wrong = {"Authorization": "Bearer three"}
        assert client.get("/api/jobs", headers=wrong).status_code == 401
        job = client.post("/api/jobs", json={"request": {}}, headers=one).json()
        assert client.get(f"/api/jobs/{job['id']}", headers=one).status_code == 200
        assert client.get(f"/api/jobs/{job['id']}", headers=two).status_code == 404
        assert client.get("/api/jobs", headers=two).json()["jobs"] == []
        assert client.get("/healthz").status_code == 200


def test_health_checks_report_readiness(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    wait_until_ended(client, submit(client)["id"])
    assert client.get("/readyz").json() == {"status": "ready", "why": []}
    application: Any = client.app
    service: Service = application.state.service
    service.draining = True
    assert client.get("/readyz").status_code == 503
    refused = client.post("/api/jobs", json={"request": {}})
    assert refused.status_code == 429
    service.draining = False


def test_disk_full_is_answered_507(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    fields = {"image": {"data": base64.b64encode(HOUSE).decode()}}
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_file", full)
        answer = client.post("/api/jobs", json={"request": fields})
        assert answer.status_code == 507
    assert client.get("/api/jobs").json()["jobs"] == []
    assert client.post("/api/jobs", json={"request": fields}).status_code == 201


def test_jobs_survive_a_restart(tmp_path: Path) -> None:
    with client_of(tmp_path, 0.05) as client:
        names = [submit(client, steps=8)["id"] for _ in range(4)]
    with client_of(tmp_path) as client:
        assert {wait_until_ended(client, name)["state"] for name in names} == {"succeeded"}


def test_openapi_document_describes_the_native_api(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert "/api/jobs" in described["paths"]
    assert client.get("/api/models").json() == ["m", "n"]
    assert client.get("/nowhere").status_code == 404
