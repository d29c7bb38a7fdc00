"""The durable store of jobs: what was acknowledged ends exactly once, whatever is killed.

    submit ──► queued ──claim──► running ──finish──► succeeded | failed
                 │  ▲               │
                 │  └──give back────┤   its owner let it go, or its lease ran out
                 └─────cancel───────┴─► canceled

A job runs at least once and is published at most once: `claim` gives every attempt a number, and
`finish` counts for the attempt that is under way alone. Result files are written before; state,
event, webhook and the ledger's entry are one transaction.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Text,
    and_,
    cast,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from overpaint.errors import IdempotencyError, QueueFullError
from overpaint.events import NO_COST, Spent
from overpaint.server.settings import DEFAULT_LIMITS, Limits
from overpaint.server.store import outbox, usage
from overpaint.server.store.database import Database
from overpaint.server.store.origins import NativeOrigin, Origin, read_origin, write_origin
from overpaint.server.store.outbox import WEBHOOK_EVENTS
from overpaint.server.store.tables import events, jobs, tokens, uses

OriginT = TypeVar("OriginT", bound=Origin)

State = Literal["queued", "running", "succeeded", "failed", "canceled"]
ENDED: tuple[State, ...] = ("succeeded", "failed", "canceled")

MAX_CRASHES = 5
"""Times that a job may be under way when its server or worker dies, before it is given up."""

MAX_CONCURRENCY_BY_CRASHES = (64, 16, 4, 1)
"""Jobs that may be under way beside each other, with one that so often was when something died: at
last it is alone, so that whoever kills its worker is found out, and does not drag others along."""

WAIT_S_PER_WORK_S = 4.0
"""Seconds of waiting that make up for one second of work, in the order of the queue."""


@dataclass(frozen=True)
class NewJob:
    """A job to be accepted.

    Attributes:
        id: unguessable, from `secrets`.
        key: on whose account; "" where there are none.
        model: that it is for, by name.
        request: what to do, as JSON; pictures by the names of their files.
        work: seconds of the device that it is expected to take.
        origin: what the dialect that it came by remembers of it.
        webhook: where to post what happens to it.
        webhook_events: of `outbox.EVENTS`, those to post.
        files: the pictures that it needs, by the hash of their content.
        priority: higher goes first.
        token: the client's idempotency key.
        body: the hash of what came with it.
    """

    id: str
    key: str
    model: str
    request: Mapping[str, Any]
    work: float
    origin: Origin = field(default_factory=NativeOrigin)
    webhook: str | None = None
    webhook_events: Sequence[str] = WEBHOOK_EVENTS
    files: Iterable[str] = ()
    priority: int = 0
    token: str | None = None
    body: str = ""


@dataclass(frozen=True)
class Job:
    """A job as it is stored.

    Attributes:
        state: where it is.
        attempt: how often it was claimed; with the owner, what proves a right to it.
        crashes: how often it was under way when something died.
        owner: of the attempt that is under way.
        canceling: it is under way, and its end was asked for.
        created: seconds since 1970.
        started: when it was first claimed.
        ended: when it reached its end.
        error: why it failed.
        result: what came of it.
    """

    id: str
    key: str
    model: str
    request: dict[str, Any]
    origin: Origin
    webhook: str | None
    priority: int
    work: float
    state: State
    attempt: int
    crashes: int
    owner: str | None
    canceling: bool
    created: float
    started: float | None
    ended: float | None
    error: str | None
    result: dict[str, Any] | None

    def origin_as(self, kind: type[OriginT]) -> OriginT:
        """Return the origin, which must be of a dialect's type.

        Raises:
            TypeError: the job came by another dialect.
        """
        if not isinstance(self.origin, kind):
            raise TypeError(f"Job {self.id} came by the {self.origin.dialect} API.")
        return self.origin

    @property
    def flagged(self) -> list[dict[str, Any]]:
        """Its pictures that are not published, as `safety.Flag`."""
        return (self.result or {}).get("flagged", [])


@dataclass(frozen=True)
class Attempt:
    """What proves a right to a job that is under way, and whether its end was asked for."""

    id: str
    attempt: int
    owner: str
    canceling: bool


@dataclass(frozen=True)
class HistoryEntry:
    """One entry of a job's history: "queued", "started", "requeued", a notice, or its end."""

    number: int
    at: float
    kind: str
    body: dict[str, Any]


