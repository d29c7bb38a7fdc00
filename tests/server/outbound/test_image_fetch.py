"""Pictures that clients name by URL: fetched from public addresses, and from nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import socket
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from fal_client import SyncClient, client
from fastapi import HTTPException
from replicate.client import Client

from overpaint.errors import QueueFullError, RequestError
from overpaint.network import client as asks
from overpaint.network import download
from overpaint.network.client import OutboundClient
from overpaint.server.outbound.image_fetch import ImageFetcher
from overpaint.server.settings import DEFAULT_LIMITS, FetchPolicy, FetchSettings
from tests.server.live import running
from tests.server.outbound.test_addresses import LOOPBACK, OTHERWISE, PRIVATE, names

__all__ = ["names"]

HOUSE = (Path(__file__).parents[3] / "examples" / "house.png").read_bytes()
END = len(HOUSE) // 2048 * 2048
NAME = hashlib.sha256(HOUSE).hexdigest()


@dataclass
class Gallery:
    """A server of pictures elsewhere.

    Attributes:
        port: that it listens on.
        asked: the path and the headers of each request.
        over: when it is closed, and what stands still goes on.
    """

    port: int
    asked: list[tuple[str, dict[str, str]]] = field(
        default_factory=list[tuple[str, dict[str, str]]]
    )
    over: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str = "house.png", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"


def whole(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    head = "\r\n".join((f"HTTP/1.0 {status}", f"Content-Length: {len(body)}", *headers))
    return f"{head}\r\n\r\n".encode() + body


ANSWERS: dict[str, bytes] = {
    "house.png": whole(HOUSE),
    "with a cookie": whole(HOUSE, "Set-Cookie: a=1; Path=/"),
    "without a length": b"HTTP/1.0 200 OK\r\n\r\n" + HOUSE,
    "elsewhere": whole(b"", "Location: house.png", status="302 Found"),
    "missing": whole(HOUSE, status="404 Not Found"),
    "nothing new": whole(b"", status="204 No Content"),
    "packed": whole(gzip.compress(HOUSE), "Content-Encoding: gzip"),
    "shorter than it says": whole(HOUSE)[:-100],
    "no HTTP": b"SSH-2.0-OpenSSH_9.7\r\n",
    "nothing": b"",
    "a page": whole(b"<html>"),
    "by the byte": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"1\r\n%c\r\n" % byte for byte in HOUSE)
    + b"0\r\n\r\n",
    "in chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"".join(b"800\r\n%s\r\n" % HOUSE[at : at + 2048] for at in range(0, END, 2048))
    + b"%x\r\n%s\r\n0\r\n\r\n" % (len(HOUSE) - END, HOUSE[END:]),
}


@pytest.fixture
def gallery() -> Iterator[Gallery]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path[1:].replace("%20", " ")
            made.asked.append((path, {k.lower(): v for k, v in self.headers.items()}))
            if path == "never":
                made.over.wait()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(ANSWERS.get(path, b""))

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made = Gallery(server.server_port)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def outside() -> Iterator[OutboundClient]:
    made = OutboundClient()
    yield made
    made.close()


def fetched(
    fetches: FetchPolicy,
    outside: OutboundClient,
    settings: FetchSettings | None = None,
    max_bytes: int = DEFAULT_LIMITS.upload_bytes,
    **urls: str,
) -> dict[str, bytes]:
    async def fetch() -> dict[str, bytes]:
        fetcher = ImageFetcher(fetches, outside, settings, max_bytes)
        async with fetcher.fetch_images("", urls) as fetched:
            return dict(fetched)

    return asyncio.run(fetch())


Refused = Callable[..., str]


def failure_message(
    settings: FetchSettings | None = None, max_bytes: int = DEFAULT_LIMITS.upload_bytes
) -> str:
    unused: Any = None
    return ImageFetcher("all", unused, settings, max_bytes).failure_message


FETCH_FAILED = failure_message()


@pytest.fixture
def refused(outside: OutboundClient) -> Refused:
    def why(
        fetches: FetchPolicy,
        url: str,
        settings: FetchSettings | None = None,
        max_bytes: int = DEFAULT_LIMITS.upload_bytes,
    ) -> str:
        with pytest.raises(RequestError) as error:
            fetched(fetches, outside, settings, max_bytes, image=url)
        assert error.value.field == "image"
        return error.value.message

    return why


# What comes of it


GOOD = ("house.png", "without a length", "in chunks", "with a cookie")


@pytest.mark.parametrize("path", GOOD)
def test_fetch_existing_picture_succeeds(
    gallery: Gallery, path: str, outside: OutboundClient
) -> None:
    url = gallery.url(path.replace(" ", "%20"))
    assert fetched("all", outside, image=url, mask=url) == {url: HOUSE}
    ((asked, headers),) = gallery.asked  # once
    assert (asked, headers["host"]) == (path, f"127.0.0.1:{gallery.port}")
    assert headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("path", sorted(ANSWERS.keys() - {*GOOD, "a page"}))
def test_fetch_incomplete_response_fails(gallery: Gallery, path: str, refused: Refused) -> None:
    assert refused("all", gallery.url(path.replace(" ", "%20"))) == FETCH_FAILED
    assert len(gallery.asked) == 1


def test_fetch_too_large_picture_fails(
    gallery: Gallery, refused: Refused, outside: OutboundClient
) -> None:
    one, other = gallery.url(), gallery.url("a%20page")
    assert fetched("all", outside, max_bytes=len(HOUSE), image=one) == {one: HOUSE}
    with pytest.raises(RequestError, match=r"^mask: The picture cannot be fetched"):
        fetched("all", outside, max_bytes=len(HOUSE), image=one, mask=other)  # together
    limit = len(HOUSE) - 1
    for url in (one, gallery.url("without%20a%20length")):
        assert refused("all", url, max_bytes=limit) == failure_message(max_bytes=limit)


def test_fetch_counts_every_part_and_ends_when_there_is_no_room(
    gallery: Gallery, outside: OutboundClient
) -> None:
    async def fetch(count_bytes: Callable[[int], None]) -> None:
        fetcher = ImageFetcher("all", outside)
        urls = {"image": gallery.url()}
        async with fetcher.fetch_images("", urls, count_bytes) as fetched:
            assert fetched == {gallery.url(): HOUSE}

    def refuse(size: int) -> None:
        raise HTTPException(503)

    sizes: list[int] = []
    asyncio.run(fetch(sizes.append))
    assert sum(sizes) == len(HOUSE)
    with pytest.raises(HTTPException, match="503"):
        asyncio.run(fetch(refuse))


def test_fetch_timeout_fails(gallery: Gallery, refused: Refused) -> None:
    settings = FetchSettings(timeout_s=0.2)
    assert refused("all", gallery.url("never"), settings) == failure_message(settings)


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///house.png",
        "http://[::1/",
        "http://x:99999/",
        "http://127.0.0.1:65536/",
        "http://127.0.0.1:-5/",
        f"http://{'a' * 100_000}/",
        "http://no.such.host.invalid/",
        "http://a b/",
        f"http://{'a' * 300}.test/",
        "https://127.0.0.1:9/",
        "ftp://127.0.0.1/house.png",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_INFO",
        "house.png",
    ],
)
def test_fetch_unreachable_url_fails(url: str, refused: Refused) -> None:
    assert refused("all", url) == FETCH_FAILED


# Where it may lead


@pytest.fixture
def any_port(gallery: Gallery) -> FetchSettings:
    """Settings by which the port is public, so that the server refuses the address."""
    return FetchSettings(public_ports=(gallery.port,))


@pytest.mark.parametrize("host", [*PRIVATE, *LOOPBACK, *OTHERWISE])
def test_fetch_private_address_fails(
    gallery: Gallery, any_port: FetchSettings, host: str, refused: Refused
) -> None:
    url = gallery.url(host=f"[{host}]" if ":" in host else host)
    assert refused("public", url, any_port) == FETCH_FAILED
    assert gallery.asked == []


@pytest.mark.parametrize("host", ["example.org@127.0.0.1", "example.org\\@127.0.0.1"])
def test_fetch_disguised_host_fails(
    gallery: Gallery, any_port: FetchSettings, host: str, refused: Refused
) -> None:
    assert refused("public", gallery.url(host=host), any_port) == FETCH_FAILED
    assert gallery.asked == []


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.215.14", "::1"]])
def test_fetch_name_of_private_address_fails(
    gallery: Gallery,
    any_port: FetchSettings,
    names: dict[str, list[str]],
    addresses: list[str],
    refused: Refused,
) -> None:
    names["house.test"] = addresses
    assert refused("public", gallery.url(host="house.test"), any_port) == FETCH_FAILED
    assert gallery.asked == []


def test_fetch_unusual_port_fails(monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    monkeypatch.delattr(asks, "resolve_host")  # nobody is looked for
    for port in (22, 6379, 8080):
        assert refused("public", f"http://93.184.215.14:{port}/") == FETCH_FAILED


def test_fetch_ignores_later_dns_changes(
    gallery: Gallery, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    """The resolver says another address from the second time on."""
    names["rebound.test"] = ["127.0.0.2"]
    resolving = asks.resolve_host

    async def once(*given: Any) -> Any:
        found = await resolving(*given)
        names["rebound.test"] = ["127.0.0.1"]
        return found

    monkeypatch.setattr(asks, "resolve_host", once)
    assert refused("all", gallery.url(host="rebound.test")) == FETCH_FAILED
    assert gallery.asked == []


def test_proxies_of_the_environment_are_not_used(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    asks_now = OutboundClient()
    assert fetched("all", asks_now, image=gallery.url()) == {gallery.url(): HOUSE}
    asks_now.close()


def test_fetch_keeps_no_cookies(gallery: Gallery, outside: OutboundClient) -> None:
    """They would be another client's."""
    for _ in range(2):
        fetched("all", outside, image=gallery.url("with%20a%20cookie"))
    assert len(gallery.asked) == 2
    assert all("cookie" not in headers for _, headers in gallery.asked)


