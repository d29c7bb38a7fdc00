"""Spans of requests and of jobs, as the SDK keeps them in memory, and as they are posted."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from overpaint.cli.main import main
from overpaint.server.jobs.service import Service
from overpaint.server.settings import WorkerSettings
from overpaint.server.store.jobs import Jobs
from overpaint.server.telemetry.traces import TraceExporter, make_otlp_exporter
from tests.server.jobs.test_webhooks import receiving
from tests.server.live import client_of, until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01"}


@pytest.fixture
def kept() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def server(folder: Path, kept: InMemorySpanExporter, *engine: Any, **more: Any) -> TestClient:
    worker = WorkerSettings(poll_interval_s=0.05, max_jobs=1)
    traces = TraceExporter(SimpleSpanProcessor(kept))
    return client_of(folder, *engine, traces=traces, **{"worker": worker} | more)


@pytest.fixture
def client(tmp_path: Path, kept: InMemorySpanExporter) -> Iterator[TestClient]:
    with server(tmp_path, kept) as made:
        yield made


def submit(client: TestClient, prompt: str = "a cup", steps: int = 4) -> str:
    request = {"prompt": prompt, "num_inference_steps": steps, "num_images": 2}
    answer = client.post("/api/jobs", json={"request": request}, headers=PARENT)
    return str(answer.json()["id"])


def spans(kept: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in kept.get_finished_spans() if span.name == name]


def one(kept: InMemorySpanExporter, name: str) -> ReadableSpan:
    until(lambda: spans(kept, name))
    (found,) = spans(kept, name)
    return found


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def id_of(span: ReadableSpan) -> int:
    assert span.context
    return span.context.span_id


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def test_request_span_has_the_client_span_as_parent(
    client: TestClient, kept: InMemorySpanExporter
) -> None:
    client.get("/api/jobs/none", headers=PARENT | {"X-Request-ID": "mine"})
    span = one(kept, "GET /api/jobs/{name}")
    assert span.kind == SpanKind.SERVER
    assert span.context
    assert f"{span.context.trace_id:032x}" == TRACE
    assert parent_of(span) == int(SPAN, 16)
    assert attributes(span) == {
        "http.request.method": "GET",
        "http.route": "/api/jobs/{name}",
        "http.response.status_code": 404,
        "overpaint.request.id": "mine",
    }
    assert span.status.status_code == StatusCode.UNSET
    assert span.resource.attributes["service.name"] == "overpaint"


@pytest.mark.parametrize("given", ["", "nonsense", f"00-{'0' * 32}-{SPAN}-01"])
def test_request_with_invalid_traceparent_begins_a_trace(
    client: TestClient, kept: InMemorySpanExporter, given: str
) -> None:
    client.get("/api/models", headers={"traceparent": given})
    assert parent_of(one(kept, "GET /api/models")) is None


def test_probe_requests_have_no_spans(client: TestClient, kept: InMemorySpanExporter) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/api/models"):
        client.get(path)
    assert [span.name for span in kept.get_finished_spans()] == ["GET /api/models"]


def test_job_span_has_the_request_span_as_parent(
    client: TestClient, kept: InMemorySpanExporter
) -> None:
    name = submit(client)
    job, request = one(kept, "job"), one(kept, "POST /api/jobs")
    queued, running = one(kept, "queued"), one(kept, "running")
    assert parent_of(request) == int(SPAN, 16)
    assert parent_of(job) == id_of(request)
    assert parent_of(queued) == parent_of(running) == id_of(job)
    assert {f"{s.context.trace_id:032x}" for s in (job, request, queued, running) if s.context} == {
        TRACE
    }
    assert attributes(job) == {
        "overpaint.job.id": name,
        "overpaint.job.state": "succeeded",
        "overpaint.job.attempt": 1,
        "overpaint.key": "",
        "overpaint.model": "m",
        "overpaint.pictures": 2,
        "overpaint.request.id": attributes(request)["overpaint.request.id"],
    }
    assert attributes(running) == {"overpaint.job.attempt": 1}
    times = [job.start_time, queued.start_time, queued.end_time, running.start_time]
    times += [running.end_time, job.end_time]
    assert times[0] == times[1]
    assert times[2] == times[3]
    assert times[4] == times[5]
    assert times == sorted(cast("list[int]", times))


def test_job_span_has_one_child_per_attempt(client: TestClient, kept: InMemorySpanExporter) -> None:
    submit(client, "a secret, die")
    job = one(kept, "job")
    assert attributes(job)["overpaint.job.attempt"] == 5
    assert job.status.status_code == StatusCode.ERROR
    tries = [attributes(span)["overpaint.job.attempt"] for span in spans(kept, "running")]
    assert tries == [1, 2, 3, 4, 5]
    assert len(spans(kept, "queued")) == 5
    assert not any("secret" in span.to_json() for span in kept.get_finished_spans())


def test_canceled_while_queued_is_recorded(tmp_path: Path, kept: InMemorySpanExporter) -> None:
    with server(tmp_path, kept, 0.02) as client:
        submit(client, steps=1000)
        waiting = submit(client)
        client.post(f"/api/jobs/{waiting}/cancel")
        job = one(kept, "job")
        assert attributes(job)["overpaint.job.id"] == waiting
        assert attributes(job)["overpaint.job.state"] == "canceled"
        assert parent_of(one(kept, "queued")) == id_of(job)
        assert spans(kept, "running") == []


def test_job_span_continues_on_another_server(tmp_path: Path, kept: InMemorySpanExporter) -> None:
    with server(tmp_path, InMemorySpanExporter()) as client:
        service: Service = cast(Any, client.app).state.service
        service.supervisor.stop()
        submit(client)
    with server(tmp_path, kept):
        job = one(kept, "job")
    assert job.context
    assert f"{job.context.trace_id:032x}" == TRACE


def test_defect_span_has_no_error_message(
    client: TestClient, kept: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise ZeroDivisionError("of a secret prompt")

    monkeypatch.setattr(Jobs, "submit", failing)
    assert client.post("/api/jobs", json={"request": {"prompt": "a cup"}}).status_code == 500
    span = one(kept, "POST /api/jobs")
    assert span.status.status_code == StatusCode.ERROR
    assert "secret" not in span.to_json()


def test_job_without_tracing_stores_no_context(tmp_path: Path) -> None:
    with client_of(tmp_path) as client:
        name = submit(client)
        service: Service = cast(Any, client.app).state.service
        job = service.jobs.get(name)
    assert job is not None
    assert job.origin.trace == {}


def test_exporter_sends_spans_to_the_configured_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "studio")
        with client_of(tmp_path, traces=make_otlp_exporter()) as client:
            client.get("/api/models")
    posted = ExportTraceServiceRequest.FromString(b"".join(body for _, body in receiver.posts))
    resource = {a.key: a.value.string_value for a in posted.resource_spans[0].resource.attributes}
    assert resource["service.name"] == "studio"
    names = [span.name for span in posted.resource_spans[0].scope_spans[0].spans]
    assert names == ["GET /api/models"]


def test_serve_otel_without_extra_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = builtins.__import__

    def missing(name: str, *others: Any, **more: Any) -> Any:
        if name == "overpaint.server.telemetry.traces":
            raise ModuleNotFoundError("No module named 'opentelemetry.sdk'", name="opentelemetry")
        return wanted(name, *others, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--otel", "--port", "0", "--data", str(tmp_path / "data")])
    assert ended.value.code == 2
    assert "--otel: opentelemetry is not installed. Install it: pip install 'overpaint[otel]'" in (
        capsys.readouterr().err
    )
