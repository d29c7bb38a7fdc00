"""Servers elsewhere, asked at the very addresses that were found to be within reach.

Whoever has a name could give it another address between two looks. Redirects lead where nobody has
looked, proxies resolve for themselves, and a pool knows connections by address, whatever the
certificate was for: there are none of these.
"""

from collections.abc import Mapping

import httpx2

from overpaint.server.addresses import Reach, resolve


def asking(seconds: float) -> httpx2.AsyncClient:
    """What asks; each answer has so many seconds."""
    return httpx2.AsyncClient(
        timeout=seconds,
        follow_redirects=False,
        trust_env=False,
        limits=httpx2.Limits(max_keepalive_connections=0),
    )


async def ask(
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
    failed: httpx2.ConnectError | None = None
    for address in await resolve(url, reach):
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
