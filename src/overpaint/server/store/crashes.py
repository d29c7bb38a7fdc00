"""How often a job was interrupted, how many jobs then run beside it, and when it is given up.

A job that kills its worker would do so again and again. Whether a job kills its server is unknown:
servers end for other reasons too. So a lost server puts a job among fewer others, and only very
many of them end the job.
"""

from collections.abc import Iterable
from typing import Literal

from sqlalchemy import Connection, select

from overpaint.server.store.job_rows import Job
from overpaint.server.store.tables import events

RequeueCause = Literal["server stopped", "server lost", "worker died"]
"""Why a running job returns to the queue. A server that stops returns its jobs itself."""

MAX_CRASHES = 5
"""Deaths of the worker during a job after which the job fails."""

MAX_LOST_SERVERS = 30
"""Servers that were lost during a job after which the job fails."""

MAX_CONCURRENCY_BY_CRASHES = (64, 16, 4, 1)
"""Jobs that may run together, by the largest number of crashes that one of them had.

After three crashes a job runs alone. If it kills its worker again, no other job suffers."""


def count_failures(connection: Connection, job: Job, cause: RequeueCause) -> tuple[int, int]:
    """Return the crashes that count for a job, and the servers that were lost during it.

    A lost server counts as a crash until the job would run alone, and no further.

    Args:
        connection: of the store.
        job: that returns to the queue.
        cause: why it does.
    """
    requeued = select(events.c.body).where(events.c.job == job.id, events.c.kind == "requeued")
    last = connection.execute(requeued.order_by(events.c.number.desc()).limit(1)).scalar() or {}
    losses = int(last.get("lost_servers", 0)) + (cause == "server lost")
    crashes = job.crashes
    if cause == "worker died" or (
        cause == "server lost" and crashes < len(MAX_CONCURRENCY_BY_CRASHES) - 1
    ):
        crashes += 1
    return crashes, losses


def describe_giving_up(crashes: int, lost_servers: int) -> str | None:
    """Return the error of a job that was interrupted too often; None if it may run again."""
    if crashes >= MAX_CRASHES:
        return f"given up: the worker or the server crashed {crashes} times during the job."
    if lost_servers >= MAX_LOST_SERVERS:
        return f"given up: the server was lost {lost_servers} times during the job."
    return None


def get_max_concurrency(crashes: Iterable[int]) -> int:
    """Return the number of jobs that may run together, from the crashes of each of them."""
    return MAX_CONCURRENCY_BY_CRASHES[min(max(crashes), len(MAX_CONCURRENCY_BY_CRASHES) - 1)]