def test_fetch_policy_none_refuses_urls(gallery: Gallery, refused: Refused) -> None:
    assert "This server fetches no URLs" in refused("none", gallery.url())
    assert gallery.asked == []


# How many


def test_fetch_too_many_urls_are_refused(outside: OutboundClient) -> None:
    urls = {f"controls.{number}.image": "http://127.0.0.1/" for number in range(17)}
    fetch: Any = fetched  # The names of these fields are not Python identifiers.
    with pytest.raises(
        RequestError, match=r"^controls\.0\.image: The request has more than 16 URLs"
    ):
        fetch("public", outside, **urls)


class Here:
    """What asks, in the loop of who wants that."""

    client = None

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await work


def test_fetch_requests_of_a_key_wait_only_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = FetchSettings(concurrent_requests_per_key=1, pending_requests_per_key=2)
    asked = list[str]()

    async def answer(client: object, method: str, url: object, *_: object) -> httpx2.Response:
        asked.append(str(url))
        return httpx2.Response(200, stream=httpx2.ByteStream(HOUSE))

    monkeypatch.setattr(download, "open_response", answer)
    here: Any = Here()

    async def fetch() -> None:
        fetcher, looked_at = ImageFetcher("all", here, settings), asyncio.Event()

        async def begin(key: str, url: str) -> None:
            async with fetcher.fetch_images(key, {"image": url}) as fetched:
                assert fetched == {url: HOUSE}
                await looked_at.wait()

        pairs = (("a", "http://1"), ("a", "http://2"), ("b", "http://3"))
        going = [asyncio.create_task(begin(*pair)) for pair in pairs]
        while len(asked) < 2:
            await asyncio.sleep(0)
        assert asked == ["http://1", "http://3"]
        with pytest.raises(QueueFullError, match="2 requests"):
            await begin("a", "http://4")
        looked_at.set()
        await asyncio.gather(*going)
        assert asked == ["http://1", "http://3", "http://2"]
        await begin("a", "http://4")  # there is room again

    asyncio.run(fetch())


