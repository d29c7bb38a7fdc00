"""An HTTP client that connects only to addresses that the server has checked.

The owner of a host name could change its address between a check and a connection, so the client
connects to the checked address itself. It follows no redirects and uses no proxies, because those
lead to unchecked addresses. It pools no connections, because a pool would ignore which name the
certificate was for. It keeps no cookies, because they would leak between the server's clients.
"""

import asyncio
import functools
import ssl
import threading
from collections.abc import Coroutine, Mapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import httpx2

from overpaint.network.addresses import MAX_PORT, Reach, resolve_host

T = TypeVar("T")


class OutboundClient:
    """A thread with its own event loop for outgoing requests.

    A remote server that sends many small chunks keeps that loop busy, not the server's.

    Attributes:
        client: sends requests. Use it only within `run`.
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
        """Run a coroutine in the thread and return its result."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        """Stop the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._runner.close()


@functools.cache
def _make_ssl_context() -> ssl.SSLContext:
    """Make the context that all clients share: each would read the certificates, 30 ms."""
    return httpx2.create_ssl_context(trust_env=False)


def make_client() -> httpx2.AsyncClient:
    """Make the HTTP client. It has no timeout, because callers limit the total time."""
    return httpx2.AsyncClient(
        verify=_make_ssl_context(),
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
    """Send a request and return the response without its body. The caller must close it.

    Tries the host's addresses one after another until a connection succeeds. The certificate must
    be valid for the host's name.

    Args:
        client: from `make_client`.
        method: the HTTP method.
        url: the URL.
        reach: the addresses that the server may contact.
        headers: headers in addition to `Host`.
        content: the body.

    Raises:
        RequestError: see `resolve_host`.
        httpx2.HTTPError, OSError, ValueError: no connection succeeds, or the response is broken.
    """
    if not 0 <= (url.port or 0) <= MAX_PORT:
        raise ValueError(f"{url.port} is not a port.")
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