JOB_COLUMNS = [jobs.c[name] for name in Job.__dataclass_fields__]
ATTEMPT_COLUMNS = [jobs.c[name] for name in Attempt.__dataclass_fields__]


class Jobs:
    """The store. Its methods may be called from any thread; each is one transaction.

    Attributes:
        database: that it is in.
    """

    def __init__(self, database: Database):
        self.database = database
        self._write, self._read, self._now = database.write, database.read, database.now

    # Accepting

    def submit(self, new: NewJob, limits: Limits = DEFAULT_LIMITS) -> Job:
        """Accept a job; it is on the disk when this returns.

        Where the client's token was seen before with the same body, the job that it made is
        returned, and nothing happens.

        Raises:
            QueueFullError: as much waits as may.
            IdempotencyError: the token was used for something else.
        """
        with self._read() as connection:
            if found := self._find_repeated(connection, new.key, new.token, new.body):
                return found
            self._check_room(connection, new, limits)  # the many that a full queue turns away
        try:
            with self._write() as connection:
                if found := self._find_repeated(connection, new.key, new.token, new.body):
                    return found
                self._check_room(connection, new, limits)
                return self._insert(connection, new)
        except IntegrityError:
            with self._read() as connection:  # another server has just used the token
                if found := self._find_repeated(connection, new.key, new.token, new.body):
                    return found
            raise

    def _insert(self, connection: Connection, new: NewJob) -> Job:
        now = self._now(connection)
        row = {
            "id": new.id,
            "key": new.key,
            "model": new.model,
            "request": dict(new.request),
            "origin": write_origin(new.origin),
            "webhook": new.webhook,
            "priority": new.priority,
            "work": new.work,
            "rank": now + WAIT_S_PER_WORK_S * (new.work + self._get_key_backlog(connection, new)),
            "state": "queued",
            "attempt": 0,
            "crashes": 0,
            "canceling": False,
            "created": now,
        }
        connection.execute(insert(jobs).values(row))
        if named := sorted(set(new.files)):
            connection.execute(insert(uses), [{"job": new.id, "file": file} for file in named])
        if new.token is not None:
            entry = {"key": new.key, "token": new.token, "body": new.body, "job": new.id}
            connection.execute(insert(tokens).values(entry))
        if new.webhook:
            outbox.add_webhooks(connection, new.id, new.webhook_events)
        self._add_history(connection, new.id, now, "queued", {})
        return self._get(connection, new.id)

    def find_repeated(self, key: str, token: str | None, body: str) -> Job | None:
        """The job that a key's token made before with the same body.

        Raises:
            IdempotencyError: the token was used for something else.
        """
        with self._read() as connection:
            return self._find_repeated(connection, key, token, body)

    def _find_repeated(
        self, connection: Connection, key: str, token: str | None, body: str
    ) -> Job | None:
        if token is None:
            return None
        used = select(tokens).where(tokens.c.key == key, tokens.c.token == token)
        found = connection.execute(used).first()
        if found is None:
            return None
        if found.body != body:
            raise IdempotencyError(
                f"the idempotency key {token!r} was used for another request, job {found.job}; "
                "take a new one."
            )
        return self._get(connection, found.job)

    def _check_room(self, connection: Connection, new: NewJob, limits: Limits) -> None:
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

    def _get_key_backlog(self, connection: Connection, new: NewJob) -> float:
        """Work of the key's own jobs that wait and are no longer than this one.

        With it a job's rank is when it would end if its key had the device for itself, shortest
        first: whoever sends a hundred jobs waits behind himself, not others behind him.
        """
        own = and_(jobs.c.key == new.key, jobs.c.state == "queued", jobs.c.work <= new.work)
        return float(connection.execute(select(func.sum(jobs.c.work)).where(own)).scalar() or 0)

    # Running

    def claim(
        self,
        owner: str,
        count: int,
        lease: float,
        models: Iterable[str] | None = None,
        beside: Sequence[Job] = (),
        max_per_key: int | None = None,
    ) -> list[Job]:
        """Take up queued jobs, the most urgent first, for `lease` seconds.

        Args:
            owner: who takes them.
            count: how many at most; fewer where one of them should have less `COMPANY`.
            lease: until they are somebody else's, unless it is prolonged.
            models: that they may be for.
            beside: what the owner has under way.
            max_per_key: the largest number of jobs of one key that the owner has under way.
        """
        ready: ColumnElement[bool] = jobs.c.state == "queued"
        if models is not None:
            ready &= jobs.c.model.in_(list(models))
        if max_per_key is not None:
            held = Counter(job.key for job in beside)
            full = [key for key, own in held.items() if own >= max_per_key]
            ready &= jobs.c.key.not_in(full)
        order = (jobs.c.priority.desc(), jobs.c.rank, jobs.c.id)
        with self._write() as connection:
            first = select(jobs.c.id, jobs.c.crashes).where(ready).order_by(*order).limit(count)
            found = connection.execute(first.with_for_update(skip_locked=True)).all()
            crashes = [job.crashes for job in beside] + [row.crashes for row in found]
            fitting = (n for n in range(len(crashes), 0, -1) if n <= _max_concurrency(crashes[:n]))
            chosen = [row.id for row in found[: max(0, next(fitting, 0) - len(beside))]]
            if not chosen:
                return []
            now = self._now(connection)
            connection.execute(
                update(jobs)
                .where(jobs.c.id.in_(chosen))
                .values(
                    state="running",
                    owner=owner,
                    lease=now + lease,
                    attempt=jobs.c.attempt + 1,
                    started=func.coalesce(jobs.c.started, now),
                )
            )
            taken = {job.id: job for job in self._list(connection, jobs.c.id.in_(chosen))}
            for name in chosen:
                self._add_history(
                    connection, name, now, "started", {"attempt": taken[name].attempt}
                )
                outbox.mark_due(connection, name, "start", now)
            return [taken[name] for name in chosen]

    def renew_leases(self, owner: str, lease: float) -> list[Attempt]:
        """Prolong the leases of an owner's jobs; returns its attempts at them.

        What is not among them is no longer its own; what is `canceling` should be ended.
        """
        own = and_(jobs.c.owner == owner, jobs.c.state == "running")
        with self._write() as connection:
            now = self._now(connection)
            connection.execute(update(jobs).where(own).values(lease=now + lease))
            held = select(*ATTEMPT_COLUMNS).where(own)  # and not all that came with a request
            return [Attempt(*row) for row in connection.execute(held)]

    def finish(
        self,
        job: Job,
        state: Literal["succeeded", "failed", "canceled"],
        *,
        result: Mapping[str, Any] | None = None,
        error: str | None = None,
        spent: Spent = NO_COST,
    ) -> bool:
        """Publish the end of an attempt, and enter what it has `spent` in the ledger.

        Returns:
            False if the attempt is not under way any more: nothing has changed.
        """
        with self._write() as connection:
            now = self._now(connection)
            held = self._is_held(job)
            return self._end(connection, held, job.id, state, now, result, error, spent)

    def release(self, job: Job | Attempt, *, crashed: bool = False) -> bool:
        """Return a job to the queue, or end it if that was asked for or it crashed too often.

        Args:
            job: as it was claimed.
            crashed: something died while the job was under way.

        Returns:
            False if the attempt is not under way any more.
        """
        with self._write() as connection:
            return self._requeue(connection, self._is_held(job), int(crashed)) == [job.id]

    def requeue_expired(
        self, *, except_owner: str = "", owners_are_gone: bool = False
    ) -> list[str]:
        """Return to the queue what nobody has prolonged the lease of; returns which.

        Args:
            except_owner: an owner whose jobs stay running: it renews its own leases.
            owners_are_gone: of everybody, at the start of a store's only server.
        """
        with self._write() as connection:
            over = (jobs.c.state == "running") & (jobs.c.owner != except_owner)
            if not owners_are_gone:
                over &= jobs.c.lease < self._now(connection)
            return self._requeue(connection, over, 1)

    def cancel(self, name: str) -> Job | None:
        """Ask for a job's end: at once if it waits, by its owner if it is under way.

        One that has ended stays as it is. None if there is no such job.
        """
        with self._write() as connection:
            # Nobody may claim it or give it back between the two looks.
            connection.execute(select(jobs.c.id).where(jobs.c.id == name).with_for_update())
            now = self._now(connection)
            queued = and_(jobs.c.id == name, jobs.c.state == "queued")
            if not self._end(connection, queued, name, "canceled", now):
                running = and_(jobs.c.id == name, jobs.c.state == "running")
                connection.execute(update(jobs).where(running).values(canceling=True))
            return self._find(connection, jobs.c.id == name)

    # Looking

    def get(self, name: str) -> Job | None:
        """A job by its id."""
        if "\0" in name:  # which Postgres takes for an error
            return None
        with self._read() as connection:
            return self._find(connection, jobs.c.id == name)

    def get_by_token(self, key: str, token: str) -> Job | None:
        """The job that a key's token made."""
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
        max_chars: int | None = None,
    ) -> list[Job]:
        """A key's jobs (or everybody's), newest first: the next older, or the next newer ones.

        Args:
            key: of the jobs; None for all keys.
            count: of jobs, at most.
            before: the list has older jobs than this one.
            after: the list has newer jobs than this one.
            states: of the jobs; None for all states.
            max_chars: characters of the jobs' requests together; the list ends earlier.
        """
        wanted: list[ColumnElement[bool]] = []
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
            listed = [_read_job(row) for row in connection.execute(found)]
        return listed[::-1] if after else listed

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
        """Jobs before a queued one, and the seconds of work of these and of all that run.

        None if it is not queued.
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
        """Seconds of work that are queued, and for how long the oldest of these jobs has been."""
        work = func.coalesce(func.sum(jobs.c.work), 0.0)
        with self._read() as connection:
            asked = select(work, func.min(jobs.c.created)).where(jobs.c.state == "queued")
            seconds, oldest = connection.execute(asked).one()
            waited = 0.0 if oldest is None else self._now(connection) - oldest
            return float(seconds), float(waited)

    def count_by_state(self) -> dict[State, int]:
        """Jobs of each state."""
        with self._read() as connection:
            counted = select(jobs.c.state, func.count()).group_by(jobs.c.state)
            found = {row[0]: int(row[1]) for row in connection.execute(counted)}
        states: tuple[State, ...] = ("queued", "running", *ENDED)
        return {state: found.get(state, 0) for state in states}

    def list_history(self, name: str, after: int = 0) -> list[HistoryEntry]:
        """What was said of a job, from the number after `after` on."""
        with self._read() as connection:
            said = select(events.c.number, events.c.at, events.c.kind, events.c.body).where(
                events.c.job == name, events.c.number > after
            )
            return [
                HistoryEntry(*row) for row in connection.execute(said.order_by(events.c.number))
            ]

    def get_latest_numbers(self, names: Iterable[str]) -> dict[str, int]:
        """The number of what was last said of each job; nothing of those that are forgotten."""
        with self._read() as connection:
            last = select(events.c.job, func.max(events.c.number)).group_by(events.c.job)
            rows = connection.execute(last.where(events.c.job.in_(list(names))))
            return {row[0]: row[1] for row in rows}

    def add_history(self, name: str, kind: str, body: Mapping[str, Any]) -> None:
        """Add to a job's history."""
        with self._write() as connection:
            # What two say at once of one job is numbered one after the other.
            connection.execute(select(jobs.c.id).where(jobs.c.id == name).with_for_update())
            self._add_history(connection, name, self._now(connection), kind, dict(body))

    # Keeping and forgetting

    def list_ended_before(self, age: float, count: int = 1000) -> list[str]:
        """Jobs that ended longer ago than `age` seconds."""
        with self._read() as connection:
            ended = and_(jobs.c.state.in_(ENDED), jobs.c.ended < self._now(connection) - age)
            return list(connection.execute(select(jobs.c.id).where(ended).limit(count)).scalars())

    def delete(self, names: Iterable[str]) -> None:
        """Forget jobs that have ended, with all that was said of them."""
        ended = and_(jobs.c.id.in_(list(names)), jobs.c.state.in_(ENDED))
        with self._write() as connection:
            connection.execute(delete(jobs).where(ended))

    def find_used_files(self, files: Iterable[str]) -> set[str]:
        """Which of these files a job needs."""
        with self._read() as connection:
            used = select(uses.c.file).where(uses.c.file.in_(list(files))).distinct()
            return set(connection.execute(used).scalars())

    # Within a transaction

    @staticmethod
    def _is_held(job: Job | Attempt) -> ColumnElement[bool]:
        """The fence: that an attempt is still the one under way."""
        return and_(
            jobs.c.id == job.id,
            jobs.c.state == "running",
            jobs.c.attempt == job.attempt,
            jobs.c.owner == job.owner,
        )

    def _end(
        self,
        connection: Connection,
        where: ColumnElement[bool],
        name: str,
        state: State,
        now: float,
        result: Mapping[str, Any] | None = None,
        error: str | None = None,
        spent: Spent = NO_COST,
    ) -> bool:
        ended = update(jobs).where(where)
        values: dict[str, Any] = {"state": state, "ended": now, "error": error}
        values |= {"lease": None, "canceling": False}
        if result is not None:
            values["result"] = dict(result)
        if connection.execute(ended.values(values)).rowcount != 1:
            return False
        usage.record_usage(connection, name, now, len((result or {}).get("files", ())), spent)
        self._add_history(connection, name, now, state, {"error": error} if error else {})
        if state == "succeeded":
            outbox.mark_due(connection, name, "output", now)
        outbox.mark_due(connection, name, "completed", now)
        return True

    def _requeue(
        self, connection: Connection, where: ColumnElement[bool], crashes: int
    ) -> list[str]:
        now = self._now(connection)
        chosen = select(*JOB_COLUMNS).where(where).with_for_update(skip_locked=True)
        found = [_read_job(row) for row in connection.execute(chosen)]
        for job in found:
            this = jobs.c.id == job.id
            count = job.crashes + crashes
            if job.canceling:
                self._end(connection, this, job.id, "canceled", now)
            elif count >= MAX_CRASHES:
                error = f"given up: {count} times the worker or the server died while it ran."
                self._end(connection, this, job.id, "failed", now, error=error)
            else:
                values = {"state": "queued", "owner": None, "lease": None, "crashes": count}
                connection.execute(update(jobs).where(this).values(values))
                self._add_history(connection, job.id, now, "requeued", {"crashes": count})
        return [job.id for job in found]

    @staticmethod
    def _add_history(
        connection: Connection, name: str, now: float, kind: str, body: dict[str, Any]
    ) -> None:
        last = select(func.max(events.c.number)).where(events.c.job == name)
        number = (connection.execute(last).scalar() or 0) + 1
        entry = {"job": name, "number": number, "at": now, "kind": kind, "body": body}
        connection.execute(insert(events).values(entry))

    @staticmethod
    def _list(connection: Connection, where: ColumnElement[bool]) -> list[Job]:
        return [_read_job(row) for row in connection.execute(select(*JOB_COLUMNS).where(where))]

    def _find(self, connection: Connection, where: ColumnElement[bool]) -> Job | None:
        return next(iter(self._list(connection, where)), None)

    def _get(self, connection: Connection, name: str) -> Job:
        (job,) = self._list(connection, jobs.c.id == name)
        return job


def _is_full(used: float, own: float, limit: float, keys: int) -> bool:
    """Return whether a key has no room: all is used, and the key has its share of it."""
    return used >= limit and (own >= limit / keys or used >= 2 * limit)


def _max_concurrency(crashes: Iterable[int]) -> int:
    """How many jobs may be under way beside each other, by how often each was in a crash."""
    return MAX_CONCURRENCY_BY_CRASHES[min(max(crashes), len(MAX_CONCURRENCY_BY_CRASHES) - 1)]


def _read_job(row: Any) -> Job:
    fields = row._asdict()
    return Job(**fields | {"origin": read_origin(fields["origin"])})
