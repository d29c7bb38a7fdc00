"""Fetches pictures that clients name by URL, before the server accepts a job.

Without limits, a client could explore the network behind the server's firewall (server-side request
forgery). So the server contacts only public addresses at the usual ports, and every failure has the
same message.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2

from overpaint.errors import QueueFullError, RequestError
from overpaint.network.client import OutboundClient
from overpaint.network.download import DownloadRules, download_body
from overpaint.server.settings import DEFAULT_LIMITS, FetchPolicy, FetchSettings
from overpaint.server.store.files import Files
from overpaint.server.telemetry.logs import log_event, request_id


@dataclass(frozen=True)
class ImageSources:
    """Sources of a request's pictures.

    Attributes:
        files: the uploads.
        fetched: the content of URLs that the request names, by URL.
        max_bytes: the largest size of all uploads that a request names.
    """

    files: Files
    fetched: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    max_bytes: int = DEFAULT_LIMITS.body_bytes


class ImageFetcher:
    """Fetches pictures by URL, with limits for each API key."""

    def __init__(
        self,
        fetches: FetchPolicy,
        outside: OutboundClient,
        settings: FetchSettings | None = None,
        max_bytes: int = DEFAULT_LIMITS.upload_bytes,
    ):
        """Use a client.

        Args:
            fetches: the URLs that the server fetches.
            outside: sends the requests.
            settings: limits and timeouts.
            max_bytes: the largest size of all pictures of a request.
        """
        self._settings = settings or FetchSettings()
        self._max_bytes = max_bytes
        self._fetches: FetchPolicy = fetches
        self._outside = outside
        self._asked = Counter[str]()
        self._turns = defaultdict[str, asyncio.Semaphore](
            lambda: asyncio.Semaphore(self._settings.concurrent_requests_per_key)
        )

    @asynccontextmanager
    async def fetch_images(
        self, key: str, urls: Mapping[str, str], count_bytes: Callable[[int], None] | None = None
    ) -> AsyncGenerator[Mapping[str, bytes]]:
        """Fetch the pictures of a request. Other requests of the key wait until the context ends.

        Args:
            key: the API key.
            urls: the URLs, by the fields that name them.
            count_bytes: receives the number of bytes of every part that arrives. An HTTPException
                that it raises ends the fetch.

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
            raise RequestError(first, "This server fetches no URLs. Send the picture itself.")
        settings = self._settings
        if len(urls) > settings.urls_per_request:
            raise RequestError(
                first,
                f"The request has more than {settings.urls_per_request} URLs. Upload some instead.",
            )
        if self._asked[key] >= settings.pending_requests_per_key:
            message = (
                f"The server already fetches pictures for {settings.pending_requests_per_key} "
                "requests of this key. Try again later."
            )
            raise QueueFullError(message, settings.timeout_s)
        self._asked[key] += 1
        try:
            async with self._turns[key]:
                yield await self._outside.run(self._in_time(urls, count_bytes))
        finally:
            self._asked[key] -= 1

    @property
    def failure_message(self) -> str:
        """The message for every failure. A more precise one would describe the internal network."""
        return (
            "The picture cannot be fetched. A URL must lead to a public address and return status "
            f"200 without a redirect, with at most {self._max_bytes:,} bytes within "
            f"{self._settings.timeout_s:g} seconds. Alternatively, send the picture itself."
        )

    async def _in_time(
        self, urls: Mapping[str, str], count_bytes: Callable[[int], None] | None
    ) -> dict[str, bytes]:
        fetched, at = dict[str, bytes](), ""
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                for name, url in urls.items():
                    at = name
                    if url not in fetched:
                        room = self._max_bytes - sum(map(len, fetched.values()))
                        fetched[url] = await self._one(httpx2.URL(url), room, count_bytes)
        except (RequestError, httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            cause = type(error).__name__
            log_event(
                logging.WARNING, "picture not fetched", request_id=request_id.get(), cause=cause
            )
            raise RequestError(at, self.failure_message) from None
        return fetched

    async def _one(
        self, url: httpx2.URL, room: int, count_bytes: Callable[[int], None] | None
    ) -> bytes:
        """Fetch one URL; see `download_body` for the errors."""
        rules = DownloadRules(
            reach="all" if self._fetches == "all" else "public",
            ports=self._settings.public_ports,
            max_bytes=room,
            small_chunks=self._settings.small_chunks,
        )
        return await download_body(self._outside.client, url, rules, count_bytes)
