"""Every way to be refused work is counted under its own reason."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError

from overpaint.errors import OverpaintError, StoreError
from overpaint.server.http.problems import (
    REJECTION_REASONS,
    ShutdownError,
    describe_error,
    rejection_reason,
)
from overpaint.server.jobs.service import Service
from overpaint.server.settings import Limits
from overpaint.server.store.jobs import Jobs
from tests.server.api.test_metrics import Samples, scrape
from tests.server.live import client_of

KEY = {"Authorization": "Bearer secret"}

Asked = Callable[..., httpx2.Response]


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    """A server where one job may wait, and a way to ask it for work."""
    limits = Limits(queued_jobs=0, body_bytes=2000)
    hosts = ("testserver",)
    with client_of(
        tmp_path, limits=limits, api_keys=("secret",), metrics_key="secret", allowed_hosts=hosts
    ) as client:
        yield client


def reasons(client: TestClient) -> dict[str, float]:
    found: Samples = scrape(client, **KEY)
    return {label: n for (name, label), n in found.items() if name == "overpaint_rejections_total"}


def ask(client: TestClient, request: Any = None, **more: Any) -> int:
    given: dict[str, Any] = {"json": {"request": request or {"prompt": "a cup"}}, "headers": {}}
    given |= more
    given["headers"] = KEY | given["headers"]
    return client.post("/api/jobs", **given).status_code


def only(client: TestClient, reason: str) -> None:
    """One rejection, for that reason; the others are there, and 0."""
    assert reasons(client) == {name: float(name == reason) for name in REJECTION_REASONS}


@pytest.mark.parametrize(
    ("reason", "status", "request_", "more"),
    [
        ("queue_full", 429, {}, {}),
        ("unauthorized", 401, {}, {"headers": {"Authorization": "Bearer other"}}),
        ("forbidden_host", 400, {}, {"headers": {"Host": "evil.example"}}),
        ("forbidden_origin", 403, {}, {"headers": {"Origin": "https://evil.example"}}),
        ("encoding", 415, {}, {"headers": {"Content-Encoding": "gzip"}}),
        ("body_too_large", 413, {"prompt": "x" * 3000}, {}),
        ("request", 422, {"prompt": "a cup", "num_inference_steps": -1}, {}),
        ("request", 422, {}, {"json": {"nothing": 1}}),
        ("picture", 422, {"prompt": "a cup", "image": {"data": "AAAA"}}, {}),
        ("model", 422, {}, {"json": {"request": {"prompt": "a cup"}, "model": "other"}}),
    ],
)
def test_rejection_by_client_error_is_counted(
    opened: TestClient, reason: str, status: int, request_: Any, more: Any
) -> None:
    assert ask(opened, request_, **more) == status
    only(opened, reason)


@pytest.mark.parametrize(
    ("reason", "status", "error"),
    [
        ("disk_full", 507, OSError(errno.ENOSPC, "no space")),
        ("disk_full", 507, OSError(errno.EDQUOT, "quota")),
        ("disk", 503, OSError(errno.EIO, "I/O error")),
        ("store", 503, OperationalError("INSERT", {}, Exception("disk I/O error"))),
        ("name", 422, StoreError("no such name")),
        ("defect", 500, OverpaintError("this went wrong")),
    ],
)
def test_rejection_by_server_error_is_counted(
    opened: TestClient,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
    status: int,
    error: Exception,
) -> None:
    def failing(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Jobs, "submit", failing)
    assert ask(opened) == status
    only(opened, reason)


def test_rejection_by_used_idempotency_key_is_counted(tmp_path: Path) -> None:
    with client_of(tmp_path, api_keys=("secret",), metrics_key="secret") as client:
        for prompt, status in (("a", 201), ("a", 201), ("b", 422)):
            assert ask(client, {"prompt": prompt}, headers={"Idempotency-Key": "t"}) == status
        only(client, "idempotency")


def test_rejection_by_stopping_server_is_counted(opened: TestClient) -> None:
    service: Service = cast(Any, opened.app).state.service
    service.draining = True
    assert ask(opened) == 429
    only(opened, "queue_full")


def test_rejection_by_used_up_memory_for_requests_is_counted(tmp_path: Path) -> None:
    limits = Limits(pending_body_bytes=10)
    with client_of(tmp_path, limits=limits, api_keys=("secret",), metrics_key="secret") as client:
        assert ask(client) == 503
        only(client, "overloaded")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (HTTPException(408), "body_too_slow"),
        (HTTPException(429), "too_many_requests"),
        (ShutdownError("job"), None),
    ],
)
def test_rejection_reason_of_an_error_with_a_status(error: Exception, reason: str | None) -> None:
    assert rejection_reason(error) == reason


@pytest.mark.parametrize(
    ("continues", "advice"), [(False, "Try again in a minute"), (True, "continues when the server")]
)
def test_shutdown_error_says_what_happens_to_the_job(continues: bool, advice: str) -> None:
    status, _, detail, headers = describe_error(ShutdownError("j", continues=continues))
    assert status == 503
    assert detail.startswith("The server is shutting down before job j ends.")
    assert advice in detail
    assert headers == {"Retry-After": "5"}


@pytest.mark.parametrize("path", ["/v1/images/generations", "/fal/run/any/m", "/sdapi/v1/txt2img"])
def test_rejection_in_every_dialect_is_counted_alike(opened: TestClient, path: str) -> None:
    assert opened.post(path, json={"prompt": "a cup"}, headers=KEY).status_code == 429
    only(opened, "queue_full")


def test_error_of_get_request_is_not_a_rejection(opened: TestClient) -> None:
    assert opened.get("/api/jobs").status_code == 401
    assert opened.post("/api/jobs/none/cancel", headers=KEY).status_code == 404
    assert set(reasons(opened).values()) == {0.0}