# In every dialect


@pytest.fixture
def url(tmp_path: Path) -> Generator[str]:
    with running(tmp_path, fetch="all") as address:
        yield address


def by_replicate(url: str, image: str) -> None:
    replicate = Client(api_token="any", base_url=url)
    made = replicate.predictions.create(
        model="overpaint/miniature", input={"prompt": "snow", "image": image, "mask": image}
    )
    replicate._client.close()  # pyright: ignore[reportPrivateUsage]
    assert made.input
    assert made.input["image"] == image  # as it was asked


def by_fal(url: str, image: str) -> None:
    client.QUEUE_URL_FORMAT = f"{url}/fal/queue/"
    fal = SyncClient(key="any")
    fal.submit("fal-ai/fast-sdxl/image-to-image", {"prompt": "snow", "image_url": image})
    fal._client.close()  # pyright: ignore[reportPrivateUsage]


def by_openai(url: str, image: str) -> None:
    with openai.OpenAI(api_key="any", base_url=f"{url}/v1") as asked:
        controls = [{"kind": "canny", "image": {"url": image}}]
        asked.images.generate(prompt="snow", extra_body={"controls": controls})


def by_cog(url: str, image: str) -> None:
    httpx.post(f"{url}/predictions", json={"input": {"image": image}}).raise_for_status()


def ours(url: str, image: str) -> None:
    body = {"request": {"prompt": "snow", "image": {"url": image}}}
    httpx.post(f"{url}/api/jobs", json=body).raise_for_status()


def pictures_of(request: Any) -> set[str]:
    match request:
        case {"file": str(name)}:
            return {name}
        case dict():
            return {name for value in request.values() for name in pictures_of(value)}
        case list():
            return {name for value in request for name in pictures_of(value)}
        case _:
            return set()


