"""Where webhooks may go, and that they go nowhere else."""

from __future__ import annotations

import asyncio
import socket
import threading
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

from overpaint.errors import RequestError
from overpaint.network import client
from overpaint.network.addresses import (
    Reach,
    check_url,
    is_loopback,
    is_public,
    resolve_host,
)
from overpaint.network.client import make_client
from overpaint.server.jobs import webhooks
from overpaint.server.jobs.webhooks import deliver
from tests.server.jobs.test_webhooks import Receiver, predict, receiver, until
from tests.server.live import running

__all__ = ["receiver"]

PRIVATE = (
    *("10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
    *("224.0.1.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1"),
    *("192.0.0.192", "192.88.99.1", "168.63.129.16", "3fff::1"),
    *("::", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1", "::127.0.0.1"),
    *("::ffff:127.0.0.1", "::ffff:93.184.215.14", "64:ff9b::a00:1", "64:ff9b:1::1"),
    *("2002:7f00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
)
LOOPBACK = ("127.0.0.1", "127.1.2.3", "::1")
PUBLIC = ("93.184.215.14", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808")


@pytest.mark.parametrize("address", [*PRIVATE, *LOOPBACK])
def test_is_public_special_address_is_false(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_is_public_global_address_is_true(address: str) -> None:
    assert is_public(ip_address(address))


def test_is_loopback_knows_names_and_addresses() -> None:
    assert all(map(is_loopback, (*LOOPBACK, "localhost")))
    assert not any(map(is_loopback, (*PUBLIC, *PRIVATE[:5], "localhost.example", "")))


def url_of(host: str) -> str:
    return f"https://[{host}]:8443/hook" if ":" in host else f"https://{host}/hook"


OTHERWISE = (
    "2130706433",
    "0x7f000001",
    "127.1",
    "127.0.0.1.",
    "LOCALHOST",
    "a.localhost",
)
"""Ways to write 127.0.0.1."""


@pytest.mark.parametrize("host", [*PRIVATE, *LOOPBACK, *OTHERWISE])
def test_webhook_to_private_address_is_refused(host: str) -> None:
    with pytest.raises(RequestError, match="not public") as refused:
        check_url(url_of(host), "public")
    assert refused.value.field == "webhook"
    check_url(url_of(host), "all")


@pytest.mark.parametrize("host", [*PUBLIC, "example.org", "10.example.org"])
def test_webhook_to_public_address_is_accepted(host: str) -> None:
    for reach in ("public", "loopback", "all"):
        check_url(url_of(host), reach)


@pytest.mark.parametrize("host", [*LOOPBACK, *OTHERWISE])
def test_webhook_without_keys_to_loopback_is_accepted(host: str) -> None:
    check_url(url_of(host), "loopback")


@pytest.mark.parametrize("host", PRIVATE)
def test_webhook_without_keys_to_private_address_is_refused(host: str) -> None:
    with pytest.raises(RequestError, match="not public"):
        check_url(url_of(host), "loopback")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org\\@127.0.0.1/",
        "http://example.org@127.0.0.1/",
        "http://[::1/",
        "http://0177.0.0.1/",
        "http://x:99999/",
        "http://x:-5/",
    ],
)
def test_webhook_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match=r"^webhook: "):
        check_url(url, "public")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What a resolver says of names; each time it is asked, and nothing else is known."""
    known: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *more: Any, **others: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in known:
            return real(host, port, *more, **others)
        found: list[Any] = []
        for address in known[name]:
            found += real(address, port, type=socket.SOCK_STREAM)
        return found

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


def resolved(host: str, reach: Reach) -> list[str]:
    return [str(a) for a in asyncio.run(resolve_host(httpx2.URL(f"http://{host}/"), reach))]


def test_resolve_host_of_address_uses_no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "getaddrinfo")
    assert resolved("93.184.215.14", "public") == ["93.184.215.14"]
    assert resolved("[2606:2800:21f::1]", "public") == ["2606:2800:21f::1"]
    with pytest.raises(RequestError, match="not public"):
        resolved("10.0.0.1", "public")


def test_resolve_host_with_one_private_address_is_refused(names: dict[str, list[str]]) -> None:
    names["good.test"] = ["93.184.215.14", "2606:4700::1111"]
    names["mixed.test"] = ["93.184.215.14", "fc00::1"]
    names["own.test"] = ["127.0.0.1"]
    assert resolved("good.test", "public") == names["good.test"]
    for host in ("mixed.test", "own.test"):
        with pytest.raises(RequestError, match="not public"):
            resolved(host, "public")
    assert resolved("own.test", "loopback") == ["127.0.0.1"]
    assert resolved("mixed.test", "all") == names["mixed.test"]


def posted(url: str, reach: Reach) -> webhooks.Delivery:
    async def post() -> webhooks.Delivery:
        async with make_client() as client:
            return await deliver(client, url, b"{}", {"webhook-id": "x.completed"}, reach, 15.0)

    return asyncio.run(post())


def test_open_response_connects_to_checked_address_with_host_header(
    names: dict[str, list[str]], receiver: Receiver
) -> None:
    port = httpx.URL(receiver.url).port
    names["hook.test"] = ["127.0.0.1"]
    assert posted(f"http://hook.test:{port}/hook", "loopback").status == 200
    assert receiver.posts[0][0]["host"] == f"hook.test:{port}"


def test_open_response_ignores_later_dns_changes(
    names: dict[str, list[str]], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolver says another address from the second time on."""
    port = httpx.URL(receiver.url).port
    names["rebound.test"] = ["127.0.0.2"]
    resolving = client.resolve_host

    async def once(url: httpx2.URL, reach: Reach) -> Any:
        found = await resolving(url, reach)
        names["rebound.test"] = ["127.0.0.1"]
        return found

    monkeypatch.setattr(client, "resolve_host", once)
    tried = posted(f"http://rebound.test:{port}/hook", "loopback")
    assert tried.status is None
    assert "ConnectError" in str(tried.error)
    assert receiver.posts == []


def test_open_response_tries_next_address_after_failure(
    names: dict[str, list[str]], receiver: Receiver
) -> None:
    names["two.test"] = ["127.0.0.2", "127.0.0.1"]
    tried = posted(f"http://two.test:{httpx.URL(receiver.url).port}/hook", "loopback")
    assert (tried.status, tried.error) == (200, None)
    assert len(receiver.posts) == 1


def test_open_response_verifies_certificate_by_name(names: dict[str, list[str]]) -> None:
    names["hook.test"] = ["127.0.0.1"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        heard: list[bytes] = []

        def listen() -> None:
            connection, _ = server.accept()
            with connection:
                heard.append(connection.recv(65536))

        thread = threading.Thread(target=listen)
        thread.start()
        tried = posted(f"https://hook.test:{server.getsockname()[1]}/", "loopback")
        thread.join()
    assert b"hook.test" in heard[0]
    assert tried.status is None


def test_proxies_of_the_environment_are_not_used(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with running(tmp_path) as url, httpx.Client(trust_env=False) as client:
        body = {"request": {"prompt": "a cup"}, "webhook": receiver.url}
        assert client.post(f"{url}/api/jobs", json=body).status_code == 201
        until(lambda: "completed" in receiver.kinds())


def test_submission_with_key_and_loopback_webhook_is_refused(
    tmp_path: Path, receiver: Receiver
) -> None:
    wires: dict[str, dict[str, Any]] = {
        "/api/jobs": {"request": {}},
        "/v1/predictions": {"version": "overpaint/miniature", "input": {}},
        "/predictions": {"input": {}},
        "/v1/images/generations": {"prompt": "a cup"},
    }
    key = {"authorization": "Bearer one"}
    with running(tmp_path, api_keys=("one",)) as url:
        for path, body in wires.items():
            body["webhook"] = receiver.url
            answer = httpx.post(url + path, json=body, headers=key)
            assert answer.status_code == (400 if "images" in path else 422)
            assert "webhook" in answer.text
            assert "not public" in answer.text
        assert httpx.get(f"{url}/api/jobs", headers=key).json()["jobs"] == []
    assert receiver.posts == []


def test_webhook_to_name_of_loopback_is_a_failed_attempt(
    tmp_path: Path, names: dict[str, list[str]], receiver: Receiver
) -> None:
    names["hook.test"] = ["127.0.0.1"]
    hook = receiver.url.replace("127.0.0.1", "hook.test")
    key = {"authorization": "Bearer one"}
    body = {"request": {"prompt": "a cup"}, "webhook": hook, "webhook_events": ["completed"]}
    with (
        running(tmp_path, api_keys=("one",)) as url,
        httpx.Client(base_url=url, headers=key) as client,
    ):
        job = client.post("/api/jobs", json=body).json()["id"]
        until(lambda: client.get(f"/api/jobs/{job}/webhooks").json()[0]["tries"])
        (tried,) = client.get(f"/api/jobs/{job}/webhooks").json()[0]["tries"]
        assert tried["status"] is None
        assert "not public" in tried["error"]
        assert client.get(f"/api/jobs/{job}").json()["state"] == "succeeded"
    assert receiver.posts == []


def test_webhook_to_private_address_is_delivered_when_allowed(
    tmp_path: Path, receiver: Receiver
) -> None:
    key = {"authorization": "Bearer one"}
    body = {"request": {"prompt": "a cup"}, "webhook": receiver.url}
    with running(tmp_path, api_keys=("one",), allow_private_webhooks=True) as url:
        assert httpx.post(f"{url}/api/jobs", json=body, headers=key).status_code == 201
        until(lambda: "completed" in receiver.kinds())


def test_webhook_signed_links_work_without_key(tmp_path: Path, receiver: Receiver) -> None:
    key = {"authorization": "Bearer one"}
    with running(tmp_path, api_keys=("one",), allow_private_webhooks=True) as url:
        body = {"input": {"prompt": "a cup"}, "webhook": receiver.url}
        httpx.post(f"{url}/v1/models/overpaint/miniature/predictions", json=body, headers=key)
        until(lambda: "completed" in receiver.kinds())
        link = dict(receiver.told())["completed"]["output"][0]
        assert httpx.get(link).headers["content-type"] == "image/png"
        folder, _expires, _signature, name = link.rsplit("/", 3)
        assert httpx.get(f"{folder}/{name}").status_code == 401


def test_reach_without_keys_is_loopback_and_public(tmp_path: Path) -> None:
    with running(tmp_path) as url:
        made = predict(url, "http://127.0.0.1:9/", webhook_events_filter=[])
        assert made["id"]
        body = {"request": {}, "webhook": "http://192.168.1.1/"}
        assert httpx.post(f"{url}/api/jobs", json=body).status_code == 422


def test_resolve_host_slow_names_do_not_block_other_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent = threading.Event()

    def wait(*_: object, **__: object) -> list[object]:
        silent.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", wait)

    async def ask() -> int:
        url = httpx2.URL("http://silent.test/")
        asked = [asyncio.create_task(resolve_host(url, "all")) for _ in range(16)]
        await asyncio.sleep(0)
        try:
            return await asyncio.wait_for(asyncio.to_thread(int, "7"), 30)
        finally:
            silent.set()
            await asyncio.gather(*asked)

    assert asyncio.run(ask()) == 7
