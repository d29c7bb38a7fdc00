"""HEAD, headers of responses, event streams and forms of requests, over all routes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import re
import socket
from collections.abc import AsyncGenerator, Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from overpaint.server.api.event_stream import COMMENT, add_comments
from overpaint.server.http.response_headers import SECURITY_HEADERS
from overpaint.server.settings import HttpSettings
from tests.server import live
from tests.server.live import PATIENCE, running
from tests.server.routes import list_routes

PAGE = "https://studio.example"
HANGING = {"prompt": "hang", "num_inference_steps": 1}
"""A request whose job never ends."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("data")
    with live.client_of(
        folder, host="127.0.0.1", base_url="http://127.0.0.1:8000", allowed_origins=(PAGE,)
    ) as made:
        yield made


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that sends comments often."""
    http = HttpSettings(event_comment_interval_s=0.05)
    with running(tmp_path_factory.mktemp("live"), http=http) as address:
        yield address


def app_of(client: TestClient) -> FastAPI:
    app: Any = client.app
    return app


def send_raw(url: str, *parts: str) -> str:
    """Send bytes as they are; return all that comes until the server closes the connection."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.sendall("\r\n".join((*parts, "", "")).encode())
        return b"".join(iter(lambda: connection.recv(2**16), b"")).decode()


# HEAD


def test_head_is_answered_like_get_on_every_route(client: TestClient) -> None:
    paths = {path for method, path in list_routes(app_of(client)) if method == "GET"}
    assert len(paths) > 50
    for path in sorted(paths):
        got, head = client.get(path), client.head(path)
        assert head.status_code == got.status_code != 405, path
        assert head.content == b"", path
        names = set(got.headers) - {"x-request-id"}
        assert names <= set(head.headers), path
        if path != "/metrics":  # whose counters rise with each request
            assert head.headers.get("content-length") == got.headers.get("content-length"), path


def test_head_is_allowed_beside_get_where_another_method_is_refused(client: TestClient) -> None:
    answer = client.delete("/healthz")
    assert answer.status_code == 405
    assert {"GET", "HEAD"} <= set(answer.headers["allow"].split(", "))


def test_head_of_a_file_and_of_an_event_stream_ends_with_the_headers(url: str) -> None:
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        brief = {"request": {"prompt": "a cup", "num_inference_steps": 1}}
        done = client.post("/api/jobs?wait=60", json=brief).json()
        path = done["results"][0]["url"]
        head, got = client.head(path), client.get(path)
        assert head.headers["content-length"] == str(len(got.content))
        assert head.headers["content-type"] == "image/png"
        name = client.post("/api/jobs", json={"request": HANGING}).json()["id"]
        for _ in range(3):  # over one connection, which is not out of step
            head = client.head(f"/api/jobs/{name}/events")
            assert head.headers["content-type"].startswith("text/event-stream")
        assert client.post(f"/api/jobs/{name}/cancel").status_code == 200


# Headers


def has_security_headers(answer: Any) -> bool:
    return all(answer.headers.get_list(name) == [value] for name, value in SECURITY_HEADERS.items())


def test_every_route_sends_security_headers(client: TestClient) -> None:
    for method, path in list_routes(app_of(client)):
        answer = client.request(method, path)
        if path == "/docs":
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-frame-options"] == "DENY"
        else:
            assert has_security_headers(answer), (method, path)


def test_refusals_send_security_headers(client: TestClient) -> None:
    preflight = {"origin": PAGE, "access-control-request-method": "POST"}
    answers = {
        404: client.get("/nowhere"),
        405: client.delete("/healthz"),
        400: client.get("/healthz", headers={"host": "evil.example"}),
        403: client.get("/healthz", headers={"origin": "https://evil.example"}),
        422: client.post("/api/jobs", json={"request": 1}),
        200: client.options("/api/jobs", headers=preflight),
        415: client.post("/api/jobs", content=b"0", headers={"content-encoding": "gzip"}),
    }
    for status, answer in answers.items():
        assert (answer.status_code, has_security_headers(answer)) == (status, True)


