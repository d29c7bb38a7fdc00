"""What the server writes of itself, and what it never writes."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import IntegrityError, OperationalError

from overpaint.server.jobs.service import Service
from overpaint.server.settings import WebhookSettings, WorkerSettings
from overpaint.server.store.api_keys import hash_key
from overpaint.server.store.jobs import Jobs
from overpaint.server.telemetry.logs import LOGGER, JsonFormatter, TextFormatter, log_and_continue
from tests.server.jobs.test_webhooks import receiving
from tests.server.live import client_of, running, until

KEY = "op_the-key-itself"
BEARER = {"Authorization": f"Bearer {KEY}"}

Written = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def written(caplog: pytest.LogCaptureFixture) -> Written:
    """What was written as objects, of an event or of all."""
    caplog.handler.setFormatter(JsonFormatter())
    caplog.set_level(logging.DEBUG, LOGGER.name)

    def found(event: str | None = None) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in caplog.text.splitlines()]
        return [line for line in lines if event in (None, line["event"])]

    return found


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with client_of(tmp_path, api_keys=(KEY,)) as made:
        made.headers.update(BEARER)
        yield made


def submit(client: TestClient, prompt: str = "a cup", **headers: str) -> str:
    body = {"request": {"prompt": prompt, "num_inference_steps": 4}}
    answer = client.post("/api/jobs?wait=30", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_log_has_one_line_per_request(client: TestClient, written: Written) -> None:
    name = submit(client)
    client.get(f"/api/jobs/{name}", headers={"X-Request-Id": "mine"})
    line = written("answered")[-1]
    assert datetime.fromisoformat(line.pop("time")).utcoffset() == timedelta(0)
    assert line.pop("seconds") >= 0
    assert line == {
        "level": "info",
        "event": "answered",
        "request_id": "mine",
        "key": hash_key(KEY)[:12],
        "method": "GET",
        "route": "/api/jobs/{name}",
        "status": 200,
    }


def test_log_of_job_has_the_id_of_its_request(client: TestClient, written: Written) -> None:
    name = submit(client, **{"X-Request-Id": "mine"})
    until(lambda: written("job succeeded"))
    lines = [line for line in written() if line.get("job_id") == name]
    assert [line["event"] for line in lines] == ["job accepted", "job started", "job succeeded"]
    assert {line["request_id"] for line in lines} == {"mine"}
    assert {line["key"] for line in lines} == {hash_key(KEY)[:12]}
    assert {line["model"] for line in lines} == {"m"}
    assert [line.get("attempt") for line in lines] == [None, 1, 1]
    assert 0 <= lines[1]["seconds"] <= lines[2]["seconds"]


def test_log_of_repeated_submission_has_one_accepted_line(
    client: TestClient, written: Written
) -> None:
    token = {"Idempotency-Key": "token"}
    assert submit(client, **token) == submit(client, **token)
    assert len(written("job accepted")) == 1


def test_log_has_no_line_per_step(client: TestClient, written: Written) -> None:
    submit(client)
    until(lambda: len(written()) == 4)  # accepted, started, answered, succeeded
    body = {"request": {"prompt": "a cup", "num_inference_steps": 500}}
    client.post("/api/jobs?wait=30", json=body)
    until(lambda: len(written("job succeeded")) == len(written("answered")) == 2)
    assert len(written()) == 8


def test_log_of_failed_job_names_the_cause(client: TestClient, written: Written) -> None:
    refused, broken = submit(client, "refuse"), submit(client, "break")
    until(lambda: len(written("job failed")) == 2)
    causes = {line["job_id"]: (line["level"], line["cause"]) for line in written("job failed")}
    defect = "there is a defect in Overpaint: ZeroDivisionError"
    assert causes == {refused: ("warning", "prompt"), broken: ("warning", defect)}


def test_canceled_while_queued_is_recorded(tmp_path: Path, written: Written) -> None:
    with client_of(
        tmp_path, 0.02, worker=WorkerSettings(poll_interval_s=0.05, max_jobs=1)
    ) as client:
        body = {"request": {"prompt": "a cup", "num_inference_steps": 1000}}
        names = [client.post("/api/jobs", json=body).json()["id"] for _ in range(2)]
        until(lambda: written("job started"))
        for name in (names[1], names[1], names[0]):
            client.post(f"/api/jobs/{name}/cancel")
        until(lambda: len(written("job canceled")) == 2)
        assert [line["job_id"] for line in written("job canceled")] == [names[1], names[0]]


def test_log_of_store_failure_is_written_once(
    client: TestClient, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, failures = Jobs.finish, iter([True])

    def failing(*arguments: Any, **keywords: Any) -> bool:
        if next(failures, False):
            raise OperationalError("UPDATE", {"a": "secret"}, Exception("disk I/O error"))
        return finish(*arguments, **keywords)

    monkeypatch.setattr(Jobs, "finish", failing)
    submit(client)
    until(lambda: written("job succeeded"))
    (line,) = written("store or disk out of order")
    assert (line["level"], line["error"]) == ("error", "OperationalError: disk I/O error")
    assert len(written("job succeeded")) == 1


def test_log_of_silent_worker_names_its_replacement(tmp_path: Path, written: Written) -> None:
    with client_of(
        tmp_path, worker=WorkerSettings(poll_interval_s=0.05, step_timeout_s=2.0)
    ) as client:
        body = {"request": {"prompt": "hang", "num_inference_steps": 4}}
        client.post("/api/jobs", json=body)
        until(lambda: written("job requeued"))
        assert written("worker replaced")[0]["cause"] == "it said nothing any more"


def test_log_of_dead_worker_names_its_replacement(client: TestClient, written: Written) -> None:
    name = submit(client, "die")
    until(lambda: written("job failed"))
    assert [line["job_id"] for line in written("job requeued")] == [name] * 4
    assert [line["attempt"] for line in written("job started")] == [1, 2, 3, 4, 5]
    assert written("job failed")[0]["cause"] == "given up"
    replaced = written("worker replaced")
    assert [(line["cause"], line["exit_code"]) for line in replaced] == [
        ("it died", -signal.SIGKILL)
    ] * 5


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("a" * 128, True),
        ("f81d4fae-7dec-11d0", True),
        ("a" * 129, False),
        ("", False),
        ("two words", False),
        ("ümlaut", False),
        ('a\tb"', False),
    ],
)
def test_request_id_of_client_is_kept_if_valid(client: TestClient, given: str, taken: bool) -> None:
    answer = client.get("/api/models", headers=[(b"x-request-id", given.encode())])
    named = answer.headers["X-Request-ID"]
    assert (named == given) is taken
    assert re.fullmatch(r"[!-~]{1,128}", named)


def test_request_id_is_in_every_response(client: TestClient, written: Written) -> None:
    answers = [
        client.get("/api/models"),
        client.get("/nowhere"),
        client.get("/api/models", headers={"Authorization": "Bearer other"}),
        client.get("/api/models", headers={"Origin": "https://evil.example"}),
        client.post("/v1/predictions", json={}),
        client.get("/healthz"),
    ]
    named = [answer.headers["X-Request-ID"] for answer in answers]
    assert len(set(named)) == len(named)
    lines = written("answered")
    assert [line["request_id"] for line in lines] == named
    assert [line["status"] for line in lines] == [200, 404, 401, 403, 422, 200]
    reasons = [line.get("reason") for line in lines]
    assert reasons == [None, None, "unauthorized", "forbidden_origin", "request", None]
    assert lines[-1]["level"] == "debug"  # a probe's


def test_readiness_checks_while_a_model_loads_are_no_warnings(
    client: TestClient, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starting(_: Service) -> list[str]:
        return ["the worker is starting"]

    monkeypatch.setattr(Service, "unready", starting)
    assert client.get("/readyz").status_code == 503
    (line,) = written("answered")
    assert line["level"] == "debug"


def test_request_id_of_openai_response_is_the_job(client: TestClient, written: Written) -> None:
    answer = client.post("/v1/images/generations", json={"prompt": "a cup", "steps": 2})
    made = written("job accepted")[0]
    assert answer.headers["X-Request-ID"] == made["job_id"] != made["request_id"]


def break_down(client: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception) -> Any:
    def failing(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Jobs, "submit", failing)
    return client.post("/api/jobs", json={"request": {"prompt": "a cup"}})


def test_defect_is_answered_500_and_logged_with_its_place(
    client: TestClient, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = break_down(client, monkeypatch, ZeroDivisionError("of a secret prompt"))
    assert answer.status_code == 500
    (line,) = written("answered")
    assert answer.headers["X-Request-ID"] == line["request_id"]
    assert line["request_id"] in answer.json()["detail"]
    assert (line["level"], line["status"], line["reason"]) == ("error", 500, "defect")
    assert line["error"] == "ZeroDivisionError"
    assert re.search(r"test_logs\.py:\d+ failing$", line["trace"][-1])
    assert "secret" not in json.dumps(written())


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OperationalError("INSERT", {"a": "secret"}, Exception("disk I/O error")), "disk I/O"),
        (IntegrityError("INSERT", {"a": "secret"}, Exception("secret")), "IntegrityError"),
        (OSError(28, "No space left", "/secret"), "OSError: No space left"),
    ],
)
def test_log_of_store_failure_has_no_sql_parameters(
    client: TestClient,
    written: Written,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: str,
) -> None:
    assert break_down(client, monkeypatch, error).status_code in (503, 507)
    (line,) = written("answered")
    assert line["level"] == "warning"
    assert told in line["error"]
    assert "secret" not in json.dumps(line)


def test_log_of_webhooks_has_no_urls(tmp_path: Path, written: Written) -> None:
    often = WebhookSettings(poll_interval_s=0.02)
    with receiving() as receiver, client_of(tmp_path, webhooks=often) as client:
        receiver.answers += [500]
        body = {"request": {"prompt": "a cup"}, "webhook": f"{receiver.url}?token=secret"}
        name = client.post("/api/jobs", json=body).json()["id"]
        until(lambda: len(written("webhook tried")) == 2)
    tried = {line["kind"]: line for line in written("webhook tried")}
    assert {line["job_id"] for line in tried.values()} == {name}
    assert sorted(line["status"] for line in tried.values()) == [200, 500]
    assert sorted(line["level"] for line in tried.values()) == ["info", "warning"]
    assert "secret" not in json.dumps(written())


def test_log_contains_nothing_of_requests(
    client: TestClient, written: Written, caplog: pytest.LogCaptureFixture
) -> None:
    picture = "c2VjcmV0LXBpY3R1cmU="
    prompts = [f"secret {what}" for what in ("cup", "refuse", "break", "die")]
    for prompt in prompts:
        submit(client, prompt)
    client.post("/api/jobs", json={"request": {"prompt": "secret", "image": {"data": picture}}})
    client.post("/api/jobs", json={"request": {"prompt": "secret", "num_images": "secret"}})
    client.post("/api/jobs", json={"request": {"secret": 1}})
    client.get("/api/files/secret")
    made = client.post(
        "/v1/images/generations", json={"prompt": "secret", "response_format": "url"}
    )
    link = made.json()["data"][0]["url"]
    assert client.get(link).status_code == 200
    until(lambda: len(written("job failed")) == 3)
    signature = link.rpartition("signature=")[2]
    for text in (caplog.text, *(str(record.__dict__) for record in caplog.records)):
        for secret in ("secret", picture, KEY, hash_key(KEY), signature):
            assert secret not in text


def record(message: str = "answered", error: Exception | None = None, **fields: Any) -> Any:
    info = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord(LOGGER.name, logging.INFO, "", 0, message, (), info)
    made.created = 0.0123
    made.fields = fields
    return made


def test_text_format_writes_readable_lines() -> None:
    line = TextFormatter().format(record(status=201, cause="it died", route=None, quoted='a"b'))
    start = "1970-01-01T00:00:00.012+00:00 info    answered"
    assert line == f'{start} status=201 cause="it died" quoted="a\\"b"'


def test_text_format_lists_stack_frames_after_the_line() -> None:
    with pytest.raises(ValueError, match="secret") as caught:
        int("secret")
    first, *places = TextFormatter().format(record(error=caught.value)).splitlines()
    assert first.endswith("error=ValueError")
    assert len(places) == 1
    assert re.search(r"test_logs\.py:\d+ test_text_format_lists", places[0])


def test_log_of_libraries_has_only_the_first_line() -> None:
    made = record("Task exception was never retrieved\nfuture: ValueError('secret')")
    made.name = "asyncio"
    assert json.loads(JsonFormatter().format(made)) == {
        "time": "1970-01-01T00:00:00.012+00:00",
        "level": "info",
        "event": "Task exception was never retrieved",
        "logger": "asyncio",
    }


def test_concurrent_requests_keep_their_ids(tmp_path: Path, written: Written) -> None:
    with running(tmp_path) as url, httpx.Client(base_url=url) as client:
        body = {"request": {"prompt": "a cup", "num_inference_steps": 2}}
        for name in ("first", "second"):
            client.post("/api/jobs", json=body, headers={"X-Request-ID": name})
        until(lambda: len(written("job succeeded")) == 2)
    assert [line["request_id"] for line in written("job accepted")] == ["first", "second"]


def test_client_disconnect_is_not_logged_as_defect(tmp_path: Path, written: Written) -> None:
    with running(tmp_path) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as half:
            head = (
                f"POST /api/files HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 9\r\n\r\n"
            )
            half.sendall(head.encode() + b"half")
            half.shutdown(socket.SHUT_WR)
            assert half.recv(1) == b""
        until(lambda: written("answered"))
    (line,) = written()
    assert (line["level"], line["route"]) == ("info", "/api/files")
    assert "status" not in line
    assert "error" not in line


def test_request_id_of_job_survives_a_restart(tmp_path: Path, written: Written) -> None:
    """The end of a job has the id of the request that made it, also on another server."""
    body = {"request": {"prompt": "a cup", "num_inference_steps": 2}}
    with client_of(tmp_path) as client:
        service: Service = cast(Any, client.app).state.service
        service.supervisor.stop()
        client.post("/api/jobs", json=body, headers={"X-Request-ID": "mine"})
    with client_of(tmp_path):
        until(lambda: written("job succeeded"))
    assert written("job succeeded")[0]["request_id"] == "mine"


def test_serve_json_log_writes_objects(tmp_path: Path) -> None:
    """The command line's: one object a line, once each, and uvicorn's access log is silent."""
    command = [sys.executable, "-c", "from overpaint.cli.main import main; main()"]
    options = ["--data", str(tmp_path), "--port", "0", "--log", "json"]
    code = f"""
