"""The bodies of all requests together stay within a budget, which API keys share."""

import asyncio
import contextlib
import contextvars
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from PIL import Image
from starlette.types import Message

from overpaint.imaging import codec
from overpaint.server.http.request_budget import RequestBudget, count_bytes
from overpaint.server.http.threads import current_key
from overpaint.server.jobs.service import Service
from overpaint.server.settings import HttpSettings, Limits
from overpaint.server.store.api_keys import hash_key
from overpaint.server.store.files import hash_content
from overpaint.server.store.uploads import NewUpload
from overpaint.server.telemetry.logs import KEY_LABEL_CHARS
from tests.server.live import client_of, until


async def part() -> Message:
    return {"type": "http.request", "body": bytes(100), "more_body": True}


def receive(budget: RequestBudget, stack: contextlib.ExitStack, key: str, parts: int) -> None:
    counted = stack.enter_context(budget.count_request(key, part))

    async def read() -> None:
        for _ in range(parts):
            await counted()

    asyncio.run(read())


def test_request_budget_refuses_bodies_beyond_it_and_counts_no_answered_ones() -> None:
    budget = RequestBudget(1000)
    with contextlib.ExitStack() as stack:
        receive(budget, stack, "a", 10)
        with pytest.raises(HTTPException, match="503"):
            receive(budget, stack, "a", 1)
    with contextlib.ExitStack() as stack:
        receive(budget, stack, "a", 10)


def test_request_budget_that_one_key_uses_up_has_room_for_others() -> None:
    budget = RequestBudget(1000)
    with contextlib.ExitStack() as stack:
        receive(budget, stack, "greedy", 10)
        receive(budget, stack, "other", 5)
        for key in ("other", "greedy"):
            with pytest.raises(HTTPException, match="503"):
                receive(budget, stack, key, 1)
        receive(budget, stack, "third", 3)


def test_request_budget_bounds_the_requests_of_one_key() -> None:
    budget = RequestBudget(1000, 2)
    with contextlib.ExitStack() as stack:
        for key in ("a", "a", "b"):
            receive(budget, stack, key, 0)
        with pytest.raises(HTTPException, match="429"):
            receive(budget, stack, "a", 0)
    with contextlib.ExitStack() as stack:
        receive(budget, stack, "a", 0)


def test_request_budget_counts_bytes_beside_the_body_until_the_answer() -> None:
    budget = RequestBudget(1000)
    count_bytes(5000)  # without a request that is counted
    with budget.count_request("a", part):
        count_bytes(900)
        with pytest.raises(HTTPException, match="503"):
            count_bytes(200)
        late = partial(contextvars.copy_context().run, count_bytes)
    late(900)  # a thread that still works for the answered request
    with budget.count_request("a", part):
        count_bytes(1000)


def test_requests_of_one_key_that_wait_leave_connections_to_others(tmp_path: Path) -> None:
    http = HttpSettings(max_connections=4)
    with client_of(tmp_path, 0.05, http=http) as client, ThreadPoolExecutor(2) as waiting:
        slow = {"request": {"num_inference_steps": 1000}}
        ask = partial(client.post, "/api/jobs?wait=60", json=slow)
        held = [waiting.submit(ask) for _ in range(2)]
        until(lambda: len(client.get("/api/jobs").json()["jobs"]) == 2)
        assert client.post("/api/jobs", json=slow).status_code == 429
        for job in client.get("/api/jobs").json()["jobs"]:
            client.post(f"/api/jobs/{job['id']}/cancel")
        assert {answer.result().status_code for answer in held} == {201}
        assert client.post("/api/jobs", json=slow).status_code == 201


def test_request_beyond_the_request_budget_is_answered_503(tmp_path: Path) -> None:
    with client_of(tmp_path, limits=Limits(pending_body_bytes=1000)) as client:
        body = {"request": {"prompt": "a" * 2000}}
        answer = client.post("/api/jobs", json=body)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert client.post("/api/jobs", json={"request": {"prompt": "a"}}).status_code == 201


# Every route