def test_defects_send_security_headers(tmp_path: Path) -> None:
    with live.client_of(tmp_path) as client:
        app_of(client).state.keys = None  # a defect of the next request
        answer = client.get("/api/models")
    assert (answer.status_code, has_security_headers(answer)) == (500, True)


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x",
        "GET / HTTP/1.1\r\nBad Header: 1",
    ],
)
def test_requests_that_are_not_http_are_refused_with_security_headers(url: str, line: str) -> None:
    told = send_raw(url, line)
    assert told.startswith("HTTP/1.1 400 Bad Request\r\n")
    assert "\r\nConnection: close\r\n" in told
    for name, value in SECURITY_HEADERS.items():
        assert f"\r\n{name}: {value}\r\n" in told


def test_websocket_handshake_is_answered_with_security_headers(url: str) -> None:
    told = send_raw(
        url,
        "GET /api/models HTTP/1.1",
        "Host: localhost",
        "Connection: upgrade, close",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    )
    assert told.startswith("HTTP/1.1 200 OK\r\n")
    assert "x-frame-options: DENY\r\n" in told


# Pages of other origins


@pytest.mark.parametrize(
    ("allowed", "sent", "status"),
    [
        ("https://x.example:443", "https://x.example", 200),
        ("https://x.example", "https://x.example:443", 200),
        ("http://x.example:80", "http://x.example", 200),
        ("HTTPS://X.example", "https://x.example", 200),
        ("https://[::1]:443", "https://[::1]", 200),
        ("https://x.example:80", "https://x.example", 403),
        ("http://x.example:443", "http://x.example", 403),
        ("https://x.example:8443", "https://x.example:443", 403),
        ("https://x.example", "http://x.example", 403),
    ],
)
def test_origin_with_the_default_port_equals_the_origin_without(
    tmp_path: Path, allowed: str, sent: str, status: int
) -> None:
    with live.client_of(tmp_path, allowed_origins=(allowed,)) as client:
        answer = client.get("/healthz", headers={"origin": sent})
        assert answer.status_code == status
        shown = answer.headers.get("access-control-allow-origin")
        assert shown == (sent if status == 200 else None)


def test_own_page_with_the_default_port_is_accepted(client: TestClient) -> None:
    for host, origin in (
        ("localhost:443", "https://localhost"),
        ("localhost", "http://localhost:80"),
    ):
        headers = {"host": host, "origin": origin}
        assert client.get("/healthz", headers=headers).status_code == 200
    headers = {"host": "localhost:80", "origin": "https://localhost"}
    assert client.get("/healthz", headers=headers).status_code == 403


def test_private_network_preflight_of_an_allowed_origin_is_answered(client: TestClient) -> None:
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-private-network": "true",
    }
    for _, path in list_routes(app_of(client)):
        answer = client.options(path, headers=asked | {"origin": PAGE})
        assert answer.status_code == 200, path
        assert answer.headers["access-control-allow-private-network"] == "true", path
    refused = client.options("/api/jobs", headers=asked | {"origin": "https://evil.example"})
    assert refused.status_code == 403
    assert "access-control-allow-private-network" not in refused.headers


# The documentation of the routes


def test_docs_page_loads_nothing_from_other_hosts(client: TestClient) -> None:
    page = client.get("/docs")
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"./docs/swagger-ui-bundle.js", "./docs/swagger-ui.css"} <= set(links)
    for link in links:
        assert link.startswith(("./docs/", "data:"))
        if link.startswith("./docs/"):
            for encoding in ("gzip", "identity"):
                answer = client.get(link[1:], headers={"accept-encoding": encoding})
                assert answer.status_code == 200
                assert len(answer.content) > 100_000
                assert answer.headers["x-content-type-options"] == "nosniff"
    assert "http" not in page.text
    assert client.get("/docs/other.js").status_code == 404
    assert client.get("/redoc").status_code == 404


def test_docs_page_allows_its_own_script_alone(client: TestClient) -> None:
    page = client.get("/docs")
    policy = page.headers["content-security-policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}';" in policy
    assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0]


# Event streams


