"""Reading the job store: one job, pages of jobs, the queue and histories."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from sqlalchemy import ColumnElement, Connection, Text, and_, cast, func, or_, select

from overpaint.server.store.database import Database
from overpaint.server.store.job_rows import (
    ENDED,
    JOB_COLUMNS,
    SUMMARY_COLUMNS,
    HistoryEntry,
    Job,
    JobSummary,
    State,
    read_job,
)
from overpaint.server.store.tables import events, jobs, tokens, uses


class JobReader:
    """The methods of the job store that change nothing.

    Any thread may call them; each is one transaction.

    Attributes:
        database: the database of the store.
    """

    def __init__(self, database: Database):
        self.database = database
        self._read, self._now = database.read, database.now

    def get(self, name: str) -> Job | None:
        """Return a job by its id; None if there is no such job."""
        if "\0" in name:  # Postgres raises an error for such text.
            return None
        with self._read() as connection:
            return self._find(connection, jobs.c.id == name)

    def get_by_token(self, key: str, token: str) -> Job | None:
        """Return the job that an API key's idempotency key made; None if there is no such job."""
        made = select(tokens.c.job).where(tokens.c.key == key, tokens.c.token == token)
        with self._read() as connection:
            return self._find(connection, jobs.c.id.in_(made))

    def list_page(
        self,
        key: str | None,
        count: int,
        *,
        before: Job | None = None,
        after: Job | None = None,
        states: Iterable[State] | None = None,
        since: float | None = None,
        until: float | None = None,
        max_chars: int | None = None,
    ) -> list[Job]:
        """Return a page of jobs, newest first.

        Args:
            key: the API key whose jobs to return; None for all keys.
            count: the largest number of jobs.
            before: return jobs that are older than this one.
            after: return jobs that are newer than this one.
            states: the states of the jobs; None for all.
            since: return jobs that were created then or later, in seconds since 1970.
            until: return jobs that were created before then.
            max_chars: the largest number of characters in the requests of all jobs together. The
                page ends before it exceeds this number.
        """
        wanted: list[ColumnElement[bool]] = []
        if since is not None:
            wanted.append(jobs.c.created >= since)
        if until is not None:
            wanted.append(jobs.c.created < until)
        if key is not None:
            wanted.append(jobs.c.key == key)
        if states is not None:
            wanted.append(jobs.c.state.in_(list(states)))
        order: list[ColumnElement[Any]] = [jobs.c.created.desc(), jobs.c.id.desc()]
        if before:
            older = and_(jobs.c.created == before.created, jobs.c.id < before.id)
            wanted.append(or_(jobs.c.created < before.created, older))
        if after:
            newer = and_(jobs.c.created == after.created, jobs.c.id > after.id)
            wanted.append(or_(jobs.c.created > after.created, newer))
            order = [jobs.c.created, jobs.c.id]
        with self._read() as connection:
            if max_chars is not None:
                names = self._list_names(connection, wanted, order, count, max_chars)
                wanted = [jobs.c.id.in_(names)]
            found = select(*JOB_COLUMNS).where(*wanted).order_by(*order).limit(count)
            listed = [read_job(row) for row in connection.execute(found)]
        return listed[::-1] if after else listed

    def list_unfinished(self, key: str) -> list[JobSummary]:
        """Return summaries of all jobs of an API key that have not ended, oldest first."""
        found = select(*SUMMARY_COLUMNS).where(
            jobs.c.key == key, jobs.c.state.in_(["queued", "running"])
        )
        with self._read() as connection:
            rows = connection.execute(found.order_by(jobs.c.created, jobs.c.id))
            return [JobSummary(*row) for row in rows]

    def list_latest(self, key: str, count: int) -> list[JobSummary]:
        """Return summaries of the latest jobs of an API key, oldest first.

        Args:
            key: the API key.
            count: the largest number of jobs.
        """
        found = select(*SUMMARY_COLUMNS).where(jobs.c.key == key)
        newest = found.order_by(jobs.c.created.desc(), jobs.c.id.desc()).limit(count)
        with self._read() as connection:
            return [JobSummary(*row) for row in connection.execute(newest)][::-1]

    @staticmethod
    def _list_names(
        connection: Connection,
        wanted: Sequence[ColumnElement[bool]],
        order: Sequence[ColumnElement[Any]],
        count: int,
        max_chars: int,
    ) -> list[str]:
        """Select the first jobs, as many as have `max_chars` characters together, at least one.

        It reads only the lengths: the texts of a hundred jobs can be a hundred megabytes.
        """
        request, origin = (func.length(cast(jobs.c[name], Text)) for name in ("request", "origin"))
        sized = select(jobs.c.id, request + origin).where(*wanted).order_by(*order).limit(count)
        rows = connection.execute(sized).all()
        totals = accumulate(int(row[1]) for row in rows)
        within = sum(total <= max_chars for total in totals)
        return [row[0] for row in rows[: max(1, within)]]

    def get_queue_position(self, name: str) -> tuple[int, float] | None:
        """Return the place of a job in the queue; None if the job is not queued.

        Returns:
            The number of queued jobs before it, and the seconds of work of these and of all
            running jobs.
        """
        with self._read() as connection:
            asked = select(jobs.c.priority, jobs.c.rank, jobs.c.id).where(
                jobs.c.id == name, jobs.c.state == "queued"
            )
            own = connection.execute(asked).first()
            if own is None:
                return None
            sooner = or_(
                jobs.c.priority > own.priority,
                and_(jobs.c.priority == own.priority, jobs.c.rank < own.rank),
                and_(jobs.c.priority == own.priority, jobs.c.rank == own.rank, jobs.c.id < own.id),
            )
            work = func.coalesce(func.sum(jobs.c.work), 0.0)
            count, waiting = connection.execute(
                select(func.count(), work).where(jobs.c.state == "queued", sooner)
            ).one()
            under_way = connection.execute(select(work).where(jobs.c.state == "running")).scalar()
            return int(count), float(waiting) + float(under_way or 0)

    def get_backlog(self) -> tuple[float, float]:
        """Return the seconds of queued work, and the age in seconds of the oldest queued job."""
        work = func.coalesce(func.sum(jobs.c.work), 0.0)
        with self._read() as connection:
            asked = select(work, func.min(jobs.c.created)).where(jobs.c.state == "queued")
            seconds, oldest = connection.execute(asked).one()
            waited = 0.0 if oldest is None else self._now(connection) - oldest
            return float(seconds), float(waited)

    def count_by_state(self) -> dict[State, int]:
        """Return the number of jobs in each state."""
        with self._read() as connection:
            counted = select(jobs.c.state, func.count()).group_by(jobs.c.state)
            found = {row[0]: int(row[1]) for row in connection.execute(counted)}
        states: tuple[State, ...] = ("queued", "running", *ENDED)
        return {state: found.get(state, 0) for state in states}

    def list_history(self, name: str, after: int = 0) -> list[HistoryEntry]:
        """Return the entries of a job's history whose number is greater than `after`."""
        with self._read() as connection:
            said = select(events.c.number, events.c.at, events.c.kind, events.c.body).where(
                events.c.job == name, events.c.number > after
            )
            return [
                HistoryEntry(*row) for row in connection.execute(said.order_by(events.c.number))
            ]

    def get_latest_numbers(self, names: Iterable[str]) -> dict[str, int]:
        """Return the number of each job's last history entry. Deleted jobs are left out."""
        with self._read() as connection:
            last = select(events.c.job, func.max(events.c.number)).group_by(events.c.job)
            rows = connection.execute(last.where(events.c.job.in_(list(names))))
            return {row[0]: row[1] for row in rows}

    def get_time(self) -> float:
        """Return the time of the store's clock, in seconds since 1970."""
        with self._read() as connection:
            return self._now(connection)

    def get_last_change(self) -> float | None:
        """Return when a job was last accepted or ended, in seconds since 1970; None without one."""
        with self._read() as connection:
            last = connection.execute(
                select(func.max(jobs.c.created), func.max(jobs.c.ended))
            ).one()
            return max((at for at in last if at is not None), default=None)

    def list_ended_before(self, until: float, count: int = 1000) -> list[str]:
        """Return the ids of jobs that ended before a time, at most `count`.

        Args:
            until: seconds since 1970.
            count: the largest number of ids.
        """
        with self._read() as connection:
            # Only ended jobs have a time. With their state, SQLite would read all ended jobs.
            old = select(jobs.c.id).where(jobs.c.ended < until).limit(count)
            return list(connection.execute(old).scalars())

    def find_existing(self, names: Iterable[str]) -> set[str]:
        """Return the given ids of jobs that are in the store."""
        with self._read() as connection:
            existing = select(jobs.c.id).where(jobs.c.id.in_(list(names)))
            return set(connection.execute(existing).scalars())

    def find_used_files(self, files: Iterable[str]) -> set[str]:
        """Return the given files that at least one job needs."""
        with self._read() as connection:
            used = select(uses.c.file).where(uses.c.file.in_(list(files))).distinct()
            return set(connection.execute(used).scalars())

    # Within a transaction

    @staticmethod
    def _list(connection: Connection, where: ColumnElement[bool]) -> list[Job]:
        return [read_job(row) for row in connection.execute(select(*JOB_COLUMNS).where(where))]

    def _find(self, connection: Connection, where: ColumnElement[bool]) -> Job | None:
        return next(iter(self._list(connection, where)), None)

    def _get(self, connection: Connection, name: str) -> Job:
        (job,) = self._list(connection, jobs.c.id == name)
        return job
