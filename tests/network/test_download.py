"""Downloads of pictures that a user names by URL, and what the rules forbid."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from overpaint.errors import PictureError
from overpaint.network.download import DownloadRules, download
from overpaint.network.urls import is_url

LOCAL = DownloadRules(reach="all")


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response({"/moved": 302, "/missing": 404}.get(self.path, 200))
            if self.path == "/moved":
                self.send_header("Location", "/picture")
            self.end_headers()
            self.wfile.write(b"picture")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_download_returns_the_body(site: str) -> None:
    assert download(f"{site}/picture", LOCAL) == b"picture"


def test_download_works_inside_an_event_loop(site: str) -> None:
    async def notebook() -> bytes:
        return download(f"{site}/picture", LOCAL)

    assert asyncio.run(notebook()) == b"picture"


@pytest.mark.parametrize(
    ("path", "rules", "why"),
    [
        ("/moved", LOCAL, "it redirects to /picture, and redirects are not followed"),
        ("/missing", LOCAL, "status 404"),
        ("/picture", DownloadRules(reach="all", max_bytes=3), "more than 3 bytes"),
        ("/picture", DownloadRules(), "port"),
        ("/picture", DownloadRules(ports=()), "port"),
        ("/picture", DownloadRules(reach="all", timeout_s=0), "longer than 0 seconds"),
    ],
)
def test_download_that_rules_forbid_says_why(
    site: str, path: str, rules: DownloadRules, why: str
) -> None:
    with pytest.raises(PictureError, match=why) as refused:
        download(site + path, rules)
    assert "Download it yourself, and give the file." in str(refused.value)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1/", "an address that is not public"),
        ("http://localhost/", "an address that is not public"),
        ("http://[::1]/", "an address that is not public"),
        ("http://169.254.169.254/", "an address that is not public"),
        ("ftp://example.org/a.png", "scheme"),
        ("http://[::1/", "cannot be downloaded"),
    ],
)
def test_download_of_a_forbidden_address_is_refused(url: str, why: str) -> None:
    with pytest.raises(PictureError, match=why):
        download(url)


def test_is_url_tells_urls_from_paths() -> None:
    assert is_url("https://example.org/a.png")
    assert is_url("HTTP://example.org/a.png")
    assert not any(map(is_url, ("a.png", "http", "C:/a.png", "ftp://x/y", "https:/x")))