@contextlib.contextmanager
def opened_stream(client: httpx.Client, dialect: str) -> Generator[httpx.Response]:
    """Follow a job that never ends."""
    if dialect in ("native", "replicate", "fal"):
        body = {"native": {"request": HANGING}, "replicate": {"input": HANGING}}
        path = {"native": "/api/jobs", "replicate": "/v1/models/o/sdxl/predictions"}
        job = client.post(
            path.get(dialect, "/fal/queue/o/sdxl"), json=body.get(dialect, HANGING)
        ).json()
        name = job.get("id") or job["request_id"]
        stream = {
            "native": f"/api/jobs/{name}/events",
            "replicate": f"/v1/predictions/{name}/stream",
            "fal": f"/fal/queue/o/sdxl/requests/{name}/status/stream",
        }
        asked: dict[str, Any] = {"method": "GET", "url": stream[dialect]}
    elif dialect == "fal run":
        asked = {"method": "POST", "url": "/fal/run/o/sdxl/stream", "json": HANGING}
    else:
        body = {"prompt": "hang", "steps": 1, "stream": True}
        asked = {"method": "POST", "url": "/v1/images/generations", "json": body}
    with client.stream(**asked) as answer:
        yield answer


@pytest.mark.parametrize("dialect", ["native", "replicate", "fal", "fal run", "openai"])
def test_event_stream_sends_comments_and_is_not_buffered(url: str, dialect: str) -> None:
    with (
        httpx.Client(base_url=url, timeout=PATIENCE) as client,
        opened_stream(client, dialect) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["x-accel-buffering"] == "no"
        comments = (line for line in answer.iter_lines() if line == COMMENT.decode().strip())
        assert next(comments) == next(comments)


def test_event_stream_sends_no_comment_within_an_event() -> None:
    async def collect() -> list[bytes]:
        go_on = asyncio.Event()

        async def events() -> AsyncGenerator[bytes]:
            yield b"event: a\ndata: "
            await go_on.wait()
            yield b"1\n\n"
            await asyncio.Event().wait()

        parts: list[bytes] = []
        stream = add_comments(events(), 0.01)
        async with contextlib.aclosing(stream):
            parts.append(await anext(stream))
            asyncio.get_running_loop().call_later(0.05, go_on.set)
            async for part in stream:
                parts.append(part)
                if len(parts) == 4:
                    return parts
        return []

    assert asyncio.run(collect()) == [b"event: a\ndata: ", b"1\n\n", COMMENT, COMMENT]


def test_event_stream_that_is_not_read_to_its_end_closes_its_source() -> None:
    async def run(reads: int) -> list[str]:
        told: list[str] = []

        async def events() -> AsyncGenerator[bytes]:
            try:
                yield b"data: 1\n\n"
                await asyncio.Event().wait()
            finally:
                told.append("closed")

        stream = add_comments(events(), 0.01)
        for _ in range(reads):
            await anext(stream)
        await stream.aclose()
        await asyncio.sleep(0)
        return told

    assert asyncio.run(run(1)) == asyncio.run(run(2)) == ["closed"]


# Forms of requests


def test_absolute_form_of_a_target_is_answered_like_its_path(url: str) -> None:
    host = url.removeprefix("http://")
    for target in (f"{url}/healthz", f"HTTP://{host}/healthz?a=b", f"http://me@{host}/healthz"):
        told = send_raw(url, f"GET {target} HTTP/1.1", "Host: other", "Connection: close")
        assert told.startswith("HTTP/1.1 200 OK\r\n"), target
    index = send_raw(url, f"GET {url} HTTP/1.1", f"Host: {host}", "Connection: close")
    assert '"docs_url"' in index
    models = send_raw(url, f"GET {url}/v1/models HTTP/1.1", "Host: other", "Connection: close")
    assert f"{url}/v1/models/" in models  # links name the host of the target, not of the header
    escaped = f"GET {url}/v1/models/a%20b HTTP/1.1"
    assert "'a b'" in send_raw(url, escaped, "Host: other", "Connection: close")


def test_absolute_form_with_another_host_is_refused(client: TestClient) -> None:
    answers = list[dict[str, Any]]()

    async def send(message: Any) -> None:
        answers.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "method": "GET",
        "path": "http://evil.example/healthz",
        "raw_path": b"http://evil.example/healthz",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    assert client.portal
    client.portal.call(app_of(client), scope, receive, send)
    assert answers[0]["status"] == 400


def test_content_length_beside_transfer_encoding_closes_the_connection(url: str) -> None:
    smuggled = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for fields in (
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 1000000000"),
    ):
        head = ("POST /api/jobs HTTP/1.1", "Host: localhost", "Content-Type: application/json")
        told = send_raw(url, *head, *fields, "", "2", "{}", "0", "", smuggled)
        assert told.count("HTTP/1.1") == 1
        assert told.startswith("HTTP/1.1 422 "), told  # the chunks are the body
        assert "\r\nconnection: close\r\n" in told
