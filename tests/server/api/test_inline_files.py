"""Pictures inside JSON responses are streamed, and equal the files."""

import asyncio
import base64
import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException, Response
from fastapi.responses import JSONResponse, StreamingResponse

from overpaint.server.api import inline_files
from overpaint.server.api.inline_files import (
    collect_inline_files,
    encode_file,
    stream_inline_files,
)
from tests.server.live import client_of


def read_all(response: Response) -> list[bytes]:
    assert isinstance(response, StreamingResponse)

    async def read() -> list[bytes]:
        return [bytes(part) async for part in response.body_iterator]  # pyright: ignore

    return asyncio.run(read())


@pytest.mark.parametrize("size", [0, 1, 2, 3, 10_000])
def test_files_are_streamed_in_parts(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_files, "CHUNK_BYTES", 300)
    files = [tmp_path / name for name in "ab"]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * size)
    with collect_inline_files() as collected:
        body = {"images": [encode_file(file) for file in files], "text": "overpaint-inline-file-"}
        response = JSONResponse(body, 201, {"X-Request-ID": "a"})
        streamed = stream_inline_files(response, collected)
    parts = read_all(streamed)
    assert max(map(len, parts)) <= 400
    whole = b"".join(parts)
    assert int(streamed.headers["content-length"]) == len(whole)
    assert (streamed.status_code, streamed.headers["x-request-id"]) == (201, "a")
    sent = [base64.b64decode(text) for text in json.loads(whole)["images"]]
    assert sent == [file.read_bytes() for file in files]


def test_response_without_files_is_unchanged() -> None:
    with collect_inline_files() as collected:
        response = JSONResponse({"text": f"{collected.prefix}0"})
        assert stream_inline_files(response, collected) is response


def test_file_outside_of_a_response_is_encoded_at_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a picture")
    assert base64.b64decode(encode_file(tmp_path / "a")) == b"a picture"
    for block in (collect_inline_files(), contextlib.nullcontext()):
        with block, pytest.raises(HTTPException, match="410: Result b of the job is deleted"):
            encode_file(tmp_path / "b")


def images_of(answer: dict[str, Any]) -> list[str]:
    if "data" in answer:
        return [image["b64_json"] for image in answer["data"]]
    images: list[Any] = answer.get("images") or answer["output"]
    return [image if isinstance(image, str) else image["url"] for image in images]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/images/generations", {"prompt": "a cup", "n": 2, "response_format": "b64_json"}),
        ("/sdapi/v1/txt2img", {"prompt": "a cup", "batch_size": 2}),
        ("/fal/run/fal-ai/fast-sdxl", {"prompt": "a cup", "num_images": 2, "sync_mode": True}),
        ("/predictions", {"input": {"prompt": "a cup", "num_outputs": 2}}),
    ],
)
def test_every_dialect_streams_pictures_in_its_answers(
    tmp_path: Path, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_files, "CHUNK_BYTES", 30)
    with client_of(tmp_path, models=("miniature",)) as client:
        answer = client.post(path, json=body)
        assert answer.status_code in (200, 201), answer.text
        assert int(answer.headers["content-length"]) == len(answer.content)
        texts = images_of(answer.json())
        files = sorted(file.read_bytes() for file in tmp_path.glob("results/*/*"))
    assert sorted(base64.b64decode(text.rpartition(",")[2]) for text in texts) == files
    assert len(files) == 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/images/generations",
            {"prompt": "a cup", "n": 2, "response_format": "b64_json", "stream": True},
        ),
        ("/fal/run/fal-ai/fast-sdxl/stream", {"prompt": "a cup", "sync_mode": True}),
    ],
)
def test_event_streams_send_pictures_in_parts(
    tmp_path: Path, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_files, "CHUNK_BYTES", 30)
    with client_of(tmp_path, models=("miniature",)) as client:
        answer = client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        files = [file.read_bytes() for file in tmp_path.glob("results/*/*")]
    assert files
    assert b"overpaint-inline-file" not in answer.content
    for file in files:
        assert base64.b64encode(file) in answer.content


def test_deleted_result_is_answered_410(tmp_path: Path) -> None:
    with client_of(tmp_path, models=("miniature",)) as client:
        body = {"prompt": "a cup", "sync_mode": True}
        name = client.post("/fal/queue/fal-ai/fast-sdxl", json=body).json()["request_id"]
        (result,) = client.get(f"/api/jobs/{name}?wait=30").json()["results"]
        shutil.rmtree(tmp_path / "results")
        for path in (result["url"], f"/fal/queue/fal-ai/fast-sdxl/requests/{name}"):
            assert client.get(path).status_code == 410
