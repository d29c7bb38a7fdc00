"""What an idempotency key knows a body by."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from overpaint.errors import RequestError
from overpaint.server.api.fields import hash_body
from overpaint.server.api.openai.protocol import Edit, Generation
from overpaint.server.api.replicate.cog_routes import PredictionRequest
from overpaint.server.api.replicate.inputs import Input
from tests.server.live import client_of


def of(given: Any, *beside: str) -> str:
    return asyncio.run(hash_body("key", given, *beside))


def drawn(**fields: Any) -> Generation:
    return Generation.model_validate({"prompt": "a"} | fields)


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def test_hash_body_of_equal_bodies_is_equal() -> None:
    at = datetime(2026, 11, 28, tzinfo=UTC)
    for make in (
        lambda: drawn(seed=7, controls=[{"kind": "canny"}], width=math.nan),
        lambda: Edit.model_validate({"prompt": "a", "image": b"\xff\xfe"}),
        lambda: PredictionRequest(input=Input(prompt="a"), created_at=at),
        lambda: drawn(controls=nested(300)),
    ):
        assert of(make()) == of(make())


def test_hash_body_of_different_bodies_differs() -> None:
    bodies = [
        *(drawn(width=value) for value in (None, math.nan, math.inf, 0, 0.5, "0", "NaN", "null")),
        *(drawn(prompt=text) for text in ("é", "\\u00e9", "[]")),
        *(drawn(mask_from=text) for text in ("\ud800", "\ud801", "?")),
        drawn(controls=[]),
        Edit.model_validate({"prompt": "a", "image": b"\xff\xfe"}),
        Edit.model_validate({"prompt": "a", "image": b"__4="}),
        PredictionRequest(),
        PredictionRequest(input=Input()),
        PredictionRequest(created_at=datetime(2026, 11, 28, tzinfo=UTC)),
        Input(seed=1),
        Input(seed=2),
    ]
    found = [of(body) for body in bodies] + [
        of(drawn(), "m"),
        of(drawn(), "m", ""),
        of(drawn(), "n"),
    ]
    assert len(set(found)) == len(found)


def test_hash_body_without_idempotency_key_is_empty() -> None:
    assert asyncio.run(hash_body(None, drawn())) == ""


def test_hash_body_nested_too_deeply_is_refused() -> None:
    with pytest.raises(RequestError, match="nested too deeply"):
        of(drawn(controls=nested(5000)))


@pytest.mark.parametrize(
    ("path", "around", "status"),
    [
        ("/api/jobs", '{"request": {"prompt": "a", "strength": %s}}', 422),
        ("/v1/images/generations", '{"prompt": "a", "guidance_rescale": %s}', 400),
        ("/fal/queue/fal-ai/m", '{"prompt": "a", "strength": %s}', 422),
    ],
)
def test_invalid_body_with_used_key_is_refused(
    tmp_path: Path, path: str, around: str, status: int
) -> None:
    headers = {"Content-Type": "application/json", "Idempotency-Key": "mine"}
    with client_of(tmp_path) as client:

        def send(value: str) -> int:
            return client.post(path, content=around % value, headers=headers).status_code

        wrong = ("NaN", "Infinity", r'"\ud800"', "[" * 300 + "]" * 300, "[" * 900 + "]" * 900)
        assert [send(value) for value in wrong] == [status] * len(wrong)
        assert send("null") < 300
        assert send("null") < 300
        assert [send(value) for value in wrong] == [status] * len(wrong)
        assert jobs(client) == 1


@pytest.mark.parametrize("key", ["", "mine"])
def test_idempotency_key_of_other_dialect_is_refused(tmp_path: Path, key: str) -> None:
    headers = {"Idempotency-Key": key}
    with client_of(tmp_path) as client:
        first = client.post("/api/jobs", json={"request": {}}, headers=headers)
        again = client.post("/api/jobs", json={"request": {}}, headers=headers)
        assert first.json()["id"] == again.json()["id"]
        for path in ("/v1/images/generations", "/fal/queue/fal-ai/m"):
            answer = client.post(path, json={"prompt": ""}, headers=headers)
            assert answer.status_code in (400, 422)
            assert "idempotency key" in answer.text
        assert jobs(client) == 1


def jobs(client: TestClient) -> int:
    return len(client.get("/api/jobs").json()["jobs"])
