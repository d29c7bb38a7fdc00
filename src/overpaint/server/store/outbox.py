"""The outbox: webhooks that the server has to post.

    later ──mark_due──► due ──claim_due──► tried ──► delivered
                         ▲                   │
                         └──next try is due──┴─► failed: no tries left; gone: the receiver is gone

`Jobs` writes a webhook in the transaction of the event that it reports, so no webhook is lost.
`server.jobs.webhooks` posts webhooks that are due.
"""

import base64
import secrets as randomness
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, and_, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from overpaint.server.settings import WebhookSettings
from overpaint.server.store.database import Database
from overpaint.server.store.tables import deliveries, jobs, outbox, secrets

WEBHOOK_EVENTS = ("start", "output", "logs", "completed")
"""Events that webhooks report, in Replicate's words.

A job starts, has pictures, makes progress, or ends."""

WEBHOOK_STATES = ("later", "due", "delivered", "failed", "gone")
SECRET_BYTES = 32

MAX_CONCURRENT_PER_KEY = WebhookSettings().concurrent_deliveries_per_key
"""Webhooks of one API key that are delivered at once, by default."""


@dataclass(frozen=True)
class DueWebhook:
    """A webhook that is due.

    Attributes:
        id: the id of the webhook, the same for all tries.
        job: the id of the job.
        key: the digest of the job's API key.
        kind: one of `WEBHOOK_EVENTS`.
        tries: the number of earlier tries.
        turn: how often the webhook became due again. "logs" does with each progress of the job.
    """

    id: int
    job: str
    key: str
    kind: str
    tries: int
    turn: int


@dataclass(frozen=True)
class Delivery:
    """A try to post a webhook: the status of the response, or the error if no response came."""

    at: float
    status: int | None
    error: str | None
    seconds: float

    @property
    def succeeded(self) -> bool:
        """True if the receiver answered with a 2xx status. The server follows no redirects."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True)
class WebhookLog:
    """The webhook of a job for one event: its state in the outbox, and all tries to post it."""

    kind: str
    state: str
    tries: tuple[Delivery, ...]


def add_webhooks(connection: Connection, name: str, kinds: Collection[str]) -> None:
    """Add webhooks for these events of a job. They wait until `mark_due`."""
    row = {"job": name, "state": "later", "due": 0.0, "tries": 0, "turn": 0}
    rows = [row | {"kind": kind} for kind in WEBHOOK_EVENTS if kind in kinds]
    if rows:
        connection.execute(insert(outbox), rows)


def mark_due(connection: Connection, name: str, kind: str, now: float) -> None:
    """Make a waiting webhook due, because the event that it reports has happened."""
    waiting = and_(outbox.c.job == name, outbox.c.kind == kind, outbox.c.state == "later")
    connection.execute(update(outbox).where(waiting).values(state="due", due=now))


def settle_logs(connection: Connection, name: str) -> None:
    """Let no "logs" webhook wait after the job's end: "completed" reports the whole log."""
    waiting = and_(outbox.c.job == name, outbox.c.kind == "logs", outbox.c.state == "due")
    connection.execute(update(outbox).where(waiting).values(state="later"))


