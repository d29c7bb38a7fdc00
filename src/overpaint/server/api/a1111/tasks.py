"""Requests of clients that have not ended: the one that a client sees, and the one that it ends.

The web UI has one user and runs one request at a time. Here many clients may share an API key. So
the server remembers, for each caller, the request that `/progress` showed or that the caller sent:
`/interrupt` ends this one, and no other that began later.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from fastapi import FastAPI
from fastapi import Request as Incoming

from overpaint.server.jobs.service import Service
from overpaint.server.store.job_rows import ENDED, Job, JobSummary

MAX_CALLERS = 1000
"""Largest number of callers whose request the server remembers."""

MAX_LATEST_JOBS = 200
"""Number of a key's latest jobs among which the server finds a request after its end."""

DIALECT = "a1111"
"""The name of this dialect in origins."""

Caller = tuple[str, str, str]
"""A client: its API key, its address and its user agent."""


class Followed(NamedTuple):
    """The request that the server remembers for a caller.

    Attributes:
        name: of the request.
        is_own: True if the caller sent it; False if `/progress` only showed it.
    """

    name: str
    is_own: bool


@dataclass(frozen=True)
class Task:
    """A request of a client: one job, or one for each of several images.

    Attributes:
        name: the client's name for it (`force_task_id`), or the id of its job.
        jobs: its jobs in the order in which they were accepted.
    """

    name: str
    jobs: tuple[JobSummary, ...]

    @property
    def size(self) -> int:
        """The number of its jobs, including those that are not found."""
        return max(len(self.jobs), self.jobs[0].task_jobs)

    @property
    def unfinished(self) -> tuple[JobSummary, ...]:
        """The jobs that have not ended."""
        return tuple(job for job in self.jobs if job.state not in ENDED)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Keep the callers' requests on the application while it runs."""
    app.state.a1111_tasks = OrderedDict[Caller, Followed]()
    yield


def get_task_name(job: JobSummary) -> str:
    """Return the name of the request that a job belongs to."""
    return job.task or job.id


async def note_submitted(incoming: Incoming, service: Service, key: str, name: str) -> None:
    """Remember a request for its caller, unless an earlier one of the caller has not ended."""
    earlier = _get_remembered(incoming, key)
    if not (earlier and earlier.is_own and await _find_unfinished(service, key, earlier.name)):
        _remember(incoming, key, Followed(name, is_own=True))


async def find_visible_task(incoming: Incoming, service: Service, key: str) -> Task | None:
    """Return the unfinished request that `/progress` shows to a caller, and remember it.

    This is the remembered one while it has not ended, otherwise the oldest one of the API key.
    """
    remembered = _get_remembered(incoming, key)
    task = remembered and await _find_unfinished(service, key, remembered.name)
    if not task:
        task = await _find_oldest(service, key)
        _remember(incoming, key, Followed(task.name, is_own=False) if task else None)
    return task


async def find_task_to_end(
    incoming: Incoming, service: Service, key: str, name: str | None
) -> Task | None:
    """Return the unfinished request that a caller wants to end.

    Args:
        incoming: the request to end something.
        service: the running service.
        key: the API key of the caller.
        name: the client's name for it; None for the one that the caller sees.

    Returns:
        None if the request has ended.
    """
    if name is not None:
        return await _find_unfinished(service, key, name)
    remembered = _get_remembered(incoming, key)
    if remembered is None:
        return await _find_oldest(service, key)
    return await _find_unfinished(service, key, remembered.name)


async def find_task(service: Service, key: str, name: str) -> Task | None:
    """Return a request of an API key by its name, also after its end."""

    def read() -> list[JobSummary]:
        latest = service.jobs.list_latest(key, MAX_LATEST_JOBS)
        return [*service.jobs.list_unfinished(key), *latest]

    found = {job.id: job for job in await asyncio.to_thread(read)}
    return _make_task(name, sorted(found.values(), key=lambda job: (job.created, job.id)))


async def list_unfinished_names(service: Service, key: str) -> list[str]:
    """Return the names of an API key's unfinished requests, oldest first."""
    return list(dict.fromkeys(map(get_task_name, await _list_unfinished(service, key))))


async def cancel_jobs(service: Service, jobs: Iterable[Job | JobSummary]) -> None:
    """Cancel jobs that have not ended."""
    for job in jobs:
        await service.cancel(job.id)


async def _find_unfinished(service: Service, key: str, name: str) -> Task | None:
    return _make_task(name, await _list_unfinished(service, key))


async def _find_oldest(service: Service, key: str) -> Task | None:
    """Return the request that runs for the longest time; without one, the one that waits so."""
    jobs = await _list_unfinished(service, key)
    running = (job for job in jobs if job.state == "running")
    first = next(running, next(iter(jobs), None))
    return _make_task(get_task_name(first), jobs) if first else None


async def _list_unfinished(service: Service, key: str) -> list[JobSummary]:
    """Return an API key's unfinished jobs of this dialect, oldest first."""
    jobs = await asyncio.to_thread(service.jobs.list_unfinished, key)
    return [job for job in jobs if job.dialect == DIALECT]


def _make_task(name: str, jobs: Iterable[JobSummary]) -> Task | None:
    own = tuple(job for job in jobs if job.dialect == DIALECT and get_task_name(job) == name)
    return Task(name, own) if own else None


def _get_caller(incoming: Incoming, key: str) -> Caller:
    host = incoming.client.host if incoming.client else ""
    return key, host, incoming.headers.get("user-agent", "")[:200]


def _get_remembered(incoming: Incoming, key: str) -> Followed | None:
    callers: OrderedDict[Caller, Followed] = incoming.app.state.a1111_tasks
    return callers.get(_get_caller(incoming, key))


def _remember(incoming: Incoming, key: str, task: Followed | None) -> None:
    callers: OrderedDict[Caller, Followed] = incoming.app.state.a1111_tasks
    caller = _get_caller(incoming, key)
    callers.pop(caller, None)
    if task is not None:
        callers[caller] = task
        while len(callers) > MAX_CALLERS:
            callers.popitem(last=False)
