"""Download pictures under rules: which addresses and ports, how many bytes, no redirects.

The server and the command line follow the same rules. A page that a user was sent can name any URL,
so a download must not reach services behind the user's firewall.
"""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

from overpaint.errors import PictureError, RequestError
from overpaint.network.addresses import Reach
from overpaint.network.client import make_client, open_response
from overpaint.network.urls import URL_SCHEMES

T = TypeVar("T")

DOWNLOAD_HEADERS = {
    "accept": "image/png, image/jpeg, image/webp",
    "accept-encoding": "identity",
    "user-agent": "Overpaint",
}


@dataclass(frozen=True)
class DownloadRules:
    """The limits of one download."""

    reach: Reach = "public"
    """The addresses that may be contacted."""

    ports: tuple[int, ...] = (80, 443)
    """The ports that may be contacted at public addresses; other reaches allow every port."""

    max_bytes: int = 64 * 2**20
    """Bytes of the body, at most."""

    small_chunks: int = 1000
    """Chunks below 1 KiB that a response may have."""

    timeout_s: float = 60.0
    """Seconds for the whole download. `download_body` leaves this limit to its caller."""


DEFAULT_RULES = DownloadRules()


def download(url: str, rules: DownloadRules = DEFAULT_RULES) -> bytes:
    """Download a URL, also inside a running event loop, such as that of a notebook.

    Raises:
        PictureError: the rules forbid the URL, or it cannot be downloaded; the message says why.
    """
    try:
        return _run(_download(url, rules))
    except TimeoutError:
        why = f"it took longer than {rules.timeout_s:g} seconds"
    except RequestError:
        why = "it leads to an address that is not public"
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        why = str(error).rstrip(".") or type(error).__name__
    raise PictureError(
        f"{url[:200]} cannot be downloaded: {why}. Download it yourself, and give the file."
    )


async def download_body(
    client: httpx2.AsyncClient,
    url: httpx2.URL,
    rules: DownloadRules,
    count_bytes: Callable[[int], None] | None = None,
) -> bytes:
    """Return the body of a URL.

    Args:
        client: from `make_client`.
        url: the URL.
        rules: the limits.
        count_bytes: receives the number of bytes of every part that arrives. An exception that it
            raises ends the download.

    Raises:
        ValueError: the rules forbid the URL, or the response is too large or has another status
            or an encoding.
        RequestError, httpx2.HTTPError, OSError: see `open_response`.
    """
    if url.scheme not in URL_SCHEMES:
        raise ValueError(f"its scheme is not one of {', '.join(URL_SCHEMES)}")
    if rules.reach == "public" and url.port is not None and url.port not in rules.ports:
        raise ValueError(f"port {url.port} is not one of {', '.join(map(str, rules.ports))}")
    response = await open_response(client, "GET", url, rules.reach, DOWNLOAD_HEADERS)
    try:
        if response.is_redirect:
            target = response.headers.get("location", "another URL")
            raise ValueError(f"it redirects to {target[:200]}, and redirects are not followed")
        if response.status_code != 200:
            raise ValueError(f"the server answered with status {response.status_code}")
        if "content-encoding" in response.headers:
            raise ValueError("the server answered with a content encoding")
        parts, size = list[bytes](), 0
        async for part in response.aiter_raw():
            parts.append(part)
            size += len(part)
            if count_bytes:
                count_bytes(len(part))
            if size > rules.max_bytes:
                raise ValueError(f"it has more than {rules.max_bytes:,} bytes")
            if len(parts) > rules.small_chunks + size // 2**10:
                raise ValueError("the server sends too many small chunks")
        return b"".join(parts)
    finally:
        await response.aclose()


async def _download(url: str, rules: DownloadRules) -> bytes:
    async with asyncio.timeout(rules.timeout_s), make_client() as client:
        return await download_body(client, httpx2.URL(url), rules)


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:  # a loop cannot run inside another one
        return thread.submit(asyncio.run, work).result()
