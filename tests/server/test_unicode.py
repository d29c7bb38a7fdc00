"""Texts that are not valid Unicode are refused in every field of every dialect."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.server.live import client_of

LONE = r"\ud800"
JSON_TYPE = "application/json"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(tmp_path_factory.mktemp("data")) as made:
        yield made


def list_json_routes(client: TestClient) -> Iterator[tuple[str, str, list[str]]]:
    """Yield the method, the path and the fields of every route that takes JSON."""
    app: Any = client.app
    document = app.openapi()
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {})
            if JSON_TYPE not in content:
                continue
            schema = content[JSON_TYPE]["schema"]
            if "properties" not in schema:
                name = re.findall(r'/schemas/([^"]+)', json.dumps(schema))[0]
                schema = schemas[name]
            yield method, re.sub("{.*?}", "m", path), [*schema["properties"], "unknown"]


def refusal(client: TestClient, method: str, path: str, body: str | bytes) -> str:
    content = body if isinstance(body, bytes) else body.encode()
    answer = client.request(method, path, content=content, headers={"Content-Type": JSON_TYPE})
    is_openai = path.startswith("/v1/images")
    assert answer.status_code == (400 if is_openai else 422), (path, body, answer.text)
    return answer.text


def test_lone_surrogate_is_refused_in_every_field_of_every_json_route(client: TestClient) -> None:
    routes = list(list_json_routes(client))
    assert {path.split("/")[1] for _, path, _ in routes} >= {"api", "v1", "fal", "sdapi"}
    assert len(routes) >= 20
    for method, path, names in routes:
        for name in names:
            value = f'"a{LONE}b"'
            for shown in (value, f'[{{"x": {value}}}]', f"{{{value}: 1}}"):
                assert name in refusal(client, method, path, f'{{"{name}": {shown}}}')
        assert refusal(client, method, path, f'{{"a{LONE}": 1}}')
        assert "unknown" in refusal(client, method, path, b'{"unknown": "\xed\xa0\x80"}')


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loras", f'[{{"name": "{LONE}"}}]'),
        ("unknown", f'{{"{LONE}": 1}}'),
        ("upscale_to", f'["{LONE}"]'),
    ],
)
def test_lone_surrogate_in_json_of_a_form_is_refused(
    client: TestClient, path: str, field: str, value: str
) -> None:
    form = {"prompt": "a", field: value}
    answer = client.post(path, data=form, files={"image": picture()})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(field)


@pytest.mark.parametrize("metadata", [f'{{"a": "{LONE}"}}', f'{{"{LONE}": [1]}}'])
def test_lone_surrogate_in_metadata_of_a_file_is_refused(client: TestClient, metadata: str) -> None:
    files = {"content": ("a.png", picture())}
    answer = client.post("/v1/files", files=files, data={"metadata": metadata})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][:2] == ["body", "metadata"]
    assert client.get("/v1/files").json()["results"] == []


def test_lone_surrogate_in_the_name_of_a_request_to_end_is_refused(client: TestClient) -> None:
    body = f'{{"force_task_id": "{LONE}"}}'.encode()
    assert client.post("/sdapi/v1/interrupt", content=body).status_code == 422


def test_pair_of_surrogates_is_one_character(client: TestClient) -> None:
    body = rb'{"request": {"prompt": "\ud83d\ude00"}}'
    answer = client.post("/api/jobs", content=body, headers={"Content-Type": JSON_TYPE})
    assert answer.json()["request"]["prompt"] == "\U0001f600"


def test_name_of_a_file_with_nul_is_refused(client: TestClient) -> None:
    """Postgres stores no such text."""
    for form in ({"filename": "a\0.png"}, {"type": "image/\0"}):
        files = {"content": ("a.png", picture())}
        assert client.post("/v1/files", files=files, data=form).status_code == 422
    for body in ({"file_name": "a\0"}, {"content_type": "\0"}):
        answer = client.post("/fal/rest/storage/upload/initiate", json=body)
        assert answer.status_code == 422
    part = b'--b\r\nContent-Disposition: form-data; name="content"; filename="a\0.png"\r\n\r\nx\r\n'
    head = {"Content-Type": "multipart/form-data; boundary=b"}
    assert client.post("/v1/files", content=part + b"--b--", headers=head).status_code == 422
    assert client.get("/v1/files?cursor=%00").status_code == 404
    assert client.delete("/v1/files/%00").status_code == 404
