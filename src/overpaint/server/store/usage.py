"""Usage: one entry for each job that has ended.

The store writes the entry when the job ends and keeps it when the job is deleted. Lost attempts
are not in it, for example if the worker was killed: the operator pays for them, not the client.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal

from sqlalchemy import Connection, func, insert, literal, select

from overpaint.errors import StoreError
from overpaint.events import Spent
from overpaint.server.store.database import Database
from overpaint.server.store.tables import jobs, keys, usage

GroupBy = Literal["key", "day", "model"]

DIGEST_LABEL_CHARS = 12
"""Characters of the digest that stand for a key without a name in the store."""


@dataclass(frozen=True)
class UsageTotal:
    """The total usage of some jobs.

    Attributes:
        name: name of the key ("" for jobs without a key), day or model that the jobs share.
        jobs: number of ended jobs: succeeded, failed or canceled.
        pictures: number of published pictures.
        megapixel_steps: evaluations of the network, each multiplied by its million pixels.
        device_seconds: the jobs' share of the seconds that the device computed.
    """

    name: str
    jobs: int
    pictures: int
    megapixel_steps: float
    device_seconds: float


def record_usage(connection: Connection, job: str, now: float, pictures: int, spent: Spent) -> None:
    """Record the usage of a job that ended at `now`, in seconds since 1970."""
    ended = select(
        *(jobs.c.id, jobs.c.key, jobs.c.model, jobs.c.state, jobs.c.ended),
        literal(datetime.fromtimestamp(now, UTC).date().isoformat()),
        *(literal(pictures), literal(spent.megapixel_steps), literal(spent.seconds)),
    ).where(jobs.c.id == job)
    columns = ("job", "key", "model", "state", "ended", "day")
    counts = ("pictures", "megapixel_steps", "device_seconds")
    connection.execute(insert(usage).from_select([*columns, *counts], ended))


class UsageReader:
    """Reads the usage entries of a store. Any thread may call its methods."""

    def __init__(self, database: Database):
        """Keep the database; the methods read it when they are called."""
        self._database = database

    def sum_usage(
        self,
        by: GroupBy,
        *,
        since: date | None = None,
        until: date | None = None,
        key: str | None = None,
    ) -> list[UsageTotal]:
        """Return the total usage of each API key, day or model, sorted by name.

        Args:
            by: the property that groups the entries.
            since: the first day, in UTC.
            until: the last day, in UTC.
            key: the digest of the only key to count; None for all keys.
        """
        shown = func.coalesce(keys.c.name, func.substr(usage.c.key, 1, DIGEST_LABEL_CHARS))
        name = {"key": shown, "day": usage.c.day, "model": usage.c.model}[by]
        group = [usage.c.key, keys.c.name] if by == "key" else [name]
        counted = (usage.c.pictures, usage.c.megapixel_steps, usage.c.device_seconds)
        asked = (
            select(name, func.count(), *map(func.sum, counted))
            .outerjoin_from(usage, keys, keys.c.digest == usage.c.key)
            .group_by(*group)
            .order_by(name)
        )
        if since is not None:
            asked = asked.where(usage.c.day >= since.isoformat())
        if until is not None:
            asked = asked.where(usage.c.day <= until.isoformat())
        if key is not None:
            asked = asked.where(usage.c.key == key)
        with self._database.read() as connection:
            return [UsageTotal(*row) for row in connection.execute(asked)]

    def find_digest(self, name: str) -> str:
        """Return the digest of a key by its name, or by the label that `sum_usage` shows for it.

        Raises:
            StoreError: no key has this name, and no entry this label.
        """
        named = select(keys.c.digest).where(keys.c.name == name)
        nameless = select(usage.c.key).where(
            func.substr(usage.c.key, 1, DIGEST_LABEL_CHARS) == name
        )
        with self._database.read() as connection:
            for asked in (named, nameless.limit(1)):
                if (found := connection.execute(asked).scalar()) is not None:
                    return str(found)
        raise StoreError(f"No key has the name {name!r}. `overpaint keys list` shows all keys.")
