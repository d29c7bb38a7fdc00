"""Deps."""

from collections import Counter
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends, Header, HTTPException
from fastapi import Request as Incoming

from overpaint.server.http.auth import SchemesDep, authenticate
from overpaint.server.http.problems import MIN_RETRY_AFTER_S
from overpaint.server.jobs.service import Service

MAX_LISTENERS_PER_KEY = 1024
"""Clients of a key that may listen to jobs at once."""


def get_service(incoming: Incoming) -> Service:
    """The running server."""
    service: Service = incoming.app.state.service
    return service


def get_base_url(incoming: Incoming) -> str:
    """Where the client reaches this server."""
    return str(incoming.base_url).rstrip("/")


def authorize_viewer(
    incoming: Incoming,
    name: str,
    file: str,
    expires: int | None = None,
    signature: str | None = None,
    schemes: SchemesDep = None,
) -> str | None:
    """Who looks at a picture: as `authenticate`, or None for whoever has a link to it.

    Raises:
        HTTPException: 401, as `authenticate`; 403, the link is none of ours, or has expired.
    """
    if expires is None and signature is None:
        return authenticate(incoming)
    if get_service(incoming).links.verify(name, file, expires or 0, signature or ""):
        return None
    raise HTTPException(403, "the link is wrong or has expired; ask for another.")


async def limit_listeners(
    incoming: Incoming, key: Annotated[str, Depends(authenticate)]
) -> AsyncGenerator[None]:
    """Count somebody who listens to a job, until they do not any more.

    Raises:
        HTTPException: 429, as many of this key listen as may.
    """
    listeners: Counter[str] = incoming.app.state.listeners
    if listeners[key] >= MAX_LISTENERS_PER_KEY:
        message = f"{MAX_LISTENERS_PER_KEY:,} clients listen already; end some of their streams."
        raise HTTPException(429, message, {"Retry-After": str(MIN_RETRY_AFTER_S)})
    listeners[key] += 1
    try:
        yield
    finally:
        listeners[key] -= 1


LISTENER_LIMIT = [Depends(limit_listeners)]
"""For routes that tell of a job for as long as it goes on."""


ServiceDep = Annotated[Service, Depends(get_service)]


ViewerDep = Annotated[str | None, Depends(authorize_viewer)]


LastEventId = Annotated[int, Header(alias="Last-Event-ID", ge=0, le=2**31 - 1)]
"""The number of the event behind which a story goes on."""


IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", max_length=256)]