@pytest.mark.parametrize("submit", [by_replicate, by_fal, by_openai, by_cog, ours])
def test_request_with_url_uses_the_fetched_picture(
    url: str, gallery: Gallery, submit: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "QUEUE_URL_FORMAT", "")  # put back in the end
    submit(url, gallery.url())
    (job,) = httpx.get(f"{url}/api/jobs").json()["jobs"]
    assert pictures_of(job["request"]) == {NAME}
    assert len(gallery.asked) == 1


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/jobs", '{"request": {"image": {"url": "%s"}}}', 422),
        ("/v1/predictions", '{"version": "owner/sdxl", "input": {"image": "%s"}}', 422),
        ("/predictions", '{"input": {"image": "%s"}}', 422),
        ("/fal/run/owner/sdxl", '{"prompt": "", "image_url": "%s"}', 422),
        (
            "/v1/images/generations",
            '{"prompt": "", "controls": [{"kind": "canny", "image": {"url": "%s"}}]}',
            400,
        ),
    ],
)
def test_request_with_unusable_url_names_the_field(
    url: str, gallery: Gallery, path: str, body: str, status: int
) -> None:
    for wrong, says in (("missing", FETCH_FAILED), ("a%20page", "")):
        answer = httpx.post(
            url + path,
            content=body % gallery.url(wrong),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == status, answer.text
        assert "image" in answer.text
        assert says in answer.text
    assert httpx.get(f"{url}/api/jobs").json()["jobs"] == []


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/api/jobs", '{"request": {"image": {"url": "%s"}}}'),
        ("POST", "/v1/predictions", '{"version": "owner/sdxl", "input": {"image": "%s"}}'),
        ("PUT", "/predictions/mine", '{"input": {"image": "%s"}}'),
        ("POST", "/fal/queue/owner/sdxl", '{"prompt": "", "image_url": "%s"}'),
        (
            "POST",
            "/v1/images/generations",
            '{"prompt": "", "controls": [{"kind": "canny", "image": {"url": "%s"}}]}',
        ),
    ],
)
def test_request_repeated_with_idempotency_key_fetches_once(
    url: str, gallery: Gallery, method: str, path: str, body: str
) -> None:
    """The URL may be good for a while alone."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": "mine"}

    def send(content: str) -> int:
        return httpx.request(method, url + path, content=content, headers=headers).status_code

    assert send(body % gallery.url()) < 300
    assert send(body % gallery.url()) < 300
    assert len(gallery.asked) == 1
    assert len(httpx.get(f"{url}/api/jobs").json()["jobs"]) == 1
    assert send(body % gallery.url("other")) in (400, 422)
    assert len(gallery.asked) == 1


def test_server_default_fetches_no_loopback_urls(
    tmp_path: Path, gallery: Gallery, any_port: FetchSettings
) -> None:
    with running(tmp_path, fetching=any_port) as url, pytest.raises(httpx.HTTPStatusError):
        ours(url, gallery.url())
    assert gallery.asked == []


def test_fetch_sends_the_host_name(
    gallery: Gallery, names: dict[str, list[str]], outside: OutboundClient
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.2", gallery.port))  # and does not listen: the next one is tried
        names["house.test"] = ["127.0.0.2", "127.0.0.1"]
        assert fetched("all", outside, image=gallery.url(host="house.test"))
    assert gallery.asked[0][1]["host"] == f"house.test:{gallery.port}"


def test_fetch_international_name_is_encoded_as_in_certificates(
    gallery: Gallery, outside: OutboundClient, names: dict[str, list[str]]
) -> None:
    names["xn--fa-hia.test"] = ["127.0.0.1"]  # Python's own IDNA says fass.test
    for host in ("xn--fa-hia.test", "faß.test"):
        assert fetched("all", outside, image=gallery.url(host=host))
    assert {headers["host"] for _, headers in gallery.asked} == {f"xn--fa-hia.test:{gallery.port}"}


@pytest.mark.parametrize("inner", ['{"url": "http://127.0.0.1:9/"}', '{"data": "!"}'])
@pytest.mark.parametrize(
    ("path", "around", "name"),
    [
        ("/api/jobs", '{"request": {"%s": %s}}', "a" * 5_000_000),
        ("/api/jobs", '{"request": {"%s": %s}}', r"\ud800"),
        ("/fal/run/o/sdxl", '{"prompt": "", "%s": %s}', r"\ud800"),
    ],
)
def test_request_with_long_field_name_shortens_it_in_the_error(
    url: str, path: str, around: str, name: str, inner: str
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(url + path, content=around % (name, inner), headers=headers)
    assert answer.status_code == 422
    assert len(answer.content) < 2000
