"""Deps."""

from collections import Counter
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends, Header, HTTPException
from fastapi import Request as Incoming

from overpaint.server.http.auth import key_of
from overpaint.server.http.problems import RETRY
from overpaint.server.jobs.service import Service

LISTENERS = 1024
"""Clients of a key that may listen to jobs at once."""


def service_of(incoming: Incoming) -> Service:
    """The running server."""
    service: Service = incoming.app.state.service
    return service


def base_of(incoming: Incoming) -> str:
    """Where the client reaches this server."""
    return str(incoming.base_url).rstrip("/")


def viewer_of(
    incoming: Incoming,
    name: str,
    file: str,
    expires: int | None = None,
    signature: str | None = None,
) -> str | None:
    """Who looks at a picture: as `key_of`, or None for whoever has a link to it.

    Raises:
        HTTPException: 401, as `key_of`; 403, the link is none of ours, or has expired.
    """
    if expires is None and signature is None:
        return key_of(incoming)
    if service_of(incoming).links.fits(name, file, expires or 0, signature or ""):
        return None
    raise HTTPException(403, "the link is wrong or has expired; ask for another.")


async def listening(
    incoming: Incoming, key: Annotated[str, Depends(key_of)]
) -> AsyncGenerator[None]:
    """Count somebody who listens to a job, until they do not any more.

    Raises:
        HTTPException: 429, as many of this key listen as may.
    """
    listeners: Counter[str] = incoming.app.state.listeners
    if listeners[key] >= LISTENERS:
        message = f"{LISTENERS:,} clients listen already; end some of their streams."
        raise HTTPException(429, message, {"Retry-After": str(RETRY)})
    listeners[key] += 1
    try:
        yield
    finally:
        listeners[key] -= 1


LISTENS = [Depends(listening)]
"""For routes that tell of a job for as long as it goes on."""


Serves = Annotated[Service, Depends(service_of)]


Viewer = Annotated[str | None, Depends(viewer_of)]


LastEvent = Annotated[int, Header(alias="Last-Event-ID", ge=0, le=2**31 - 1)]
"""The number of the event behind which a story goes on."""


Token = Annotated[str | None, Header(alias="Idempotency-Key", max_length=256)]
