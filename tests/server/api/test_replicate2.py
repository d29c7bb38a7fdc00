"""Replicate's client 2.x against this server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.live import running

ROOT = Path(__file__).parents[3]
HOUSE = ROOT / "examples" / "house.png"
CLIENT_FOLDER = ROOT / ".venv" / "replicate2"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running(tmp_path_factory.mktemp("data"), 0.01) as address:
        yield address


def client(url: str, what: str) -> Any:
    """Run one scenario in a separate process, and return its result."""
    assert CLIENT_FOLDER.is_dir(), "run `make setup`"
    done = subprocess.run(
        [sys.executable, "-m", "tests.server.api.replicate2", what, f"{url}/v1", str(HOUSE)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(CLIENT_FOLDER)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_run_with_client_2_returns_images(url: str) -> None:
    ran = client(url, "run")
    assert ran["version"].startswith("2.")
    assert ran["sizes"] == [[8, 8]] * 3


def test_async_run_with_client_2_returns_images(url: str) -> None:
    assert client(url, "run_async") == [[8, 8]]


def test_use_with_client_2_streams_images(url: str) -> None:
    used = client(url, "use")
    assert len(used["streamed"]) == 2
    assert len(used["output"]) == 1
    for picture in (*used["streamed"], *used["output"]):
        assert picture.startswith("data:image/png;base64,")
    assert "noted" in used["logs"]


def test_prediction_lifecycle_with_client_2_is_reported(url: str) -> None:
    lived = client(url, "life")
    assert lived["at_first"] in ("starting", "processing")
    assert lived["status"] == "succeeded"
    assert lived["input"] == {"prompt": "note", "num_inference_steps": 20}
    assert 0 <= lived["predict_time"] <= lived["ended"]
    assert lived["web"].startswith(url)
    assert lived["listed"]
    assert lived["later"] == []


def test_list_with_client_2_pages_newest_first(url: str) -> None:
    newest_first = list(range(100, -1, -1))
    assert client(url, "pages") == newest_first


def test_cancel_with_client_2_ends_prediction(url: str) -> None:
    assert client(url, "cancel") == "canceled"


def test_files_with_client_2_are_uploaded_and_used(url: str) -> None:
    made = client(url, "files")
    assert made["sizes"] == [[8, 8]] * 4
    assert made["whole"]
    assert made["sent"] == "image/png"
    assert made["metadata"] == {"a": "1"}
    assert made["listed"] == [True, False]


def test_errors_with_client_2_raise_matching_exceptions(url: str) -> None:
    met = client(url, "errors")
    assert met["failed"].startswith("ModelError: ")
    assert "Refused" in met["failed"]
    assert met["invalid"].startswith("UnprocessableEntityError: ")
    assert "num_inference_steps" in met["invalid"]
    assert met["no model"].startswith("NotFoundError: ")
    assert met["no prediction"].startswith("NotFoundError: ")
    assert met["deadline"] == "none"


def test_models_with_client_2_are_described(url: str) -> None:
    known = client(url, "models")
    assert known == {
        "names": ["miniature", "sdxl"],
        "most": 4,
        "output": "uri",
        "secret": "whsec_",
        "account": "organization",
        "hardware": ["overpaint"],
        "deployments": ["miniature", "sdxl"],
        "deployed": "overpaint/sdxl",
    }
