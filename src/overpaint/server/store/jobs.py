"""The durable store of jobs: every accepted job ends exactly once, even if a process is killed.

    submit ──► queued ──claim──► running ──finish──► succeeded | failed
                 │  ▲               │
                 │  └───release─────┤   its owner returns it, or its lease expires
                 └─────cancel───────┴─► canceled

A job runs at least once and is published at most once. `claim` gives every attempt a number, and
`finish` has an effect only for the attempt that is running. The worker writes the result files
first. The state, the event, the webhook and the usage entry are then one transaction.
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
"""Crashes of the server or the worker during a job after which the job fails."""

MAX_CONCURRENCY_BY_CRASHES = (64, 16, 4, 1)
"""Jobs that may run together, by the largest number of crashes that one of them had.

After three crashes a job runs alone. If it kills its worker again, no other job suffers."""

WAIT_S_PER_WORK_S = 4.0
"""Seconds of waiting that offset one second of work in the order of the queue."""


@dataclass(frozen=True)
class NewJob:
    """A job that the store has not accepted yet.

    Attributes:
        id: an unguessable id, from `secrets`.
        key: the digest of the client's API key; "" if the server has no keys.
        model: the name of the model.
        request: the `Request` as JSON, with file names in place of pictures.
        work: the expected time on the device, in seconds.
        origin: the data that the dialect keeps with the job.
        webhook: the URL that receives the job's events.
        webhook_events: the events to post, from `outbox.WEBHOOK_EVENTS`.
        files: the pictures of the request, by the hash of their content.
        priority: a job with a higher priority runs first.
        token: the client's idempotency key.
        body: the hash of the body that came with the idempotency key.
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
    """A job as it is stored. Times are in seconds since 1970.

    Attributes:
        state: the state in the life cycle.
        attempt: the number of claims; with the owner, it identifies the running attempt.
        crashes: the number of crashes of the server or the worker while the job ran.
        owner: the supervisor that runs the attempt.
        canceling: true if the job runs and a client has canceled it.
        created: the time at which the store accepted the job.
        started: the time of the first claim.
        ended: the time at which the job ended.
        error: the reason why the job failed.
        result: the names, sizes and seeds of the pictures, and other results.
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
        """The pictures that the server does not publish, as `safety.Flag`."""
        return (self.result or {}).get("flagged", [])


@dataclass(frozen=True)
class Attempt:
    """A running attempt: its number and its owner, which `finish` and `release` compare."""

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
    """The job store. Any thread may call its methods; each method is one transaction.

    Attributes:
        database: the database of the store.
    """

    def __init__(self, database: Database):
        self.database = database
        self._write, self._read, self._now = database.write, database.read, database.now

    # Accept

    def submit(self, new: NewJob, limits: Limits = DEFAULT_LIMITS) -> Job:
        """Accept a job and return it once it is durable.

        If the client repeats an idempotency key with the same body, the store returns the first
        job and changes nothing.

        Raises:
            QueueFullError: the queue has reached one of the limits.
            IdempotencyError: the client used the idempotency key with another body.
        """
        with self._read() as connection:
            if found := self._find_repeated(connection, new.key, new.token, new.body):
                return found
            self._check_room(connection, new, limits)  # A full queue takes no write lock.
        try:
            with self._write() as connection:
                if found := self._find_repeated(connection, new.key, new.token, new.body):
                    return found
                self._check_room(connection, new, limits)
                return self._insert(connection, new)
        except IntegrityError:
            with self._read() as connection:  # Another server has just used the token.
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
        """Return the job that an API key's idempotency key made before, or None.

        Raises:
            IdempotencyError: the client used the idempotency key with another body.
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
        """Return the seconds of work of this API key's queued jobs that are at most as long.

        The rank of a job is the time at which it would end if its key had the device alone and ran
        its shortest job first. A key that sends a hundred jobs delays its own jobs, not those of
        other keys.
        """
        own = and_(jobs.c.key == new.key, jobs.c.state == "queued", jobs.c.work <= new.work)
        return float(connection.execute(select(func.sum(jobs.c.work)).where(own)).scalar() or 0)

    # Run

    def claim(
        self,
        owner: str,
        count: int,
        lease: float,
        models: Iterable[str] | None = None,
        beside: Sequence[Job] = (),
        max_per_key: int | None = None,
    ) -> list[Job]:
        """Claim queued jobs, the most urgent first, and return them.

        Args:
            owner: the supervisor that runs the jobs.
            count: the largest number of jobs. The store returns fewer jobs if one of them has
                crashed: see `MAX_CONCURRENCY_BY_CRASHES`.
            lease: seconds until the claim expires, unless the owner renews it.
            models: the models that the owner can run; None for all.
            beside: the jobs that the owner runs already.
            max_per_key: the largest number of jobs of one key that the owner runs.
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
        """Renew the leases of an owner's jobs and return its running attempts.

        The owner has lost a job that is not among them, and should stop one that is `canceling`.
        """
        own = and_(jobs.c.owner == owner, jobs.c.state == "running")
        with self._write() as connection:
            now = self._now(connection)
            connection.execute(update(jobs).where(own).values(lease=now + lease))
            held = select(*ATTEMPT_COLUMNS).where(own)  # Requests are large; read few columns.
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
        """End a job and record its usage.

        Args:
            job: the job as it was claimed.
            state: the state in which the job ends.
            result: the names, sizes and seeds of the pictures, and other results.
            error: the reason why the job failed.
            spent: the device time and the steps of the attempt.

        Returns:
            False if this attempt no longer runs. Then nothing has changed.
        """
        with self._write() as connection:
            now = self._now(connection)
            held = self._is_held(job)
            return self._end(connection, held, job.id, state, now, result, error, spent)

    def release(self, job: Job | Attempt, *, crashed: bool = False) -> bool:
        """Return a job to the queue. If it is canceled or has crashed too often, end it.

        Args:
            job: the job as it was claimed.
            crashed: true if the worker died while the job ran.

        Returns:
            False if this attempt no longer runs. Then nothing has changed.
        """
        with self._write() as connection:
            return self._requeue(connection, self._is_held(job), int(crashed)) == [job.id]

    def requeue_expired(
        self, *, except_owner: str = "", owners_are_gone: bool = False
    ) -> list[str]:
        """Return jobs with expired leases to the queue, and return their ids.

        Args:
            except_owner: an owner whose jobs keep running, because it renews its own leases.
            owners_are_gone: requeue all running jobs. The only server of a store does so when it
                starts.
        """
        with self._write() as connection:
            over = (jobs.c.state == "running") & (jobs.c.owner != except_owner)
            if not owners_are_gone:
                over &= jobs.c.lease < self._now(connection)
            return self._requeue(connection, over, 1)

    def cancel(self, name: str) -> Job | None:
        """Cancel a job and return it; None if there is no such job.

        A queued job ends at once. The owner of a running job ends it soon. A job that has ended
        does not change.
        """
        with self._write() as connection:
            # The lock keeps other servers from claiming or releasing the job in between.
            connection.execute(select(jobs.c.id).where(jobs.c.id == name).with_for_update())
            now = self._now(connection)
            queued = and_(jobs.c.id == name, jobs.c.state == "queued")
            if not self._end(connection, queued, name, "canceled", now):
                running = and_(jobs.c.id == name, jobs.c.state == "running")
                connection.execute(update(jobs).where(running).values(canceling=True))
            return self._find(connection, jobs.c.id == name)

    # Read

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

    def add_history(self, name: str, kind: str, body: Mapping[str, Any]) -> None:
        """Add an entry to a job's history."""
        with self._write() as connection:
            # The lock makes entries that arrive at the same time get different numbers.
            connection.execute(select(jobs.c.id).where(jobs.c.id == name).with_for_update())
            self._add_history(connection, name, self._now(connection), kind, dict(body))

    # Delete

    def list_ended_before(self, age: float, count: int = 1000) -> list[str]:
        """Return the ids of jobs that ended more than `age` seconds ago, at most `count`."""
        with self._read() as connection:
            ended = and_(jobs.c.state.in_(ENDED), jobs.c.ended < self._now(connection) - age)
            return list(connection.execute(select(jobs.c.id).where(ended).limit(count)).scalars())

    def delete(self, names: Iterable[str]) -> None:
        """Delete jobs that have ended, with their history and webhooks. Usage entries stay."""
        ended = and_(jobs.c.id.in_(list(names)), jobs.c.state.in_(ENDED))
        with self._write() as connection:
            connection.execute(delete(jobs).where(ended))

    def find_used_files(self, files: Iterable[str]) -> set[str]:
        """Return the given files that at least one job needs."""
        with self._read() as connection:
            used = select(uses.c.file).where(uses.c.file.in_(list(files))).distinct()
            return set(connection.execute(used).scalars())

    # Within a transaction

    @staticmethod
    def _is_held(job: Job | Attempt) -> ColumnElement[bool]:
        """Return the condition that an attempt still runs and has the same owner."""
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
                error = f"The job is given up after {count} crashes of the worker or the server."
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
    """Return the number of jobs that may run together, from the crashes of each of them."""
    return MAX_CONCURRENCY_BY_CRASHES[min(max(crashes), len(MAX_CONCURRENCY_BY_CRASHES) - 1)]


def _read_job(row: Any) -> Job:
    fields = row._asdict()
    return Job(**fields | {"origin": read_origin(fields["origin"])})
