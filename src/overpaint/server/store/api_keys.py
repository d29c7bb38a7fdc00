"""Keys that clients give, and links that stand for them.

Of a key the store has the SHA-256 alone; that of 256 random bits cannot be undone. Jobs belong to
the digest.
"""

import base64
import contextlib
import hashlib
import hmac
import secrets
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from overpaint.errors import StoreError
from overpaint.server.store.database import DEFAULT_STORE_SETTINGS, Database
from overpaint.server.store.tables import keys

KEY_PREFIX = "op_"
"""What keys begin with, so that scanners for leaked ones find them."""

KEY_BYTES = 32
MAX_NAME_CHARS = 100


@dataclass(frozen=True)
class ApiKey:
    """A key of the store: its name and when it was made and revoked, in seconds since 1970."""

    name: str
    created: float
    revoked: float | None


def hash_key(key: str) -> str:
    """Return the digest of an API key, which identifies its jobs and usage."""
    return hashlib.sha256(key.encode()).hexdigest()


class ApiKeys:
    """The API keys of a store and those that a server was started with. Any thread may call it."""

    def __init__(
        self,
        database: Database,
        given: Iterable[str] = (),
        cache_s: float = DEFAULT_STORE_SETTINGS.key_cache_s,
    ):
        """Read the store's keys when they are first needed.

        Args:
            database: the job store.
            given: API keys that are not in the store.
            cache_s: seconds until the store is read again; a revoked key works for that long.
        """
        self._cache_s = cache_s
        self._database = database
        self._given = tuple(hash_key(key) for key in given)
        self._until = 0.0
        self._stored: tuple[str, ...] = ()
        self._any = False

    def are_required(self) -> bool:
        """Whether clients must give one: from the first key on, also when it is revoked.

        Raises:
            SQLAlchemyError: the store is out of order.
        """
        if self._given:
            return True
        self._refresh()
        return self._any

    def has_active(self) -> bool:
        """Whether there is a key that opens; errors as `demanded`."""
        if self._given:
            return True
        self._refresh()
        return bool(self._stored)

    def accepts(self, digest: str) -> bool:
        """Whether a key by this digest opens; errors as `demanded`."""
        if any(hmac.compare_digest(digest, other) for other in self._given):
            return True
        self._refresh()
        return any(hmac.compare_digest(digest, other) for other in self._stored)

    def _refresh(self) -> None:
        if time.monotonic() < self._until:
            return
        with self._database.read() as connection:
            rows = connection.execute(select(keys.c.digest, keys.c.revoked)).all()
        self._stored = tuple(str(row.digest) for row in rows if row.revoked is None)
        self._any = bool(rows)
        self._until = time.monotonic() + self._cache_s

    def create(self, name: str | None = None) -> str:
        """A new key, which is not to be had again.

        Args:
            name: to know it by, no other's; by default the beginning of its digest.

        Raises:
            StoreError: the name is empty, too long or another's.
        """
        made = KEY_PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode()[:43]
        digest = hash_key(made)
        name = digest[:12] if name is None else name
        if not 0 < len(name) <= MAX_NAME_CHARS:
            raise StoreError(
                f"a key's name has 1 to {MAX_NAME_CHARS} characters; {name!r} has not."
            )
        try:
            with self._database.write() as connection:
                row = {"digest": digest, "name": name, "created": self._database.now(connection)}
                connection.execute(insert(keys).values(row))
        except IntegrityError:
            raise StoreError(f"there is, or was, a key {name!r}; take another name.") from None
        return made

    def list_keys(self) -> list[ApiKey]:
        """Those of the store, revoked ones too; the oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(keys).order_by(keys.c.created, keys.c.name)).all()
        return [ApiKey(row.name, row.created, row.revoked) for row in rows]

    def revoke(self, name: str) -> None:
        """Have a key open nothing more; its jobs stay.

        Raises:
            StoreError: there is none by that name that opens.
        """
        with self._database.write() as connection:
            one = update(keys).where(keys.c.name == name, keys.c.revoked.is_(None))
            done = connection.execute(one.values(revoked=self._database.now(connection)))
        if done.rowcount != 1:
            raise StoreError(
                f"no key {name!r} opens anything; see `overpaint keys list` for those that do."
            )


@contextlib.contextmanager
def open_api_keys(url: str) -> Generator[ApiKeys]:
    """The keys of a store, which is made where there is none.

    Raises:
        StoreError: as `Database`.
    """
    database = Database(url)
    try:
        yield ApiKeys(database)
    finally:
        database.close()
