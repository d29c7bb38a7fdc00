"""Requests that plug-ins and web programs send, as their source writes them.

Each file in `plugins` names a program, the source that was read, and its requests in order. The
text PICTURE stands for a picture in base64. `pictures` is the number of pictures of the answer, and
`ignored` has the fields that the answer must report.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from overpaint.server.api.ignored_fields import IGNORED_HEADER
from tests.server.live import client_of

HOUSE = (Path(__file__).parents[3] / "examples" / "house.png").read_bytes()
RAW = base64.b64encode(HOUSE).decode()
PROGRAMS = {
    path.stem: json.loads(path.read_text().replace("PICTURE", RAW))
    for path in sorted((Path(__file__).parent / "plugins").glob("*.json"))
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(tmp_path_factory.mktemp("data")) as made:
        yield made


def send(client: TestClient, request: dict[str, Any]) -> Any:
    files = [(name, ("a b.png", HOUSE, "image/png")) for name in request.get("files", [])]
    return client.request(
        request["method"],
        request["path"],
        headers=request.get("headers"),
        json=request.get("json"),
        data=request.get("form"),
        files=files or None,
    )


def read_pictures(answer: dict[str, Any]) -> list[str]:
    """Return the pictures of an answer of A1111's or OpenAI's API, as base64."""
    return answer.get("images") or [image["b64_json"] for image in answer.get("data", [])]


@pytest.mark.parametrize(
    ("program", "place"),
    [(name, place) for name, own in PROGRAMS.items() for place in range(len(own["requests"]))],
)
def test_request_of_a_program_succeeds_and_ignored_fields_are_reported(
    client: TestClient, program: str, place: int
) -> None:
    request = PROGRAMS[program]["requests"][place]
    answer = send(client, request)
    assert answer.status_code == 200, answer.text
    reported = [name for name in answer.headers.get(IGNORED_HEADER, "").split(", ") if name]
    assert sorted(reported) == sorted(request["ignored"])
    if number := request.get("pictures"):
        pictures = read_pictures(answer.json())
        assert len(pictures) == number
        for picture in pictures:
            assert Image.open(io.BytesIO(base64.b64decode(picture))).format == "PNG"
