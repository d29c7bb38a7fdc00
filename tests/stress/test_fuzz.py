"""A short fuzzing run, and requests that caused a 500 before."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.server.live import client_of
from tests.stress import fuzz

pytestmark = pytest.mark.filterwarnings(  # schemathesis' own
    "ignore:Do not use the `random` module inside strategies"
)


@pytest.mark.smoke
def test_fuzz_short_run_passes(tmp_path: Path) -> None:
    report = fuzz.run(tmp_path, 100)
    assert report.passed, report
    assert report.negative > 25


def picture(side: int) -> str:
    made = io.BytesIO()
    Image.new("L", (side, side), 255).save(made, "PNG")
    return base64.b64encode(made.getvalue()).decode()


LARGE, SMALL = picture(64), picture(32)
DEEP = '{"request": {"prompt": ' + "[" * 900 + "]" * 900 + "}}"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(tmp_path_factory.mktemp("data")) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/api/jobs", '{"request": {"image": {"data": "é"}}}', "data"),
        ("/api/jobs", DEEP, "request"),
        ("/api/jobs", r'{"request": {}, "model": "\ud800"}', "model"),
        ("/api/jobs", '{"request": {"loras": 1, "prompt": "<lora:x>"}}', "loras"),
        ("/api/jobs", f'{{"request": {{"image": {{"data": "{LARGE}"}}, "extend": 1}}}}', "extend"),
        (
            "/api/jobs",
            f'{{"request": {{"image": {{"data": "{LARGE}"}}, "mask_from": "box", "task": {{}}}}}}',
            "task",
        ),
        ("/v1/predictions", '{"version": "o/m", "input": {"image": "data:;base64,é"}}', "image"),
        ("/predictions", '{"input": {"image": "data:;base64,é"}}', "image"),
        ("/sdapi/v1/txt2img", r'{"alwayson_scripts": {"\ud800": [1]}}', "alwayson_scripts"),
        ("/sdapi/v1/img2img", '{"init_images": ["é"]}', "init_images"),
        ("/sdapi/v1/png-info", '{"image": "é"}', "image"),
    ],
)
def test_fuzz_invalid_fields_are_named(
    client: TestClient, path: str, body: str, field: str
) -> None:
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert field in answer.text


def test_fuzz_mask_of_other_size_is_rejected(client: TestClient) -> None:
    body = {"request": {"image": {"data": LARGE}, "mask": {"data": SMALL}}}
    answer = client.post("/api/jobs", json=body)
    assert answer.status_code == 422
    assert "mask: The mask is 32x32" in answer.text


def test_fuzz_values_that_are_not_json_are_dropped(client: TestClient) -> None:
    # NaN and infinity cannot be sent back as JSON.
    body = r'{"steps": 1, "whatever": NaN, "s_tmax": -Infinity, "save_images": [[[]]]}'
    answer = client.post(
        "/sdapi/v1/txt2img", content=body, headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200
    assert not {"whatever", "s_tmax", "save_images"} & set(answer.json()["parameters"])
