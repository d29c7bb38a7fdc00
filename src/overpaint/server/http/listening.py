"""The addresses on which the server listens."""

import errno
import os
import socket

from overpaint.errors import RequestError


def bind_sockets(host: str, port: int) -> list[socket.socket]:
    """Bind a socket to each address of a host, before anything else of the server starts.

    Args:
        host: a name or an address; "" for all addresses of the machine.
        port: 0 for a free one.

    Raises:
        RequestError: the host has no address here, or the port is in use or not allowed.
    """
    bound: list[socket.socket] = []
    failures: list[OSError] = []
    try:
        flags = socket.AI_PASSIVE
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, UnicodeError) as error:
        raise make_address_error(host, port, error) from error
    for family, kind, protocol, _, address in dict.fromkeys(found):
        chosen = bound[0].getsockname()[1] if bound else port
        try:
            bound.append(_bind(family, kind, protocol, (address[0], chosen, *address[2:])))
        except OSError as error:
            failures.append(error)
    # A machine without IPv6 has names with IPv6 addresses.
    fatal = [error for error in failures if not bound or error.errno not in UNAVAILABLE_ERRNOS]
    if fatal:
        for each in bound:
            each.close()
        raise make_address_error(host, port, fatal[0]) from fatal[0]
    return bound


UNAVAILABLE_ERRNOS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Errors of an address that this machine does not have."""


def make_address_error(host: str, port: int, error: Exception) -> RequestError:
    """Return the error that names what to change, for one of the system."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES):
        return RequestError(
            "port",
            f"The server cannot listen on port {port} of {host}: {reason}. "
            "Stop the program that uses it, or choose another port.",
        )
    return RequestError(
        "host", f"The server cannot listen on {host}: {reason}. Give an address of this machine."
    )


def _bind(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # On Windows, the option would let two servers share a port.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made
