"""Synexa's client against this server."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.docs.blocks import first_block
from tests.server.live import running

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("data"), api_keys=("right",)) as address:
        yield address


def client_of(url: str, key: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SYNEXA_API_KEY", "any")  # asked for when it is imported
    synexa: Any = importlib.import_module("synexa")
    client = synexa.Synexa(key)
    client.base_url = f"{url}/v1"
    return client


def test_run_downloads_images_without_key(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client downloads images without its key, from signed links."""
    client = client_of(url, "right", monkeypatch)
    inputs = {"prompt": "a cup", "seed": 7, "num_outputs": 2}
    files = client.run("stability-ai/sdxl", inputs)
    assert len(files) == 2
    for file in files:
        assert file.read().startswith(b"\x89PNG")
        file._client.close()


def test_stream_ends_with_image_link(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = list(client_of(url, "right", monkeypatch).stream("any/miniature", {"prompt": "a"}))
    assert httpx.get(told[-1]).content.startswith(b"\x89PNG")


def test_docs_example_runs_with_the_real_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = first_block("guides/clients/synexa.md", "python")
    monkeypatch.setenv("SYNEXA_API_KEY", "any")  # so that what the lines set is undone
    with running(tmp_path) as url:
        exec(lines.replace("http://127.0.0.1:8000", url), {})
        assert httpx.get(capsys.readouterr().out.strip()).content.startswith(b"\x89PNG")


def test_async_run_returns_image(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(url, "right", monkeypatch)
    run = client.async_run("any/sdxl", {"prompt": "a"}, use_file_output=False)
    assert len(asyncio.run(run)) == 1


def test_run_of_failing_prediction_raises_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(url, "right", monkeypatch)
    with pytest.raises(Exception, match="Prediction failed: prompt: Refused"):
        client.run("any/sdxl", {"prompt": "refuse"})


def test_wrong_key_or_model_is_rejected(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, model, status in (("wrong", "any/sdxl", 401), ("right", "any/flux-schnell", 422)):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            client_of(url, key, monkeypatch).run(model, {"prompt": "a"})
        assert caught.value.response.status_code == status


def test_version_comes_before_model(url: str) -> None:
    both = {"version": "any/sdxl", "model": "any/miniature", "input": {}}
    headers = {"x-api-key": "right"}
    answer = httpx.post(f"{url}/v1/predictions", json=both, headers=headers)
    assert (answer.status_code, answer.json()["model"]) == (201, "overpaint/sdxl")
    assert answer.headers["x-ignored-fields"] == "model"