LARGE = bytes(3000)
FORM: dict[str, Any] = {"files": {"image": LARGE}, "data": {"prompt": "a"}}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A server with room for the bodies of small requests."""
    limits = Limits(pending_body_bytes=2000)
    folder = tmp_path_factory.mktemp("data")
    with client_of(folder, limits=limits, api_keys=("owner",)) as client:
        client.headers["authorization"] = "Bearer owner"
        yield client


def service_of(client: TestClient) -> Service:
    app: Any = client.app
    return app.state.service


def is_budget_free(client: TestClient) -> bool:
    app: Any = client.app
    with app.state.budget.count_request("", part):
        count_bytes(2000)
    return True


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("POST", "/api/jobs", {"json": {"request": {"prompt": "a" * 3000}}}),
        ("POST", "/api/files", {"content": LARGE}),
        ("POST", "/v1/images/edits", FORM),
        ("POST", "/v1/images/variations", FORM),
        ("POST", "/v1/files", {"files": {"content": LARGE}}),
        ("QUERY", "/v1/models", {"content": LARGE}),
        ("PUT", "/predictions/one", {"json": {"input": {"prompt": "a" * 3000}}}),
        ("POST", "/fal/rest/files/upload", {"content": LARGE}),
        ("POST", "/sdapi/v1/png-info", {"json": {"image": "a" * 3000}}),
    ],
)
def test_body_of_every_kind_of_route_is_counted(
    small: TestClient, method: str, path: str, sent: dict[str, Any]
) -> None:
    answer = small.request(method, path, **sent)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), answer.text
    assert is_budget_free(small)


def test_request_that_frees_what_a_key_holds_is_not_counted(small: TestClient) -> None:
    for path in ("/sdapi/v1/interrupt", "/sdapi/v1/skip"):
        assert small.post(path, content=LARGE).status_code == 200
    assert small.post("/api/jobs/none/cancel", content=LARGE).status_code == 404
    assert small.put("/fal/queue/o/m/requests/none/cancel", content=LARGE).status_code == 404


def test_content_by_a_signed_link_counts_for_the_owner_of_the_upload(small: TestClient) -> None:
    def send(url: str, content: bytes) -> int:
        return small.put(url, content=content, headers={"authorization": ""}).status_code

    def initiate() -> str:
        return small.post("/fal/rest/storage/upload/initiate", json={}).json()["upload_url"]

    budget: RequestBudget = cast(Any, small.app).state.budget
    with budget.count_request("another", part):
        count_bytes(900)  # the other's share of 2000 bytes stays free
        assert send(initiate(), LARGE[:1500]) == 503
    url = initiate()
    assert send(url, b"a") == 200
    assert send(url, b"a") == 200
    assert send(url, b"b") == 404
    links = service_of(small).links
    unknown = f"/fal/rest/storage/upload/none?{links.sign_query('fal-upload', 'none')}"
    assert send(unknown, b"b") == 404
    files = service_of(small).files
    assert files.get_size(hash_content(b"a")) == 1
    assert files.get_size(hash_content(b"b")) == 0  # it was refused before it was stored


def picture() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((60, 60), 100).save(file, "PNG")
    return file.getvalue()


def test_stored_files_that_a_request_names_are_counted(small: TestClient) -> None:
    service, data = service_of(small), picture()
    assert len(data) > 2000
    name = service.files.put(data)
    fal_file = "f" * 32
    service.uploads.record(NewUpload(hash_key("owner"), fal_file, name))
    link = f"http://testserver/v1/files/{name}"
    for path, body in (
        ("/api/jobs", {"request": {"image": {"file": name}}}),
        ("/v1/predictions", {"version": "o/m", "input": {"image": link}}),
        ("/predictions", {"input": {"mask": link, "image": link}}),
        ("/fal/run/o/m", {"prompt": "a", "image_url": link}),
        ("/fal/run/o/m", {"prompt": "a", "image_url": f"http://t/fal/files/{fal_file}"}),
        ("/v1/images/generations", {"prompt": "a", "controls": [{"image": {"file": name}}]}),
    ):
        answer = small.post(path, json=body)
        assert answer.status_code == 503, (path, answer.text)
        assert is_budget_free(small)


def test_pictures_of_every_route_are_read_for_the_key_of_the_client(
    small: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []

    def receive(*given: Any) -> Any:
        keys.append(current_key.get())
        return read(*given)

    read = codec.receive_picture
    monkeypatch.setattr(codec, "receive_picture", receive)
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    assert small.post("/api/files", content=file.getvalue()).status_code == 201
    edit = small.post("/v1/images/variations", files={"image": file.getvalue()})
    assert edit.status_code == 200, edit.text
    assert set(keys) == {hash_key("owner")[:KEY_LABEL_CHARS]}
    assert len(keys) >= 2
