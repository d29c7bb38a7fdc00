"""Fetches pictures that clients name by URL, before the server accepts a job.

Without limits, a client could explore the network behind the server's firewall (server-side request
forgery). So the server contacts only public addresses at the usual ports, and every failure has the
same message.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2

from overpaint.errors import QueueFullError, RequestError
from overpaint.server.outbound.client import OutboundClient, open_response
from overpaint.server.settings import FetchPolicy
from overpaint.server.store.files import LARGEST_UPLOAD, Files
from overpaint.server.telemetry.logs import log_event, request_id

FETCH_TIMEOUT_S = 20.0
"""Time limit in seconds for all pictures of a request, without the time that it waits."""

MAX_CONCURRENT_FETCHES_PER_KEY = 8
"""Requests of one API key whose pictures the server fetches at once. Others wait."""

MAX_WAITING_FETCHES_PER_KEY = 64
"""Requests of one API key whose pictures are fetched or wait. The server refuses more."""

MAX_URLS = 16
"""Largest number of URLs in a request."""

MAX_SMALL_CHUNKS = 1000
"""Largest number of chunks below 1 KiB in a response. Each costs as much as a large chunk."""

ALLOWED_SCHEMES = ("http", "https")
PUBLIC_PORTS = (None, 80, 443)
"""Ports that the server contacts at public addresses; None is the scheme's default."""

FETCH_HEADERS = {
    "accept": "image/png, image/jpeg, image/webp",
    "accept-encoding": "identity",
    "user-agent": "Overpaint",
}

FETCH_FAILED = (
    "cannot be fetched. A URL must lead to a public address and return status 200 without a "
    f"redirect, with at most {LARGEST_UPLOAD:,} bytes within {FETCH_TIMEOUT_S:.0f} seconds. "
    "Alternatively, send the picture itself."
)
"""The message for every failure. A more precise one would describe the internal network."""


@dataclass(frozen=True)
class ImageSources:
    """Sources of a request's pictures.

    Attributes:
        files: the uploads.
        fetched: the content of URLs that the request names, by URL.
    """

    files: Files
    fetched: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


class ImageFetcher:
    """Fetches pictures by URL, with limits for each API key."""

    def __init__(self, fetches: FetchPolicy, outside: OutboundClient):
        """Use a client.

        Args:
            fetches: the URLs that the server fetches.
            outside: sends the requests.
        """
        self._fetches: FetchPolicy = fetches
        self._outside = outside
        self._asked = Counter[str]()
        self._turns = defaultdict[str, asyncio.Semaphore](
            lambda: asyncio.Semaphore(MAX_CONCURRENT_FETCHES_PER_KEY)
        )

    @asynccontextmanager
    async def fetch_images(
        self, key: str, urls: Mapping[str, str]
    ) -> AsyncGenerator[Mapping[str, bytes]]:
        """Fetch the pictures of a request. Other requests of the key wait until the context ends.

        Args:
            key: the API key.
            urls: the URLs, by the fields that name them.

        Yields:
            The content of each URL.

        Raises:
            RequestError: for one of the fields: the server cannot fetch it, or there are too many.
            QueueFullError: too many requests of the key wait already.
        """
        first = next(iter(urls), None)
        if first is None:
            yield {}
            return
        if self._fetches == "none":
            raise RequestError(
                first, "is a URL, and this server fetches none. Send the picture itself."
            )
        if len(urls) > MAX_URLS:
            raise RequestError(
                first, f"is one of more than {MAX_URLS} URLs. Send some of them as uploads."
            )
        if self._asked[key] >= MAX_WAITING_FETCHES_PER_KEY:
            message = (
                f"The server already fetches pictures for {MAX_WAITING_FETCHES_PER_KEY} of this "
                "key's requests. Try again later."
            )
            raise QueueFullError(message, FETCH_TIMEOUT_S)
        self._asked[key] += 1
        try:
            async with self._turns[key]:
                yield await self._outside.run(self._in_time(urls))
        finally:
            self._asked[key] -= 1

    async def _in_time(self, urls: Mapping[str, str]) -> dict[str, bytes]:
        fetched, at = dict[str, bytes](), ""
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                for name, url in urls.items():
                    at = name
                    if url not in fetched:
                        room = LARGEST_UPLOAD - sum(map(len, fetched.values()))
                        fetched[url] = await self._one(httpx2.URL(url), room)
        except (RequestError, httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            cause = type(error).__name__
            log_event(
                logging.WARNING, "picture not fetched", request_id=request_id.get(), cause=cause
            )
            raise RequestError(at, FETCH_FAILED) from None
        return fetched

    async def _one(self, url: httpx2.URL, room: int) -> bytes:
        """Fetch one URL.

        Raises:
            ValueError: the server does not contact such URLs, or the response is too large or has
                another status or an encoding.
            RequestError, httpx2.HTTPError, OSError: see `open_response`.
        """
        reach = "all" if self._fetches == "all" else "public"
        if url.scheme not in ALLOWED_SCHEMES or (
            reach == "public" and url.port not in PUBLIC_PORTS
        ):
            raise ValueError("unusual scheme or port")
        answer = await open_response(self._outside.client, "GET", url, reach, FETCH_HEADERS)
        try:
            if answer.status_code != 200 or "content-encoding" in answer.headers:
                raise ValueError("status other than 200, or an encoding")
            parts, size = list[bytes](), 0
            async for part in answer.aiter_raw():
                parts.append(part)
                size += len(part)
                if size > room or len(parts) > MAX_SMALL_CHUNKS + size // 2**10:
                    raise ValueError("too large, or too many chunks")
            return b"".join(parts)
        finally:
            await answer.aclose()
