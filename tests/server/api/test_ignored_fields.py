"""Fields without effect: which ones a model accepts, and where the server reports them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter
from fastapi.testclient import TestClient
from pydantic import ConfigDict, Field, ValidationError

from overpaint.server.api import ignored_fields
from overpaint.server.api.ignored_fields import (
    IGNORED_HEADER,
    MAX_REPORTED_NAMES,
    Ignored,
    TolerantModel,
    UnsupportedExcept,
    collect_ignored,
    list_ignored,
    report_ignored,
    report_ignored_fields,
)
from overpaint.server.api.route import make_route_class
from overpaint.server.app import create_app
from overpaint.server.http.problems import error_response
from overpaint.server.http.threads import run_in_picture_thread
from tests.server.live import running, settings_for


class Inner(TolerantModel):
    scale: float = 1.0


class Given(TolerantModel):
    prompt: str = ""
    steps: int = Field(default=20, ge=1)
    scheduler: str = Field(default="Automatic", min_length=1)
    inner: Inner = Field(default_factory=Inner)
    inners: list[Inner] = Field(default_factory=list[Inner])
    tiling: Annotated[bool, UnsupportedExcept(False)] = False
    hint: Ignored = None


class Extended(TolerantModel):
    model_config = ConfigDict(extra="allow")

    steps: int = 20


def report(model: type[TolerantModel], body: Any) -> tuple[Any, list[str]]:
    with collect_ignored():
        given = model.model_validate(body)
        report_ignored_fields(given)
        return given, list_ignored()


@pytest.mark.parametrize(
    ("body", "ignored"),
    [
        ({}, []),
        ({"prompt": "", "steps": 3}, []),
        ({"unknown": 1, "cfg": None}, ["unknown", "cfg"]),
        ({"steps": None, "prompt": None}, ["steps", "prompt"]),
        ({"steps": "", "scheduler": "", "inner": [], "inners": {}}, None),
        ({"inner": {"scale": "", "other": 1}}, ["inner.scale", "inner.other"]),
        ({"inners": [{}, {"x": 1}]}, ["inners.1.x"]),
        ({"tiling": False, "hint": {"deep": [1]}}, ["tiling", "hint"]),
        ({"tiling": "", "hint": None}, ["tiling", "hint"]),
    ],
)
def test_fields_without_effect_are_accepted_and_reported(
    body: dict[str, Any], ignored: list[str] | None
) -> None:
    given, reported = report(Given, body)
    assert sorted(reported) == sorted(body if ignored is None else ignored)
    assert given.steps in (3, 20)
    assert given.scheduler == "Automatic"
    assert "hint" not in given.model_dump()


@pytest.mark.parametrize(
    ("body", "field"),
    [({"steps": 0}, "steps"), ({"steps": "x"}, "steps"), ({"tiling": True}, "tiling")],
)
def test_value_that_cannot_be_honored_is_refused(body: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Given.model_validate({"unknown": 1, "scheduler": ""} | body)
    assert [error["loc"][0] for error in caught.value.errors()][-1] == field


def test_model_with_native_fields_keeps_unknown_ones() -> None:
    given, reported = report(Extended, {"steps": "", "strength": 0.5, "seed": None})
    assert given.model_extra == {"strength": 0.5}
    assert reported == ["steps", "seed"]


def test_reported_names_are_short_printable_and_few() -> None:
    with collect_ignored():
        report_ignored("a b\r\nSet-Cookie: x", "\udc80é", "x" * 1000, *map(str, range(100)))
        names = list_ignored()
    assert len(names) == MAX_REPORTED_NAMES
    assert all(name.isascii() and " " not in name and name.isprintable() for name in names)
    assert max(map(len, names)) == 100
    report_ignored("outside of a request")
    assert list_ignored() == []


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    router = APIRouter(route_class=make_route_class(error_response))

    @router.post("/tolerant")
    async def tolerant(given: Given) -> int:  # pyright: ignore[reportUnusedFunction]
        report_ignored_fields(given)
        await run_in_picture_thread(report_ignored, "from.a.thread")
        return given.steps

    app = create_app(settings_for(tmp_path))
    app.include_router(router)
    return TestClient(app)


def test_response_and_log_name_ignored_fields(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "overpaint.server")
    answer = client.post("/tolerant", json={"steps": 3, "x y": 1, "hint": "a secret"})
    assert (answer.status_code, answer.json()) == (200, 3)
    assert answer.headers[IGNORED_HEADER] == "x%20y, hint, from.a.thread"
    (fields,) = (
        record.__dict__["fields"]
        for record in caplog.records
        if record.getMessage() == "fields ignored"
    )
    assert fields["fields"] == "x%20y, hint, from.a.thread"
    assert fields["route"] == "/tolerant"
    assert "secret" not in str(fields)


def test_field_with_empty_name_is_reported_in_a_valid_header(tmp_path: Path) -> None:
    body = {"prompt": "a cup", "steps": 2, "other": 1, "": 1}
    with running(tmp_path) as url:
        answer = httpx.post(f"{url}/sdapi/v1/txt2img", json=body, timeout=60)
    assert (answer.status_code, answer.headers[IGNORED_HEADER]) == (200, 'other, ""')


def test_requests_do_not_share_their_names(client: TestClient) -> None:
    client.post("/tolerant", json={"other": 1})
    answer = client.post("/tolerant", json={})
    assert answer.headers[IGNORED_HEADER] == "from.a.thread"


def test_pages_of_allowed_origins_may_read_the_header(tmp_path: Path) -> None:
    origin = "https://page.example"
    with TestClient(create_app(settings_for(tmp_path, allowed_origins=(origin,)))) as client:
        answer = client.get("/healthz", headers={"Origin": origin})
    assert ignored_fields.IGNORED_HEADER in answer.headers["access-control-expose-headers"]
