"""The tables of the job store: one schema, on SQLite and on Postgres."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)

SCHEMA_VERSION = 7
"""Version of the schema below: the number of the last file in `migrations/versions`."""

ABOUT_VERSION = 5
"""Number in the table `about`, of every store since Alembic migrates them.

Programs up to schema version 4 read the version there. They refuse a store with this number.
"""

schema = MetaData()

about = Table("about", schema, Column("version", Integer, nullable=False))

# Alembic's own table. It is not in `schema`, so that Alembic does not compare it.
alembic_version = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)

jobs = Table(
    "jobs",
    schema,
    Column("id", String(64), primary_key=True),
    Column("key", String(64), nullable=False),
    Column("model", Text, nullable=False),
    Column("request", JSON, nullable=False),
    Column("origin", JSON, nullable=False),
    Column("webhook", Text),
    Column("priority", Integer, nullable=False),
    Column("work", Float, nullable=False),
    Column("rank", Float, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("owner", String(64)),
    Column("lease", Float),
    Column("canceling", Boolean, nullable=False),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("ended", Float),
    Column("error", Text),
    Column("result", JSON),
    # For `claim`, the limits of a key, `list_page`, and expired leases.
    Index("jobs_next", "state", "priority", "rank", "id"),
    Index("jobs_queued", "key", "state", "work"),
    Index("jobs_newest", "key", "created", "id"),
    Index("jobs_owned", "owner", "lease"),
    Index("jobs_oldest", "ended"),
)

events = Table(
    "events",
    schema,
    Column("job", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("at", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("body", JSON, nullable=False),
)

# One row for each job that has ended. The row stays when the job is deleted.
usage = Table(
    "usage",
    schema,
    Column("job", String(64), primary_key=True),
    Column("key", String(64), nullable=False),
    Column("model", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("ended", Float, nullable=False),
    Column("day", String(10), nullable=False),  # of the end, in UTC: 2026-11-30
    Column("pictures", Integer, nullable=False),
    Column("megapixel_steps", Float, nullable=False),
    Column("device_seconds", Float, nullable=False),
    Index("usage_by_key", "key", "day"),
)

tokens = Table(
    "tokens",
    schema,
    Column("key", String(64), primary_key=True),
    Column("token", String(256), primary_key=True),
    Column("body", String(64), nullable=False),
    Column("job", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
)

uses = Table(
    "uses",
    schema,
    Column("job", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("file", String(64), primary_key=True, index=True),
)

outbox = Table(
    "outbox",
    schema,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("job", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("due", Float, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("turn", Integer, nullable=False),
    Index("outbox_due", "state", "due"),
)

deliveries = Table(
    "deliveries",
    schema,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("post", ForeignKey("outbox.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("status", Integer),
    Column("error", Text),
    Column("seconds", Float, nullable=False),
)

secrets = Table(
    "secrets",
    schema,
    Column("key", String(64), primary_key=True),
    Column("secret", Text, nullable=False),
)

keys = Table(
    "keys",
    schema,
    Column("digest", String(64), primary_key=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("created", Float, nullable=False),
    Column("revoked", Float),
)

# The content lies in the folder of files, by its hash, and may belong to several uploads.
uploads = Table(
    "uploads",
    schema,
    Column("id", String(64), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("file", String(64)),
    Column("size", BigInteger, nullable=False),
    Column("name", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("details", JSON, nullable=False),
    Column("created", Float, nullable=False),
    Column("deleted", Boolean, nullable=False),
    Index("uploads_newest", "key", "created", "id"),
    Index("uploads_oldest", "created"),
)
