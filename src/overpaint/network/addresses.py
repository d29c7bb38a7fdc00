"""Rules for network addresses: loopback, public, and which ones the server may contact.

Without these rules, a client could name an internal address, and the server would contact a host
behind its own firewall for that client (server-side request forgery).
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
"""Addresses that the server may contact: public ones, also loopback, or all."""

MAX_PORT = 65535

NAT64_NETWORK = IPv6Network("64:ff9b::/96")
"""IPv6 addresses that NAT64 translates to IPv4. The IPv4 address is in the last 32 bits."""

NON_PUBLIC_NETWORKS = tuple(
    map(ip_network, ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "3fff::/20"))
)
"""Networks that are not public, but that `ipaddress` may call public.

Some Python versions do not know the networks for protocols and documentation. Two cloud providers
serve instance metadata there."""

RESOLVER_POOL = ThreadPoolExecutor(64, "overpaint-resolve")
"""Threads that resolve host names, which may take half a minute if no name server answers.

In asyncio's default pool, a client with such names would block other clients."""


def is_loopback(host: str) -> bool:
    """Return whether a name or address means this machine. Does not resolve names."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_public(address: Address) -> bool:
    """Return whether an address is on the public internet."""
    if isinstance(address, IPv6Address):
        if address in NAT64_NETWORK:
            return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
        if address.sixtofour or address.teredo or address.is_site_local:
            return False
    if any(address in network for network in NON_PUBLIC_NETWORKS):
        return False
    # IPv4-mapped IPv6 addresses (::ffff:0:0/96) are reserved.
    return address.is_global and not (address.is_multicast or address.is_reserved)


def check_url(url: str, reach: Reach) -> None:
    """Refuse a webhook URL whose host is an address that the server must not contact.

    Does not resolve names; `resolve_host` does that when the server sends the webhook.

    Raises:
        RequestError: for field "webhook": the text is not a URL, or its host is such an address.
    """
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise RequestError("webhook", f"{url[:200]!r} is not a URL: {error}.") from None
    if not 0 <= (parsed.port or 0) <= MAX_PORT:
        raise RequestError("webhook", f"{parsed.port} is not a port. Use one from 1 to {MAX_PORT}.")
    host = parsed.host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        host = "127.0.0.1"
    try:
        address = ip_address(host)
    except ValueError:
        try:
            address = IPv4Address(socket.inet_aton(host))  # Resolvers accept 2130706433 and 0x7f.1.
        except (OSError, UnicodeError):
            return
    _check_address(address, reach)


async def resolve_host(url: httpx2.URL, reach: Reach) -> list[Address]:
    """Resolve the host of a URL.

    Returns:
        At least one address, in the order in which to try them.

    Raises:
        RequestError: for field "webhook": the server must not contact one of the addresses.
        OSError, UnicodeError: the host has no address.
    """
    with suppress(ValueError):
        address = ip_address(url.host)
        _check_address(address, reach)
        return [address]
    port = url.port or (443 if url.scheme == "https" else 80)
    asked = partial(
        socket.getaddrinfo,
        url.raw_host.decode(),  # Certificates use this IDNA version; Python's own is older.
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
    # The message does not name the address, because only this network may know the name.
    if reach == "all" or is_public(address) or (reach == "loopback" and address.is_loopback):
        return
    raise RequestError(
        "webhook",
        "The URL leads to an address that is not public. Use a public one, or start the server "
        "with --allow-private-webhooks.",
    )
