"""FastAPI dependencies that routes of all dialects use."""

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Annotated

from fastapi import Depends, Header, HTTPException, Path, Query
from fastapi import Request as Incoming
from starlette.types import Receive

from overpaint.server.http.auth import SchemesDep, authenticate
from overpaint.server.http.problems import MIN_RETRY_AFTER_S
from overpaint.server.http.request_budget import NO_BUDGET, RequestBudget
from overpaint.server.http.threads import current_key
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


@contextmanager
def count_request(incoming: Incoming) -> Generator[Receive]:
    """Count a request of the current key in the server's budget, see `RequestBudget`."""
    budget: RequestBudget = getattr(incoming.app.state, "budget", NO_BUDGET)
    with budget.count_request(current_key.get(), incoming.receive) as receive:
        yield receive


async def authorize_viewer(
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
        return await authenticate(incoming)
    if get_service(incoming).links.verify(name, file, expires or 0, signature or ""):
        return None
    raise HTTPException(403, "The signed link is not valid or has expired. Request a new link.")


async def offer_listener_count(
    incoming: Incoming, key: Annotated[str, Depends(authenticate)]
) -> AsyncGenerator[Callable[[], None]]:
    """Provide a function that counts the client as one that follows a job.

    It counts until the response ends, and raises HTTPException 429 if
    `Limits.event_streams_per_key` clients of the API key follow jobs already.
    """
    with ExitStack() as stack:
        yield lambda: stack.enter_context(_count_listener(incoming, key))


@contextmanager
def _count_listener(incoming: Incoming, key: str) -> Generator[None]:
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


CountListener = Annotated[Callable[[], None], Depends(offer_listener_count)]
"""Counts the client as one that follows a job. A route that only sometimes waits for a job calls
it when it does."""


async def limit_listeners(count_listener: CountListener) -> None:
    """Count every client of a route; see `offer_listener_count`."""
    count_listener()


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