import httpx, os, signal, threading, time
from overpaint.server import app
class Server(app.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        def ask():
            httpx.get(f"http://127.0.0.1:{{port}}/api/models", headers={{"X-Request-ID": "mine"}})
            os.kill(os.getpid(), signal.SIGTERM)
        threading.Thread(target=ask).start()
app.Server = Server
from overpaint.cli.main import main
main(["serve", *{options!r}])
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command[:2], code], capture_output=True, text=True, timeout=300, env=environment
    )
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [line["request_id"] for line in lines if line["event"] == "answered"] == ["mine"]
    assert "Uvicorn" not in done.stderr
    assert "HTTP/1.1" not in done.stdout + done.stderr


def test_run_periodically_continues_after_a_defect(caplog: pytest.LogCaptureFixture) -> None:
    """The supervisor writes of a disk that is out of order."""
    for error in (OSError(), ZeroDivisionError()):
        with log_and_continue():
            raise error
    (record,) = caplog.records
    assert record.getMessage() == "defect"
    assert record.exc_info
    assert record.exc_info[0] is ZeroDivisionError
    caplog.clear()


def test_text_log_escapes_control_characters_of_values_and_events() -> None:
    hostile = logging.LogRecord("other", logging.INFO, "", 0, "a\x1b]0;owned\x07 b", (), None)
    hostile.__dict__["fields"] = {"name": "\x1b[31m", "plain": "a-b"}
    line = TextFormatter().format(hostile)
    assert line.isprintable()
    assert "owned" in line
    assert "plain=a-b" in line