class Outbox:
    """The webhooks of a store. Any thread may call its methods."""

    def __init__(self, database: Database, max_concurrent_per_key: int = MAX_CONCURRENT_PER_KEY):
        """Read and write the webhooks of a database.

        Args:
            database: the job store.
            max_concurrent_per_key: webhooks of one API key that are delivered at once.
        """
        self._write, self._read, self._now = database.write, database.read, database.now
        self._max_per_key = max_concurrent_per_key

    def claim_due(
        self, count: int, lease: float, under_way: Mapping[str, int] | None = None
    ) -> list[DueWebhook]:
        """Claim webhooks to post now; other servers cannot claim them for `lease` seconds.

        Args:
            count: webhooks to claim, at most.
            lease: seconds of the claim.
            under_way: webhooks that are being delivered, by API key.
        """
        posts = Counter(under_way or {})

        def due(now: float) -> Select[Any]:
            full = [key for key, count in posts.items() if count >= self._max_per_key]
            found = select(outbox, jobs.c.key).join(jobs, jobs.c.id == outbox.c.job)
            ready = and_(outbox.c.state == "due", outbox.c.due <= now, jobs.c.key.not_in(full))
            return found.where(ready).order_by(outbox.c.due, outbox.c.id)

        with self._read() as connection:
            if connection.execute(due(self._now(connection)).limit(1)).first() is None:
                return []  # The usual case needs no write lock.
        taken = list[DueWebhook]()
        with self._write() as connection:
            now = self._now(connection)
            while len(taken) < count:  # Each round leaves out the keys that are at their limit.
                first = due(now).limit(count - len(taken))
                rows = list[Any]()
                for row in connection.execute(first.with_for_update(skip_locked=True, of=outbox)):
                    posts[row.key] += 1
                    if posts[row.key] <= self._max_per_key:
                        rows.append(row)
                if not rows:
                    break
                these = update(outbox).where(outbox.c.id.in_([row.id for row in rows]))
                connection.execute(these.values(due=now + lease, tries=outbox.c.tries + 1))
                taken += [DueWebhook(r.id, r.job, r.key, r.kind, r.tries, r.turn) for r in rows]
        return taken

    def record_delivery(self, post: DueWebhook, delivery: Delivery, again: float | None) -> None:
        """Record a try to post a webhook.

        Args:
            post: the webhook.
            delivery: the outcome of the try.
            again: seconds until the next try; None if this was the last one.
        """
        state = "delivered" if delivery.succeeded else "failed" if again is None else "due"
        with self._write() as connection:
            entry = {"post": post.id, "at": delivery.at, "status": delivery.status}
            entry |= {"error": delivery.error, "seconds": delivery.seconds}
            connection.execute(insert(deliveries).values(entry))
            # If the webhook became due again during the try, the new turn keeps its state.
            this = and_(outbox.c.id == post.id, outbox.c.turn == post.turn)
            due = self._now(connection) + (again or 0.0)
            connection.execute(update(outbox).where(this).values(state=state, due=due))
            # Receivers take a later post of an earlier event for a job that runs again.
            reported = select(outbox.c.id).where(
                outbox.c.job == post.job,
                outbox.c.kind == "completed",
                outbox.c.state == "delivered",
            )
            late = and_(
                outbox.c.job == post.job,
                outbox.c.kind != "completed",
                outbox.c.state == "due",
                outbox.c.tries > 0,
            )
            if connection.execute(reported).first() is not None:
                connection.execute(update(outbox).where(late).values(state="failed"))

    def cancel_for_url(self, key: str, url: str) -> None:
        """Cancel all waiting webhooks of an API key to a URL whose receiver is gone."""
        there = select(jobs.c.id).where(jobs.c.key == key, jobs.c.webhook == url)
        waiting = and_(outbox.c.state.in_(["later", "due"]), outbox.c.job.in_(there))
        with self._write() as connection:
            connection.execute(update(outbox).where(waiting).values(state="gone"))

    def requeue_logs(self, names: Iterable[str]) -> None:
        """Make the "logs" webhooks of jobs that made progress, and have not ended, due again."""
        moved = list(names)
        if not moved:
            return
        under_way = select(jobs.c.id).where(jobs.c.id.in_(moved), jobs.c.ended.is_(None))
        own = and_(outbox.c.kind == "logs", outbox.c.job.in_(under_way), outbox.c.state != "gone")
        with self._read() as connection:
            found = connection.execute(select(outbox.c.id).where(own)).scalars().all()
        if not found:
            return
        with self._write() as connection:
            values = {"state": "due", "due": self._now(connection), "tries": 0}
            these = update(outbox).where(outbox.c.id.in_(found))
            connection.execute(these.values(values | {"turn": outbox.c.turn + 1}))

    def replay(self, name: str, kind: str) -> bool:
        """Make a job's webhook due again, now.

        Returns:
            False if the job has no such webhook, or its event has not happened yet.
        """
        with self._write() as connection:
            done = and_(outbox.c.job == name, outbox.c.kind == kind, outbox.c.state != "later")
            values = {"state": "due", "due": self._now(connection), "tries": 0}
            return connection.execute(update(outbox).where(done).values(values)).rowcount == 1

    def list_webhooks(self, name: str) -> list[WebhookLog]:
        """Return the webhooks of a job, with all tries."""
        with self._read() as connection:
            posts = connection.execute(
                select(outbox).where(outbox.c.job == name).order_by(outbox.c.id)
            ).all()
            tries: dict[int, list[Delivery]] = {post.id: [] for post in posts}
            made = select(deliveries).where(deliveries.c.post.in_(list(tries)))
            for row in connection.execute(made.order_by(deliveries.c.id)):
                tries[row.post].append(Delivery(row.at, row.status, row.error, row.seconds))
            return [WebhookLog(post.kind, post.state, tuple(tries[post.id])) for post in posts]

    def count_by_state(self) -> dict[str, int]:
        """Return the number of webhooks in each state."""
        with self._read() as connection:
            counted = select(outbox.c.state, func.count()).group_by(outbox.c.state)
            found = {row[0]: int(row[1]) for row in connection.execute(counted)}
        return {state: found.get(state, 0) for state in WEBHOOK_STATES}

    def get_secret(self, key: str) -> str:
        """Return the secret that signs an API key's webhooks: `whsec_` and base64.

        The first call creates the secret.
        """
        wanted = select(secrets.c.secret).where(secrets.c.key == key)
        with self._read() as connection:
            found = connection.execute(wanted).scalar()
        if found is not None:
            return str(found)
        made = "whsec_" + base64.b64encode(randomness.token_bytes(SECRET_BYTES)).decode()
        try:
            with self._write() as connection:
                connection.execute(insert(secrets).values(key=key, secret=made))
        except IntegrityError:  # Another server was faster.
            return self.get_secret(key)
        return made
