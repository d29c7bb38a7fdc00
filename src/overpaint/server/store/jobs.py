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
from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from overpaint.errors import IdempotencyError
from overpaint.events import NO_COST, Spent
from overpaint.server.settings import DEFAULT_LIMITS, Limits
from overpaint.server.store import outbox, queue_room, usage
from overpaint.server.store.crashes import (
    RequeueCause,
    count_failures,
    describe_giving_up,
    get_max_concurrency,
)
from overpaint.server.store.database import Database
from overpaint.server.store.job_reader import JobReader
from overpaint.server.store.job_rows import (
    ATTEMPT_COLUMNS,
    ENDED,
    JOB_COLUMNS,
    Attempt,
    Job,
    NewJob,
    State,
    read_job,
)
from overpaint.server.store.leases import LeaseClock
from overpaint.server.store.origins import write_origin
from overpaint.server.store.tables import events, jobs, tokens, uses

WAIT_S_PER_WORK_S = 4.0
"""Seconds of waiting that offset one second of work in the order of the queue."""


class Jobs(JobReader):
    """The job store. Any thread may call its methods; each method is one transaction."""

    def __init__(self, database: Database):
        super().__init__(database)
        self._write = database.write

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
            queue_room.check_room(connection, new, limits)  # A full queue takes no write lock.
        try:
            with self._write() as connection:
                if found := self._find_repeated(connection, new.key, new.token, new.body):
                    return found
                queue_room.check_room(connection, new, limits)
                return self._insert(connection, new)
        except IntegrityError:
            with self._read() as connection:  # Another server has just used the token.
                if found := self._find_repeated(connection, new.key, new.token, new.body):
                    return found
            raise

    def _insert(self, connection: Connection, new: NewJob) -> Job:
        now = self._now(connection)
        backlog_s = queue_room.get_key_backlog(connection, new)
        row = {
            "id": new.id,
            "key": new.key,
            "model": new.model,
            "request": dict(new.request),
            "origin": write_origin(new.origin),
            "webhook": new.webhook,
            "priority": new.priority,
            "work": new.work,
            "rank": now + WAIT_S_PER_WORK_S * (new.work + backlog_s),
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
                f"The idempotency key {token!r} was used for another request, job {found.job}; "
                "take a new one."
            )
        return self._get(connection, found.job)

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
        held = Counter(job.key for job in beside)
        with self._write() as connection:
            found = self._select_most_urgent(connection, ready, count, held, max_per_key)
            crashes = [job.crashes for job in beside] + [row.crashes for row in found]
            fitting = (
                n for n in range(len(crashes), 0, -1) if n <= get_max_concurrency(crashes[:n])
            )
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

    @staticmethod
    def _select_most_urgent(
        connection: Connection,
        ready: ColumnElement[bool],
        count: int,
        held: Counter[str],
        max_per_key: int | None,
    ) -> list[Any]:
        """Select and lock jobs; each round leaves out the keys that are at their limit."""
        most = float("inf") if max_per_key is None else max_per_key
        order = (jobs.c.priority.desc(), jobs.c.rank, jobs.c.id)
        held, found = held.copy(), list[Any]()
        while wanted := count - len(found):
            full = [key for key, own in held.items() if own >= most]
            others = and_(jobs.c.key.not_in(full), jobs.c.id.not_in([row.id for row in found]))
            first = select(jobs.c.id, jobs.c.crashes, jobs.c.key).where(ready, others)
            first = first.order_by(*order).limit(wanted).with_for_update(skip_locked=True)
            rows = connection.execute(first).all()
            for row in rows:
                held[row.key] += 1
                if held[row.key] <= most:
                    found.append(row)
            if len(rows) < wanted:
                break
        return found

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
            cause = "worker died" if crashed else "server stopped"
            return self._requeue(connection, self._is_held(job), cause) == [job.id]

    def requeue_expired(
        self,
        *,
        except_owner: str = "",
        owners_are_gone: bool = False,
        leases: LeaseClock | None = None,
    ) -> list[str]:
        """Return jobs with expired leases to the queue, and return their ids.

        Args:
            except_owner: an owner whose jobs keep running, because it renews its own leases.
            owners_are_gone: requeue all running jobs. The only server of a store does so when it
                starts.
            leases: the clock for leases, which a jump of the store's clock does not mislead.
        """
        with self._write() as connection:
            over = (jobs.c.state == "running") & (jobs.c.owner != except_owner)
            if not owners_are_gone:
                now = self._now(connection)
                over &= jobs.c.lease < (leases.read(connection, now) if leases else now)
            return self._requeue(connection, over, "server lost")

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

    def add_history(self, name: str, kind: str, body: Mapping[str, Any]) -> None:
        """Add an entry to a job's history."""
        with self._write() as connection:
            # The lock makes entries that arrive at the same time get different numbers.
            connection.execute(select(jobs.c.id).where(jobs.c.id == name).with_for_update())
            self._add_history(connection, name, self._now(connection), kind, dict(body))

    # Delete

    def delete(self, names: Iterable[str]) -> None:
        """Delete jobs that have ended, with their history and webhooks. Usage entries stay."""
        ended = and_(jobs.c.id.in_(list(names)), jobs.c.state.in_(ENDED))
        with self._write() as connection:
            connection.execute(delete(jobs).where(ended))

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
        outbox.settle_logs(connection, name)
        outbox.mark_due(connection, name, "completed", now)
        return True

    def _requeue(
        self, connection: Connection, where: ColumnElement[bool], cause: RequeueCause
    ) -> list[str]:
        now = self._now(connection)
        chosen = select(*JOB_COLUMNS).where(where).with_for_update(skip_locked=True)
        found = [read_job(row) for row in connection.execute(chosen)]
        for job in found:
            this = jobs.c.id == job.id
            crashes, losses = count_failures(connection, job, cause)
            if job.canceling:
                self._end(connection, this, job.id, "canceled", now)
            elif error := describe_giving_up(crashes, losses):
                self._end(connection, this, job.id, "failed", now, error=error)
            else:
                values = {"state": "queued", "owner": None, "lease": None, "crashes": crashes}
                connection.execute(update(jobs).where(this).values(values))
                body = {"crashes": crashes} | ({"lost_servers": losses} if losses else {})
                self._add_history(connection, job.id, now, "requeued", body)
        return [job.id for job in found]

    @staticmethod
    def _add_history(
        connection: Connection, name: str, now: float, kind: str, body: dict[str, Any]
    ) -> None:
        last = select(func.max(events.c.number)).where(events.c.job == name)
        number = (connection.execute(last).scalar() or 0) + 1
        entry = {"job": name, "number": number, "at": now, "kind": kind, "body": body}
        connection.execute(insert(events).values(entry))
