"""The room in the queue: which jobs fit, and how long an API key's own jobs delay the next one."""

from sqlalchemy import Connection, and_, func, select

from overpaint.errors import QueueFullError
from overpaint.server.settings import Limits
from overpaint.server.store.job_rows import NewJob
from overpaint.server.store.tables import jobs


def check_room(connection: Connection, new: NewJob, limits: Limits) -> None:
    """Refuse a job that does not fit into the queue.

    In a full queue, a key that has less than its share of it still has room, up to twice the
    limits. So one key cannot fill the queue for the others.
    """
    mine = jobs.c.key == new.key
    others = func.count(jobs.c.key.distinct()).filter(~mine)
    total, own_total = (
        func.coalesce(s, 0) for s in (func.sum(jobs.c.work), func.sum(jobs.c.work).filter(mine))
    )
    counted = select(func.count(), func.count().filter(mine), total, own_total, others)
    row = connection.execute(counted.where(jobs.c.state == "queued")).one()
    count, own, work, own_work, other_keys = row
    if _is_full(count, own, limits.queued_jobs, other_keys + 1) or _is_full(
        work, own_work, limits.queued_work_s, other_keys + 1
    ):
        raise QueueFullError(
            f"{count} jobs are waiting, {work:.0f} s of work; try again later.", work
        )
    if limits.queued_jobs_per_key is not None and own >= limits.queued_jobs_per_key:
        raise QueueFullError(f"{own} of your jobs are waiting; try again later.", work)


def get_key_backlog(connection: Connection, new: NewJob) -> float:
    """Return the seconds of work of this API key's queued jobs that are at most as long.

    The rank of a job is the time at which it would end if its key had the device alone and ran
    its shortest job first. A key that sends a hundred jobs delays its own jobs, not those of
    other keys.
    """
    own = and_(jobs.c.key == new.key, jobs.c.state == "queued", jobs.c.work <= new.work)
    return float(connection.execute(select(func.sum(jobs.c.work)).where(own)).scalar() or 0)


def _is_full(used: float, own: float, limit: float, keys: int) -> bool:
    """Return whether a key has no room: all is used, and the key has its share of it."""
    return used >= limit and (own >= limit / keys or used >= 2 * limit)
