"""Checks of the `Host` and `Origin` headers, which protect the server from foreign web pages.

A page in a browser can send requests to servers of the same machine. The browser adds the page's
`Origin`; the server refuses origins other than its own and the allowed ones. With DNS rebinding, a
page's host name resolves to the server, so the page looks like one of the server's own. Then the
`Host` header contains that name, and the server refuses names that are not its own.
"""

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from overpaint.network.addresses import is_loopback
from overpaint.server.http.problems import problem_response

DEFAULT_PORTS = {"http": ":80", "https": ":443"}
"""The port of each scheme that browsers leave out of an origin."""


class HostOriginMiddleware:
    """Refuses requests for other hosts, and requests from pages of other origins."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, origins: Collection[str]):
        """Wrap an application.

        Args:
            app: the application.
            hosts: names of the server, with or without a port, in addition to loopback names; None
                allows any name.
            origins: `scheme://host:port` of allowed pages, in every spelling (`spell_origin`), in
                addition to the server's own.
        """
        self._app = app
        self._hosts = None if hosts is None else set(map(_read_host_name, hosts))
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle or refuse one request."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            refusal = reason = None
            if not self._accepts(host):
                message = (
                    f"This server does not accept the host name {host[:200]!r}. Start it with "
                    "--allowed-host to allow the name."
                )
                refusal, reason = problem_response(400, "Refused", message), "forbidden_host"
            elif origin and origin not in self._origins and not _is_own(origin, host):
                message = (
                    f"This server does not accept requests from pages of {origin[:200]!r}. Start "
                    "it with --allowed-origin to allow them."
                )
                refusal, reason = problem_response(403, "Refused", message), "forbidden_origin"
            if refusal:
                scope.setdefault("state", {})["refused"] = reason
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _accepts(self, host: str) -> bool:
        if self._hosts is None:
            return True
        name = _read_host_name(host)
        return name != "" and (name in self._hosts or is_loopback(name))


def _read_host_name(host: str) -> str:
    """Return the name or the address in a host, in lower case; "" if the host is malformed."""
    if host.count(":") > 1 and "[" not in host:
        return host.lower()  # an IPv6 address without brackets, which has no port
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def spell_origin(origin: str) -> tuple[str, ...]:
    """Return an origin in lower case, with and without the default port of its scheme."""
    scheme, _, place = origin.lower().partition("://")
    port = DEFAULT_PORTS.get(scheme, "")
    place = place.removesuffix(port)
    own_port = re.search(r":\d*$", place)  # An IPv6 address ends with a bracket.
    return tuple(f"{scheme}://{place}{end}" for end in ("", "" if own_port else port))


def _is_own(origin: str, host: str) -> bool:
    """Return whether the page is the server's own. Behind a TLS proxy, the schemes may differ."""
    own = f"{origin.partition('://')[0]}://{host}"
    return host != "" and set(spell_origin(origin)) == set(spell_origin(own))
