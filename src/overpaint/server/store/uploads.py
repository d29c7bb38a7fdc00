"""Uploads of API keys: their names and times. `Files` has the content, by its hash."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from overpaint.server.store.database import Database
from overpaint.server.store.tables import uploads


@dataclass(frozen=True)
class NewUpload:
    """An upload to record."""

    key: str
    """Digest of the API key that owns it; "" without keys."""

    id: str
    """Id in links; the SHA-256 of the content, or an unguessable name."""

    file: str | None = None
    """SHA-256 of the content; None until the content arrives."""

    size: int = 0
    """Bytes of the content."""

    name: str = ""
    """File name that the client gave."""

    content_type: str = "application/octet-stream"
    """Media type that the client gave."""

    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Values that the client attached to the file."""


@dataclass(frozen=True)
class Upload(NewUpload):
    """An upload of the store."""

    created: float = 0.0
    """Seconds since 1970."""

    deleted: bool = False
    """True if its owner deleted it."""


class Uploads:
    """The uploads of a store. Any thread may call it; each call is one transaction."""

    def __init__(self, database: Database):
        self._write, self._read, self._now = database.write, database.read, database.now

    def record(self, new: NewUpload) -> Upload:
        """Record an upload, in place of an earlier one with the same id."""
        try:
            return self._replace(new)
        except IntegrityError:  # Another request recorded the same content at the same time.
            return self._replace(new)

    def _replace(self, new: NewUpload) -> Upload:
        this = and_(uploads.c.key == new.key, uploads.c.id == new.id)
        with self._write() as connection:
            row = {name: getattr(new, name) for name in NewUpload.__dataclass_fields__}
            row |= {"details": dict(new.details), "created": self._now(connection)}
            row["deleted"] = False
            if connection.execute(update(uploads).where(this).values(row)).rowcount == 0:
                connection.execute(insert(uploads).values(row))
        return Upload(**row)

    def complete(self, name: str, file: str, size: int) -> bool:
        """Add the content of an upload that was recorded before its content arrived.

        Args:
            name: id of the upload.
            file: SHA-256 of the content.
            size: bytes of the content.

        Returns:
            False if there is no such upload, or it has other content already.
        """
        missing = or_(uploads.c.file.is_(None), uploads.c.file == file)
        this = and_(uploads.c.id == name, missing, uploads.c.deleted.is_(False))
        with self._write() as connection:
            values = {"file": file, "size": size}
            return connection.execute(update(uploads).where(this).values(values)).rowcount == 1

    def get(self, key: str, name: str) -> Upload | None:
        """Return an upload of an API key, even if it is deleted."""
        if "\0" in name:  # Postgres raises an error for such text.
            return None
        wanted = and_(uploads.c.key == key, uploads.c.id == name)
        return next(iter(self._list(wanted, limit=1)), None)

    def find(self, name: str) -> Upload | None:
        """Return the upload with an unguessable id, whichever API key owns it, unless deleted."""
        wanted = and_(uploads.c.id == name, uploads.c.deleted.is_(False))
        return next(iter(self._list(wanted, limit=1)), None)

    def list_page(self, key: str, count: int, before: Upload | None = None) -> list[Upload]:
        """Return uploads of an API key that have the hash of their content as id, newest first.

        Args:
            key: digest of the API key.
            count: the largest number of uploads.
            before: the last upload of the page before.
        """
        of_key = and_(uploads.c.key == key, uploads.c.deleted.is_(False))
        wanted = and_(of_key, uploads.c.file == uploads.c.id)
        if before:
            same_time = and_(uploads.c.created == before.created, uploads.c.id < before.id)
            wanted = and_(wanted, or_(uploads.c.created < before.created, same_time))
        return self._list(wanted, limit=count)

    def _list(self, wanted: Any, limit: int) -> list[Upload]:
        columns = [uploads.c[name] for name in Upload.__dataclass_fields__]
        found = select(*columns).where(wanted)
        newest_first = found.order_by(uploads.c.created.desc(), uploads.c.id.desc()).limit(limit)
        with self._read() as connection:
            return [Upload(**row) for row in connection.execute(newest_first).mappings()]

    def delete(self, key: str, name: str) -> bool:
        """Mark an upload of an API key as deleted.

        The row stays until the content expires, because jobs and other keys may use the content.

        Returns:
            False if there is no such upload.
        """
        if "\0" in name:
            return False
        this = and_(uploads.c.key == key, uploads.c.id == name, uploads.c.deleted.is_(False))
        with self._write() as connection:
            return connection.execute(update(uploads).where(this).values(deleted=True)).rowcount > 0

    def delete_before(self, until: float) -> None:
        """Remove the rows of uploads from before a time, in seconds since 1970."""
        with self._write() as connection:
            connection.execute(delete(uploads).where(uploads.c.created < until))
