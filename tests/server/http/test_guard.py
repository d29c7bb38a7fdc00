"""Names, pages and sizes that the server refuses before anything else sees them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import http.client
import io
import json
import math
import resource
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from overpaint.imaging import codec
from overpaint.server import app as app_module
from overpaint.server.api import route
from overpaint.server.app import Server, create_app, run, uvicorn_config
from overpaint.server.http import connection, json_body
from overpaint.server.http.body_limit import BodyPace
from overpaint.server.settings import DEFAULT_LIMITS, HttpSettings, Limits, ServerSettings
from overpaint.testing import ScriptedEngine
from tests.server import live
from tests.server.live import PATIENCE, running, settings_for, until

HEAD_BYTES = DEFAULT_LIMITS.request_head_bytes
PAGE = "https://studio.example"


def client_of(folder: Path, **changes: Any) -> TestClient:
    given: dict[str, Any] = {"host": "127.0.0.1"} | changes
    return live.client_of(folder, base_url="http://127.0.0.1:8000", **given)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """To a server as it is on loopback."""
    with client_of(tmp_path, allowed_hosts=("Paint.example",), allowed_origins=(PAGE,)) as made:
        yield made


def asked(client: TestClient, **headers: str) -> httpx2.Response:
    return client.post("/api/jobs", json={"request": {"prompt": "a cup"}}, headers=headers)


def refused(answer: httpx2.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    return str(answer.json()["detail"])


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "127.0.0.1",
        "127.8.9.1:1",
        "[::1]:8000",
        "LOCALHOST.",
        "paint.example",
    ],
)
def test_host_own_name_is_accepted(client: TestClient, host: str) -> None:
    assert asked(client, host=host).status_code == 201


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "[::2]",
        "[::1",
        "",
        "127.0.0.1@evil.example:1x",
    ],
)
def test_host_unknown_name_is_refused(client: TestClient, host: str) -> None:
    """As of a page whose name was made to lead here."""
    assert "--allowed-host" in refused(asked(client, host=host), 400)
    assert client.get("/api/jobs").json()["jobs"] == []


def test_host_any_name_is_accepted_without_allowed_hosts(tmp_path: Path) -> None:
    with client_of(tmp_path, host="0.0.0.0") as client:
        assert asked(client, host="anything.example").status_code == 201


@pytest.mark.parametrize(
    ("address", "names", "status"),
    [
        ("127.0.0.1", (), 400),
        ("::1", (), 400),
        ("localhost", ("a.example",), 201),
        ("0.0.0.0", (), 201),
        ("0.0.0.0", ("a.example",), 201),
        ("127.0.0.1", ("A.example.:8000",), 201),
        ("0.0.0.0", ("b.example",), 400),
    ],
)
def test_run_address_decides_which_hosts_are_accepted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    names: tuple[str, ...],
    status: int,
) -> None:
    started: list[Any] = []

    def began(server: Server, sockets: list[socket.socket]) -> None:
        started.append(server.config.app)
        for listening in sockets:
            listening.close()

    monkeypatch.setattr(Server, "run", began)
    run(settings_for(tmp_path, host=address, port=0, allowed_hosts=names), ScriptedEngine)
    with TestClient(started[0], base_url="http://127.0.0.1:8000") as client:
        assert asked(client, host="a.example").status_code == status
        assert asked(client).status_code == 201


@pytest.mark.parametrize("origin", [PAGE, "http://127.0.0.1:8000", "https://127.0.0.1:8000"])
def test_origin_allowed_page_is_accepted(client: TestClient, origin: str) -> None:
    assert asked(client, origin=origin).status_code == 201


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9000", "file://", f"{PAGE}.evil"]
)
def test_origin_other_page_is_refused(client: TestClient, origin: str) -> None:
    answer = asked(client, origin=origin)
    assert "--allowed-origin" in refused(answer, 403)
    assert "access-control-allow-origin" not in answer.headers
    assert client.get("/api/jobs").json()["jobs"] == []


def test_cors_headers_name_the_allowed_origins(client: TestClient) -> None:
    assert asked(client, origin=PAGE).headers["access-control-allow-origin"] == PAGE
    before = {"origin": PAGE, "access-control-request-method": "POST"}
    wanted = {"access-control-request-headers": "authorization, idempotency-key"}
    answer = client.options("/api/jobs", headers=before | wanted)
    assert answer.status_code == 200
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert refused(client.options("/api/jobs", headers=before | {"origin": "http://a.b"}), 403)


def chunks(count: int) -> Iterator[bytes]:
    yield b'{"request": {"prompt": "'
    for _ in range(count):
        yield b"a" * 1000
    yield b'"}}'


@pytest.fixture
def small(tmp_path: Path) -> Iterator[TestClient]:
    """To a server that takes bodies of 10,000 bytes."""
    with client_of(tmp_path, limits=Limits(body_bytes=10_000)) as made:
        yield made


@pytest.mark.parametrize("path", ["/api/jobs", "/v1/predictions", "/sdapi/v1/txt2img"])
def test_body_too_large_is_refused_with_and_without_content_length(
    small: TestClient, path: str
) -> None:
    for content in (b"".join(chunks(10)), chunks(10)):
        answer = small.post(path, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert "10,000" in answer.text
    within = small.post(
        "/api/jobs", content=chunks(9), headers={"content-type": "application/json"}
    )
    assert within.status_code == 201


def test_form_too_large_is_refused(small: TestClient) -> None:
    answer = small.post("/v1/images/edits", files={"image": b"0" * 20_000}, data={"prompt": "a"})
    assert answer.status_code == 413
    assert "10,000" in answer.json()["error"]["message"]


def test_form_with_too_many_parts_is_refused(client: TestClient) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    for path in ("/v1/images/edits", "/v1/files"):
        fields = {f"f{i}": "0" for i in range(100_000)}
        answer = client.post(path, files={"image": picture.getvalue()}, data=fields)
        assert answer.status_code == 413
        assert "Too many fields" in answer.text


BODIES = [
    ("POST", "/api/jobs"),
    ("POST", "/v1/predictions"),
    ("POST", "/v1/models/o/m/predictions"),
    ("POST", "/v1/images/generations"),
    ("POST", "/predictions"),
    ("PUT", "/predictions/mine"),
    ("POST", "/fal/queue/o/m"),
    ("POST", "/fal/run/o/m"),
    ("POST", "/sdapi/v1/txt2img"),
    ("POST", "/sdapi/v1/img2img"),
    ("POST", "/sdapi/v1/options"),
    ("POST", "/sdapi/v1/png-info"),
]
"""Routes that take JSON, of all dialects."""


@pytest.mark.parametrize(("method", "path"), BODIES)
def test_body_without_key_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    read = list[bytes]()
    monkeypatch.setattr(json_body, "parse_json", read.append)
    headers = {"content-type": "application/json"}
    with client_of(tmp_path, api_keys=("secret",)) as client:
        answer = client.request(method, path, content=b"{" * 2**20, headers=headers)
    assert answer.status_code == 401
    assert not read


@pytest.mark.parametrize(("method", "path"), BODIES)
def test_json_with_too_many_separators_is_refused(
    client: TestClient, method: str, path: str
) -> None:
    headers = {"content-type": "application/json"}
    content = b'{"prompt": [' + b"{}," * DEFAULT_LIMITS.json_separators + b"{}]}"
    answer = client.request(method, path, content=content, headers=headers)
    assert answer.status_code == 400
    assert "100,000 brackets and commas" in answer.text


def test_json_large_body_is_accepted(client: TestClient) -> None:
    picture = io.BytesIO()
    Image.effect_noise((600, 600), 100).save(picture, "PNG")
    data = base64.b64encode(picture.getvalue()).decode()
    assert len(data) > json_body.THREADED_PARSE_BYTES
    request = {"prompt": "a cup, on grass", "image": {"data": data}}
    assert client.post("/api/jobs", json={"request": request}).status_code == 201


def test_body_with_content_encoding_is_refused(client: TestClient) -> None:
    packed = gzip.compress(json.dumps({"request": {"prompt": "a" * 1000}}).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    answer = client.post("/api/jobs", content=packed, headers=headers)
    assert "Content-Encoding is not supported" in refused(answer, 415)


@pytest.mark.parametrize(("size", "status"), [(HEAD_BYTES - 2**10, 200), (2 * HEAD_BYTES, 400)])
def test_request_headers_too_large_are_refused(tmp_path: Path, size: int, status: int) -> None:
    with running(tmp_path) as url, socket.create_connection(place(url)) as client:
        client.settimeout(PATIENCE)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Long: ")
        with contextlib.suppress(ConnectionError):  # the server may hang up before all is sent
            for _ in range(size // 2**10):
                client.sendall(b"x" * 2**10)
            client.sendall(b"\r\n\r\n")
        assert client.recv(1000).startswith(f"HTTP/1.1 {status} ".encode())


# Clients that stand still


@pytest.mark.parametrize(
    "path", ["/api/jobs", "/api/files", "/v1/predictions", "/v1/images/edits", "/sdapi/v1/txt2img"]
)
def test_body_that_stalls_is_answered_408(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    http = HttpSettings(request_head_timeout_s=0.1, request_body_timeout_s=0.1)
    kind = "multipart/form-data; boundary=b" if "edits" in path else "application/json"
    start = "--b" if "edits" in path else "{"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    with running(tmp_path, http=http) as url, socket.create_connection(place(url)) as client:
        client.settimeout(PATIENCE)
        client.sendall(f"{head}Content-Length: 1000\r\n\r\n{start}".encode())
        told = b"".join(iter(lambda: client.recv(1000), b""))  # until the server hangs up
        assert told.startswith(b"HTTP/1.1 408 ")
        assert b"4,096 bytes per second" in told


def is_fast_enough(sizes: Sequence[int], total_s: float = 1000.0) -> bool:
    """Return whether a body is read of which a part comes every second, from 0.5 s on."""
    settings = HttpSettings(
        request_body_timeout_s=10.0,
        min_body_rate_bytes_per_s=100,
        request_body_total_timeout_s=total_s,
    )
    pace, wait_s = BodyPace(settings), 0.5
    for size in sizes:
        while pace.timeout_s < wait_s:
            timeout_s = pace.timeout_s
            wait_s -= timeout_s
            if not pace.add(timeout_s):
                return False
        if not pace.add(wait_s, size):
            return False
        wait_s = 1.0
    return True


@pytest.mark.parametrize(
    "sizes", [[100] * 60, [2000, *[0] * 8, 2000, *[0] * 8, 1], [1], [1000, *[0] * 9] * 9]
)
def test_body_as_fast_as_the_minimum_rate_is_read(sizes: list[int]) -> None:
    assert is_fast_enough(sizes)


@pytest.mark.parametrize(
    "sizes",
    [[90] * 60, [10**6, *[1] * 60], [*[0] * 9, 999, *[0] * 9, 1], [*[1000] * 5, *[0] * 30]],
)
def test_body_slower_than_the_minimum_rate_in_a_window_is_refused(sizes: list[int]) -> None:
    assert not is_fast_enough(sizes)


def test_body_that_takes_longer_than_the_total_time_is_refused() -> None:
    assert is_fast_enough([10**6] * 29, total_s=30.0)
    assert not is_fast_enough([10**6] * 60, total_s=30.0)


def test_silent_connections_keep_no_new_client_out(tmp_path: Path) -> None:
    http = HttpSettings(max_connections=8)
    with running(tmp_path, http=http) as url, contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(place(url), PATIENCE)) for _ in range(30)
        ]
        for number in range(12):
            partial_head = socket.create_connection(place(url), PATIENCE)
            stack.enter_context(partial_head).sendall(b"GET /healthz HTTP/1.1\r\n")
            answer = httpx.get(f"{url}/healthz", timeout=PATIENCE)
            assert answer.status_code == 200, number
        assert silent[0].recv(1) == b""  # the one that waited longest is closed


def test_connections_leave_files_for_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(256, 256)]

    def limit(which: int, values: tuple[int, int]) -> None:
        limits[0] = values

    def read(which: int) -> tuple[int, int]:
        return limits[0]

    monkeypatch.setattr(resource, "getrlimit", read)
    monkeypatch.setattr(resource, "setrlimit", limit)
    assert connection.count_possible_connections() == 128
    limits[0] = (1024, 4096)
    assert connection.count_possible_connections() == 4096 - 128
    assert limits[0] == (4096, 4096)


def test_connections_are_counted_once_for_all_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([100])
    monkeypatch.setattr(app_module, "count_possible_connections", lambda: next(counts))
    settings = settings_for(tmp_path)
    app = create_app(settings)
    protocol: Any = uvicorn_config(app, settings).http
    assert protocol.max_connections == 100
    assert app.state.connections_per_key == 50


def test_connections_follow_a_limit_of_files_that_cannot_be_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(which: int, values: tuple[int, int]) -> None:
        raise ValueError("current limit exceeds maximum limit")

    def read(which: int) -> tuple[int, int]:
        return limits[0]

    limits = [(256, resource.RLIM_INFINITY)]
    monkeypatch.setattr(resource, "getrlimit", read)
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert connection.count_possible_connections() == 128
    limits[0] = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    assert connection.count_possible_connections() == connection.MAX_CONNECTIONS - 128


def test_response_to_client_that_does_not_read_is_buffered_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, known = list[asyncio.Transport](), connection.TimeoutH11Protocol.connection_made

    def connection_made(self: connection.TimeoutH11Protocol, transport: asyncio.Transport) -> None:
        made.append(transport)
        known(self, transport)

    monkeypatch.setattr(connection.TimeoutH11Protocol, "connection_made", connection_made)
    settings = HttpSettings(request_head_timeout_s=1.0, response_timeout_s=0.1)
    with running(tmp_path, http=settings) as url, httpx.Client(base_url=url) as client:
        job = client.post("/api/jobs", json={"request": {"prompt": "a cup"}}).json()["id"]
        until(lambda: client.get(f"/api/jobs/{job}").json()["results"])
        path = client.get(f"/api/jobs/{job}").json()["results"][0]["url"]
        (picture,) = (tmp_path / "results" / job).iterdir()
        with picture.open("ab") as file:
            file.truncate(2**24)
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.settimeout(PATIENCE)
            deaf.connect(place(url))
            deaf.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            until(lambda: len(made) == 2 and made[1].is_closing())
            sent = sum(map(len, iter(lambda: deaf.recv(2**16), b"")))
        assert 1000 < sent < 2**19  # of which asyncio takes a part, and the kernel by default 2**21


def test_connection_idle_between_requests_stays_open(tmp_path: Path) -> None:
    settings = HttpSettings(request_head_timeout_s=0.05, response_timeout_s=0.05)

    def ask() -> int:
        kept.request("GET", "/v1/models")
        answer = kept.getresponse()
        assert answer.read()
        return answer.status

    with running(tmp_path, http=settings) as url:
        kept = http.client.HTTPConnection(*place(url), timeout=PATIENCE)
        assert ask() == 200
        for _ in range(4):  # the server's patience, once each
            with socket.create_connection(place(url)) as silent:
                silent.settimeout(PATIENCE)
                assert silent.recv(1) == b""
        assert ask() == 200
        kept.close()


def test_connection_keep_alive_exceeds_that_of_clients() -> None:
    """A request that comes while the server hangs up is lost."""
    settings = ServerSettings()
    kept = uvicorn_config(create_app(settings), settings).timeout_keep_alive
    assert kept > 60  # which is what load balancers have
    assert kept > (httpx.Limits().keepalive_expiry or math.inf)


def place(url: str) -> tuple[str, int]:
    host, port = url.removeprefix("http://").split(":")
    return host, int(port)


def test_event_streams_are_limited_per_key(tmp_path: Path) -> None:
    limits = Limits(event_streams_per_key=1)
    keys = {name: {"Authorization": f"Bearer {name}"} for name in ("one", "two")}
    job = {"request": {"prompt": "hang", "num_inference_steps": 1}}
    with (
        running(tmp_path, api_keys=tuple(keys), limits=limits) as url,
        httpx.Client(base_url=url) as client,
    ):
        paths = {
            name: f"/api/jobs/{client.post('/api/jobs', json=job, headers=key).json()['id']}/events"
            for name, key in keys.items()
        }
        with client.stream("GET", paths["one"], headers=keys["one"]) as first:
            lines = first.iter_lines()  # which lets go of the stream when it is forgotten
            assert next(lines) == "event: queued"
            answer = client.get(paths["one"], headers=keys["one"])
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
            with client.stream("GET", paths["two"], headers=keys["two"]) as other:
                assert other.status_code == 200

        def again() -> bool:
            with client.stream("GET", paths["one"], headers=keys["one"]) as answer:
                return answer.status_code == 200

        until(again)  # once the server has seen that the first one left


def test_pictures_slow_to_read_do_not_block_other_requests(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    enough, late = threading.Event(), list[object]()

    def slow(*given: object) -> None:
        if not enough.wait(PATIENCE):
            late.append(given)

    monkeypatch.setattr(codec, "receive_picture", slow)
    senders = [
        threading.Thread(target=client.post, args=("/api/files",), kwargs={"content": b"0"})
        for _ in range(16)
    ]
    for sender in senders:
        sender.start()
    try:
        assert client.get("/api/jobs").status_code == 200
    finally:
        enough.set()
        for sender in senders:
            sender.join()
    assert not late


def test_validation_many_errors_are_shortened(client: TestClient) -> None:
    strange = {f"field{number}": number for number in range(1000)}
    answer = client.post("/api/jobs", json={"request": {"prompt": "a"}} | strange)
    assert answer.status_code == 422
    assert len(answer.json()["detail"]) == route.MAX_REPORTED_ERRORS
