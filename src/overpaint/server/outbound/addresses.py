"""Which addresses are this machine's own, and which ones the server may ask, or post to.

Whoever may name an address to the server could otherwise reach, through it, what stands behind the
same firewall (server-side request forgery).
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

import httpx2

from overpaint.errors import RequestError

Address = IPv4Address | IPv6Address

Reach = Literal["public", "loopback", "all"]
"""What may be asked: public addresses; this machine's own as well; any."""

MAX_PORT = 65535

NAT64_NETWORK = IPv6Network("64:ff9b::/96")
"""Networks without IPv4 reach it by these: its addresses are the last 32 bits."""

NON_PUBLIC_NETWORKS = tuple(
    map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "3fff::/20"))
)
"""Networks that are not public, whatever `ipaddress` says: not all versions of Python know those
for protocols and documentation, and two clouds have their metadata there."""

RESOLVER_POOL = ThreadPoolExecutor(64, "overpaint-resolve")
"""Threads that ask for addresses, which may take half a minute where nobody answers: in asyncio's
own, whoever has the server post to such names would have all others wait."""


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, whatever a resolver says."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_public(address: Address) -> bool:
    """Whether an address is anybody's, and so reaches nothing that is hidden from others."""
    if isinstance(address, IPv6Address):
        if address in NAT64_NETWORK:
            return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
        if address.sixtofour or address.teredo or address.is_site_local:
            return False
    if any(address in network for network in NON_PUBLIC_NETWORKS):
        return False
    # IPv4 within IPv6 (::ffff:0:0/96) is reserved.
    return address.is_global and not (address.is_multicast or address.is_reserved)


def check_url(url: str, reach: Reach) -> None:
    """Refuse a webhook's URL that says by itself that it leads where posts may not go.

    Raises:
        RequestError: field "webhook": it is no URL, or its host is such an address.
    """
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise RequestError("webhook", f"{url[:200]!r} is no URL: {error}.") from None
    if not 0 <= (parsed.port or 0) <= MAX_PORT:
        raise RequestError("webhook", f"there is no port {parsed.port}; give one that there is.")
    host = parsed.host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        host = "127.0.0.1"
    try:
        address = ip_address(host)
    except ValueError:
        try:
            address = IPv4Address(socket.inet_aton(host))  # 2130706433, 0x7f.1: resolvers know them
        except (OSError, UnicodeError):
            return
    _check_address(address, reach)


async def resolve_host(url: httpx2.URL, reach: Reach) -> list[Address]:
    """The addresses of a URL's host, in the order in which to try them; at least one.

    Raises:
        RequestError: field "webhook": any of them is not within reach.
        OSError, UnicodeError: there are none.
    """
    with suppress(ValueError):
        address = ip_address(url.host)
        _check_address(address, reach)
        return [address]
    port = url.port or (443 if url.scheme == "https" else 80)
    asked = partial(
        socket.getaddrinfo,
        url.raw_host.decode(),  # which certificates are for: Python's own IDNA is an older one
        port,
        type=socket.SOCK_STREAM,
        proto=socket.IPPROTO_TCP,
    )
    found = await asyncio.get_running_loop().run_in_executor(RESOLVER_POOL, asked)
    addresses = [ip_address(entry[4][0]) for entry in found]
    for address in addresses:
        _check_address(address, reach)
    return addresses


def _check_address(address: Address, reach: Reach) -> None:
    # Which address a name has here is not told: it may be a name that only this network knows.
    if reach == "all" or is_public(address) or (reach == "loopback" and address.is_loopback):
        return
    raise RequestError(
        "webhook",
        "leads to an address that is not public. Give one that is, or have the server started "
        "with --allow-private-webhooks.",
    )
