"""API keys: which keys the server accepts, and how an operator makes and revokes them.

The store holds only the SHA-256 digest of a key. Nobody can compute a key of 256 random bits from
its digest. Jobs and usage belong to the digest.
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
"""Prefix of every key, by which scanners find leaked keys."""

KEY_BYTES = 32
MAX_NAME_CHARS = 100

CACHE_MARGIN_S = 0.1
"""Seconds in which a caller that asked `ApiKeys.are_cached` gets its answer."""


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
    """The API keys of a store and of the server's settings. Any thread may call its methods."""

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

    def are_cached(self) -> bool:
        """Return whether an answer within `CACHE_MARGIN_S` needs no read of the store."""
        return time.monotonic() + CACHE_MARGIN_S < self._until

    def are_required(self) -> bool:
        """Return whether clients must send an API key.

        They must as soon as one key exists, even if it is revoked.

        Raises:
            SQLAlchemyError: the store cannot be read.
        """
        if self._given:
            return True
        self._refresh()
        return self._any

    def has_active(self) -> bool:
        """Return whether at least one key is valid.

        Raises:
            SQLAlchemyError: the store cannot be read.
        """
        if self._given:
            return True
        self._refresh()
        return bool(self._stored)

    def accepts(self, digest: str) -> bool:
        """Return whether the key with this digest is valid.

        Raises:
            SQLAlchemyError: the store cannot be read.
        """
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
        """Create a key and return it. The store keeps only its digest, so show it now.

        Args:
            name: a unique name; by default the first 12 characters of the digest.

        Raises:
            StoreError: the name is empty, too long, or belongs to another key.
        """
        made = KEY_PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).decode()[:43]
        digest = hash_key(made)
        name = digest[:12] if name is None else name
        if not 0 < len(name) <= MAX_NAME_CHARS:
            raise StoreError(
                f"The key name {name!r} has {len(name)} characters. Give 1 to {MAX_NAME_CHARS}."
            )
        try:
            with self._database.write() as connection:
                row = {"digest": digest, "name": name, "created": self._database.now(connection)}
                connection.execute(insert(keys).values(row))
        except IntegrityError:
            raise StoreError(f"A key {name!r} exists already. Choose another name.") from None
        return made

    def list_keys(self) -> list[ApiKey]:
        """Return the keys of the store, including revoked ones, oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(select(keys).order_by(keys.c.created, keys.c.name)).all()
        return [ApiKey(row.name, row.created, row.revoked) for row in rows]

    def revoke(self, name: str) -> None:
        """Revoke a key. Its jobs stay in the store.

        Raises:
            StoreError: no valid key has this name.
        """
        with self._database.write() as connection:
            one = update(keys).where(keys.c.name == name, keys.c.revoked.is_(None))
            done = connection.execute(one.values(revoked=self._database.now(connection)))
        if done.rowcount != 1:
            raise StoreError(
                f"No valid key has the name {name!r}. `overpaint keys list` shows all keys."
            )


@contextlib.contextmanager
def open_api_keys(url: str) -> Generator[ApiKeys]:
    """Open the keys of a store. If the store does not exist, create it.

    Raises:
        StoreError: the store cannot be opened, see `Database`.
    """
    database = Database(url)
    try:
        yield ApiKeys(database)
    finally:
        database.close()
