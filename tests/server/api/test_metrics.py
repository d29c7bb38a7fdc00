"""What Prometheus sees, with an engine that counts nothing and with the miniature."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import OperationalError

from overpaint.engine.config import EngineConfig
from overpaint.engine.worker import make_engine
from overpaint.server.settings import Limits, WorkerSettings
from overpaint.server.store.jobs import Jobs
from tests.server.live import client_of

TIMEOUT_S = 120.0

Samples = dict[tuple[str, str], float]
"""Values by a sample's name and its label's value."""


def scrape(client: TestClient, **headers: str) -> Samples:
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in families
        for sample in family.samples
    }


def wait_for_samples(client: TestClient, true: Callable[[Samples], bool]) -> Samples:
    end = time.monotonic() + TIMEOUT_S
    while not true(samples := scrape(client)):
        assert time.monotonic() < end, samples
        time.sleep(0.05)
    return samples


def service(folder: Path, seconds: float = 0.0, **more: Any) -> TestClient:
    given: dict[str, Any] = {"models": ("miniature",)} | more
    return client_of(folder, seconds, **given)


def submit(client: TestClient, prompt: str = "a cup", **fields: Any) -> int:
    body = {"request": {"prompt": prompt, "num_inference_steps": 4, "seed": 7} | fields}
    return client.post("/api/jobs", json=body).status_code


def test_metrics_count_jobs_by_state(tmp_path: Path) -> None:
    with service(tmp_path) as client:
        assert [submit(client) for _ in range(3)] == [201] * 3
        assert submit(client, "refuse") == 201
        samples = wait_for_samples(client, lambda f: f["overpaint_jobs", "succeeded"] == 3)
        samples = wait_for_samples(client, lambda f: f["overpaint_jobs", "failed"] == 1)
        assert samples["overpaint_jobs", "queued"] == 0
        assert samples["overpaint_jobs_ended_total", "succeeded"] == 3
        assert samples["overpaint_jobs_ended_total", "failed"] == 1
        assert samples["overpaint_queue_work_seconds", ""] == 0
        assert samples["overpaint_webhooks", "due"] == 0
        assert samples["overpaint_worker_ready", ""] == 1
        assert samples["overpaint_worker_restarts_total", ""] == 0
        assert samples["overpaint_step_rows_count", ""] == 0  # this engine counts nothing
        assert samples["overpaint_http_responses_total", "201"] == 4


def test_metrics_count_worker_restarts(tmp_path: Path) -> None:
    with service(tmp_path) as client:
        submit(client, "die")
        samples = wait_for_samples(client, lambda f: f["overpaint_jobs", "failed"] == 1)
        samples = wait_for_samples(client, lambda f: ("overpaint_jobs_ended_total", "failed") in f)
        assert samples["overpaint_worker_restarts_total", ""] == 5


def test_metrics_show_queue_and_rejections(tmp_path: Path) -> None:
    with service(
        tmp_path, 0.02, limits=Limits(queued_jobs=2), worker=WorkerSettings(max_jobs=1)
    ) as client:
        submit(client, num_inference_steps=1000)
        wait_for_samples(client, lambda f: f["overpaint_worker_jobs", ""] == 1)
        assert [submit(client) for _ in range(4)] == [201, 201, 429, 429]
        samples = scrape(client)
        assert samples["overpaint_jobs", "queued"] == 2
        assert samples["overpaint_queue_work_seconds", ""] > 0
        assert samples["overpaint_queue_wait_seconds", ""] > 0
        assert samples["overpaint_http_responses_total", "429"] == 2


def test_metrics_are_closed_to_api_keys(tmp_path: Path) -> None:
    """A hit of the prompt cache would tell a key what another one has sent."""
    with service(tmp_path, api_keys=("secret",)) as client:
        for headers in ({}, {"Authorization": "Bearer secret"}):
            answer = client.get("/metrics", headers=headers)
            assert answer.status_code == 403
            assert "--metrics-key" in answer.json()["detail"]


@pytest.mark.parametrize("api_keys", [(), ("secret",)])
def test_metrics_key_opens_metrics_alone(tmp_path: Path, api_keys: tuple[str, ...]) -> None:
    with service(tmp_path, api_keys=api_keys, metrics_key="of the operator") as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Authorization": "Bearer secret"}).status_code == 401
        assert scrape(client, Authorization="Bearer of the operator")
        if api_keys:
            headers = {"Authorization": "Bearer of the operator"}
            assert client.get("/api/models", headers=headers).status_code == 401


def test_metrics_with_store_failure_are_answered_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: Jobs) -> tuple[float, float]:
        raise OperationalError("SELECT", {}, Exception("disk I/O error"))

    monkeypatch.setattr(Jobs, "get_backlog", failing)
    with service(tmp_path) as client:
        assert client.get("/metrics").status_code == 503


def test_metrics_count_steps_of_the_miniature(tmp_path: Path) -> None:
    engine_factory = partial(make_engine, EngineConfig(("miniature",), "cpu", "fp32"))
    with service(tmp_path, engine_factory=engine_factory) as client:
        for _ in range(2):
            submit(client, width=128, height=128)
        wait_for_samples(client, lambda f: f["overpaint_jobs", "succeeded"] == 2)
        steps = ("overpaint_step_rows_sum", "")
        # The worker reports at intervals.
        samples = wait_for_samples(client, lambda f: f[steps] == 2 * 2 * 4)
        assert 4 <= samples["overpaint_step_rows_count", ""] <= 8
        assert (
            samples["overpaint_step_rows_bucket", "4.0"] == samples["overpaint_step_rows_count", ""]
        )
        assert samples["overpaint_step_rows_bucket", "1.0"] == 0
        assert samples["overpaint_step_seconds_total", ""] > 0
        assert samples["overpaint_step_halvings_total", ""] == 0
        assert samples["overpaint_cache_misses_total", "prompts"] == 2
        assert samples["overpaint_cache_hits_total", "prompts"] == 4
        assert samples["overpaint_cache_bytes", ""] > 0
        assert samples["overpaint_model_resident", "miniature"] == 1
        answer = client.post("/api/jobs", json={"request": {"width": 512}})
        assert (answer.status_code, "draws 32 to 256" in answer.text) == (422, True)
