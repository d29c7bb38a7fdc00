"""Webhooks that are to be posted: written in the transaction of what they tell, so none is lost.

    later ──ready──► due ──take──► tried ──► delivered
                      ▲              │
                      └── in a while ┴─► failed: no tries left; gone: its receiver is

`Jobs` announces them and says when they are ready; `server.webhooks` posts them.
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
"""What may be told of a job, in Replicate's words: it begins, has pictures, goes on, has ended."""

WEBHOOK_STATES = ("later", "due", "delivered", "failed", "gone")
SECRET_BYTES = 32

MAX_CONCURRENT_PER_KEY = WebhookSettings().concurrent_deliveries_per_key
"""Webhooks of one API key that are delivered at once, by default."""


@dataclass(frozen=True)
class DueWebhook:
    """A webhook that is due.

    Attributes:
        id: of the webhook, the same over all tries.
        job: that it tells of.
        key: whose.
        kind: one of `EVENTS`.
        tries: that were made before.
        turn: how often it became due anew: "logs" does again and again.
    """

    id: int
    job: str
    key: str
    kind: str
    tries: int
    turn: int


@dataclass(frozen=True)
class Delivery:
    """A try at a webhook: the status that came back, or the error if none did."""

    at: float
    status: int | None
    error: str | None
    seconds: float

    @property
    def succeeded(self) -> bool:
        """Whether the receiver has it. A redirect is followed by nobody, so it has not."""
        return self.status is not None and 200 <= self.status < 300


@dataclass(frozen=True)
class WebhookLog:
    """A job's webhook of a kind, its state as above, and every try at it."""

    kind: str
    state: str
    tries: tuple[Delivery, ...]


def add_webhooks(connection: Connection, name: str, kinds: Collection[str]) -> None:
    """There will be webhooks of these kinds to post of a job."""
    row = {"job": name, "state": "later", "due": 0.0, "tries": 0, "turn": 0}
    rows = [row | {"kind": kind} for kind in WEBHOOK_EVENTS if kind in kinds]
    if rows:
        connection.execute(insert(outbox), rows)


def mark_due(connection: Connection, name: str, kind: str, now: float) -> None:
    """What a webhook tells has happened."""
    waiting = and_(outbox.c.job == name, outbox.c.kind == kind, outbox.c.state == "later")
    connection.execute(update(outbox).where(waiting).values(state="due", due=now))


class Outbox:
    """The webhooks of a store. Its methods may be called from any thread."""

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
                return []  # the usual case, which needs no write lock
        taken = list[DueWebhook]()
        with self._write() as connection:
            now = self._now(connection)
            while len(taken) < count:  # until each of their API keys has as many as it may
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
        """Log a try at a webhook.

        Args:
            post: that was tried.
            delivery: what came of it.
            again: seconds until the next try; None if there is none.
        """
        state = "delivered" if delivery.succeeded else "failed" if again is None else "due"
        with self._write() as connection:
            entry = {"post": post.id, "at": delivery.at, "status": delivery.status}
            entry |= {"error": delivery.error, "seconds": delivery.seconds}
            connection.execute(insert(deliveries).values(entry))
            # Not if it became due anew meanwhile.
            this = and_(outbox.c.id == post.id, outbox.c.turn == post.turn)
            due = self._now(connection) + (again or 0.0)
            connection.execute(update(outbox).where(this).values(state=state, due=due))

    def cancel_for_url(self, key: str, url: str) -> None:
        """Post nothing more that waits for an address of a key's: its receiver is gone."""
        there = select(jobs.c.id).where(jobs.c.key == key, jobs.c.webhook == url)
        waiting = and_(outbox.c.state.in_(["later", "due"]), outbox.c.job.in_(there))
        with self._write() as connection:
            connection.execute(update(outbox).where(waiting).values(state="gone"))

    def requeue_logs(self, names: Iterable[str]) -> None:
        """Jobs that went on: those that asked for "logs" have them posted, anew."""
        moved = list(names)
        if not moved:
            return
        own = and_(outbox.c.kind == "logs", outbox.c.job.in_(moved), outbox.c.state != "gone")
        with self._read() as connection:
            found = connection.execute(select(outbox.c.id).where(own)).scalars().all()
        if not found:
            return
        with self._write() as connection:
            values = {"state": "due", "due": self._now(connection), "tries": 0}
            these = update(outbox).where(outbox.c.id.in_(found))
            connection.execute(these.values(values | {"turn": outbox.c.turn + 1}))

    def replay(self, name: str, kind: str) -> bool:
        """Post a job's webhook once more, now; False if it has none, or is not so far."""
        with self._write() as connection:
            done = and_(outbox.c.job == name, outbox.c.kind == kind, outbox.c.state != "later")
            values = {"state": "due", "due": self._now(connection), "tries": 0}
            return connection.execute(update(outbox).where(done).values(values)).rowcount == 1

    def list_webhooks(self, name: str) -> list[WebhookLog]:
        """A job's webhooks."""
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
        """Webhooks of each state."""
        with self._read() as connection:
            counted = select(outbox.c.state, func.count()).group_by(outbox.c.state)
            found = {row[0]: int(row[1]) for row in connection.execute(counted)}
        return {state: found.get(state, 0) for state in WEBHOOK_STATES}

    def get_secret(self, key: str) -> str:
        """What a key's webhooks are signed with, `whsec_` and base64; made when first asked for."""
        wanted = select(secrets.c.secret).where(secrets.c.key == key)
        with self._read() as connection:
            found = connection.execute(wanted).scalar()
        if found is not None:
            return str(found)
        made = "whsec_" + base64.b64encode(randomness.token_bytes(SECRET_BYTES)).decode()
        try:
            with self._write() as connection:
                connection.execute(insert(secrets).values(key=key, secret=made))
        except IntegrityError:  # another server was faster
            return self.get_secret(key)
        return made
