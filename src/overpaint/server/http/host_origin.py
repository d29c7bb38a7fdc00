"""What stands before every wire format: whom the server takes itself for, pages, and sizes.

A page in a browser reaches servers of the same machine. It says who it is (`Origin`), and is
refused unless it is the server's own or was allowed. A page whose name was made to lead here (DNS
rebinding) takes itself for the server's own; but then the server is asked for under that name
(`Host`), which is not one of its names.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from overpaint.server.http.problems import problem_response
from overpaint.server.outbound.addresses import is_loopback


class HostOriginMiddleware:
    """Refuses requests under names that are not the server's, and those of strange pages."""

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None, origins: Collection[str]):
        """Stand before an application.

        Args:
            app: what answers.
            hosts: names of the server beside loopback's; None for any.
            origins: `scheme://host:port` of pages that may ask, beside the server's own.
        """
        self._app = app
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, origin = headers.get("host", ""), headers.get("origin")
            refusal = reason = None
            if not self._is_ours(host):
                message = f"{host[:200]!r} is no name of this server; see --allowed-host."
                refusal, reason = problem_response(400, "refused", message), "forbidden_host"
            elif origin and origin not in self._origins and not _same(origin, host):
                message = f"pages of {origin[:200]!r} may not ask here; see --allowed-origin."
                refusal, reason = problem_response(403, "refused", message), "forbidden_origin"
            if refusal:
                scope.setdefault("state", {})["refused"] = reason
                await refusal(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        if self._hosts is None:
            return True
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return name in self._hosts or is_loopback(name)


def _same(origin: str, host: str) -> bool:
    """Whether a page is the server's own. A proxy may have taken TLS off, so schemes may differ."""
    return origin.partition("://")[2].lower() == host.lower() != ""
