"""FastAPI dependencies that routes of all dialects use."""

from collections import Counter
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends, Header, HTTPException, Path, Query
from fastapi import Request as Incoming

from overpaint.server.http.auth import SchemesDep, authenticate
from overpaint.server.http.problems import MIN_RETRY_AFTER_S
from overpaint.server.jobs.service import Service
from overpaint.server.settings import Limits

JobId = Annotated[str, Path(description="Id of the job.")]
"""The id of a job in a path."""


def get_service(incoming: Incoming) -> Service:
    """Return the running service."""
    service: Service = incoming.app.state.service
    return service


def get_base_url(incoming: Incoming) -> str:
    """Return the URL under which the client reaches this server, without a slash at its end."""
    return str(incoming.base_url).rstrip("/")


def authorize_viewer(
    incoming: Incoming,
    name: JobId,
    file: Annotated[str, Path(description="Name of the result file.")],
    expires: Annotated[
        int | None, Query(description="Expiry time of a signed link in seconds since 1970.")
    ] = None,
    signature: Annotated[str | None, Query(description="Signature of a signed link.")] = None,
    schemes: SchemesDep = None,
) -> str | None:
    """Check that the client may download a result file, by its API key or by a signed link.

    Returns:
        The key's digest, as `authenticate`; None for a signed link.

    Raises:
        HTTPException: 401, see `authenticate`; 403, the link's signature is not valid, or the link
            has expired.
    """
    if expires is None and signature is None:
        return authenticate(incoming)
    if get_service(incoming).links.verify(name, file, expires or 0, signature or ""):
        return None
    raise HTTPException(403, "The signed link is not valid or has expired. Request a new link.")


async def limit_listeners(
    incoming: Incoming, key: Annotated[str, Depends(authenticate)]
) -> AsyncGenerator[None]:
    """Count a client that follows a job, until its response ends.

    Raises:
        HTTPException: 429, `Limits.event_streams_per_key` clients of this key follow jobs already.
    """
    listeners: Counter[str] = incoming.app.state.listeners
    limits: Limits = incoming.app.state.settings.limits
    most = min(limits.event_streams_per_key, incoming.app.state.connections_per_key)
    if listeners[key] >= most:
        message = (
            f"{most:,} clients of this API key follow jobs already. Close "
            "some of their event streams."
        )
        raise HTTPException(429, message, {"Retry-After": str(MIN_RETRY_AFTER_S)})
    listeners[key] += 1
    try:
        yield
    finally:
        listeners[key] -= 1


LISTENER_LIMIT = [Depends(limit_listeners)]
"""Dependencies of routes that stream a job's events until it ends."""


ServiceDep = Annotated[Service, Depends(get_service)]
"""The running service."""


ViewerDep = Annotated[str | None, Depends(authorize_viewer)]
"""The API key of the client that downloads a result file; see `authorize_viewer`."""


LastEventId = Annotated[
    int,
    Header(
        alias="Last-Event-ID",
        ge=0,
        le=2**31 - 1,
        description="Id of the last event that the client received. The stream resumes after it.",
    ),
]
"""The number of the last event that the client received; 0 for none."""


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        max_length=256,
        description="A value that identifies the request. If the client repeats the request with "
        "the same value, the server returns the first job and starts no second one.",
    ),
]
"""The client's idempotency key."""
