"""Pictures that clients name by URL: fetched while the client waits, before a job is accepted.

Whoever may name a URL could otherwise learn, through this server, what stands behind its firewall
(server-side request forgery). So only public addresses are asked, at the usual ports, and whatever
went wrong is told in the same words.
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
"""Seconds that all pictures of a request have, once it is their turn."""

MAX_CONCURRENT_FETCHES_PER_KEY = 8
"""Requests of a key whose pictures are fetched, or looked at, at once: others of it wait."""

MAX_WAITING_FETCHES_PER_KEY = 64
"""Requests of a key whose pictures are fetched or wait for that; more are refused."""

MAX_URLS = 16
"""URLs that a request may name."""

MAX_SMALL_CHUNKS = 1000
"""Parts of less than a KiB that an answer may come in: each costs as much as a large one."""

ALLOWED_SCHEMES = ("http", "https")
PUBLIC_PORTS = (None, 80, 443)
"""That are asked at public addresses."""

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
"""What is said of a URL, whatever went wrong: else it would tell what is there."""


@dataclass(frozen=True)
class ImageSources:
    """Where the pictures of a request are.

    Attributes:
        files: uploads.
        fetched: what URLs held that it names.
    """

    files: Files
    fetched: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


class ImageFetcher:
    """Fetches pictures."""

    def __init__(self, fetches: FetchPolicy, outside: OutboundClient):
        """Nothing is fetched yet.

        Args:
            fetches: which URLs are.
            outside: what asks.
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
        """What is at some URLs, by URL; while it is looked at, others of the key wait.

        Args:
            key: on whose account.
            urls: by the fields that name them.

        Raises:
            RequestError: one of these fields: it cannot be fetched, or there are too many.
            QueueFullError: too many requests of the key wait for pictures already.
        """
        first = next(iter(urls), None)
        if first is None:
            yield {}
            return
        if self._fetches == "none":
            raise RequestError(first, "URLs are not fetched here; send the picture itself.")
        if len(urls) > MAX_URLS:
            raise RequestError(first, f"is one of more than {MAX_URLS} URLs; send some as uploads.")
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
        """What is at a URL.

        Raises:
            ValueError: it is not asked for, is no plain answer, or larger than there is room for.
            RequestError, httpx2.HTTPError, OSError: as of `ask`.
        """
        reach = "all" if self._fetches == "all" else "public"
        if url.scheme not in ALLOWED_SCHEMES or (
            reach == "public" and url.port not in PUBLIC_PORTS
        ):
            raise ValueError("no usual URL")
        answer = await open_response(self._outside.client, "GET", url, reach, FETCH_HEADERS)
        try:
            if answer.status_code != 200 or "content-encoding" in answer.headers:
                raise ValueError("no plain answer")
            parts, size = list[bytes](), 0
            async for part in answer.aiter_raw():
                parts.append(part)
                size += len(part)
                if size > room or len(parts) > MAX_SMALL_CHUNKS + size // 2**10:
                    raise ValueError("too large, or in too many parts")
            return b"".join(parts)
        finally:
            await answer.aclose()
