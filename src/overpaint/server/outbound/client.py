"""Servers elsewhere, asked at the very addresses that were found to be within reach.

Whoever has a name could give it another address between two looks. Redirects lead where nobody has
looked, proxies resolve for themselves, and a pool knows connections by address, whatever the
certificate was for: there are none of these. Cookies would be one client's to another.
"""

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import httpx2

from overpaint.server.outbound.addresses import MAX_PORT, Reach, resolve_host

T = TypeVar("T")


class OutboundClient:
    """A thread for asking: whoever answers may keep its loop busy, and not the server's.

    Attributes:
        client: that asks, within `do`.
    """

    def __init__(self) -> None:
        self.client = make_client()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="overpaint-outside", daemon=True
        )
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Have something done there."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        """Ask nobody any more."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._runner.close()


def make_client() -> httpx2.AsyncClient:
    """What asks, without a limit on time: callers have theirs, on all of it."""
    return httpx2.AsyncClient(
        timeout=None,
        follow_redirects=False,
        trust_env=False,
        limits=httpx2.Limits(max_keepalive_connections=0),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )


async def open_response(
    client: httpx2.AsyncClient,
    method: str,
    url: httpx2.URL,
    reach: Reach,
    headers: Mapping[str, str],
    content: bytes | None = None,
) -> httpx2.Response:
    """The answer to a request, of which nothing was read but its head: close it.

    The host's addresses are tried one after another until somebody is there. Its name must be in
    the certificate, whatever the address.

    Args:
        client: as `asking` makes it.
        method: GET, POST …
        url: to ask for.
        reach: where that may lead.
        headers: beside `Host`.
        content: that is sent.

    Raises:
        RequestError: as of `resolve`.
        httpx2.HTTPError, OSError, ValueError: nobody is there, or answers.
    """
    if not 0 <= (url.port or 0) <= MAX_PORT:
        raise ValueError(f"there is no port {url.port}")
    failed: httpx2.ConnectError | None = None
    for address in await resolve_host(url, reach):
        request = client.build_request(
            method,
            url.copy_with(host=str(address)),
            content=content,
            headers={**headers, "host": url.netloc.decode()},
            extensions={"sni_hostname": url.raw_host.decode()},
        )
        try:
            return await client.send(request, stream=True)
        except httpx2.ConnectError as error:
            failed = error
    raise failed or OSError(f"{url.host} has no address")
