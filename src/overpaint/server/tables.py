"""The tables of the job store: one schema, on SQLite and on Postgres."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    text,
)

VERSION = 1

schema = MetaData()

about = Table("about", schema, Column("version", Integer, nullable=False))

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
    # What is claimed next; whose jobs are queued; what a key has, newest first; what ran out.
    Index("jobs_next", "state", "priority", "rank", "id"),
    Index("jobs_queued", "key", "state", "work"),
    Index("jobs_newest", "key", "created", "id"),
    Index("jobs_owned", "owner", "lease"),
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


def connect(url: str) -> Engine:
    """An engine whose every transaction may write, and is durable when it is committed.

    SQLite: WAL; a commit returns once it is on the disk; whoever begins has the right to write, so
    that no transaction fails half-way because of another.
    """
    engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def opened(connection: Any, _: Any) -> None:  # pyright: ignore[reportUnusedFunction]
            connection.isolation_level = None  # BEGIN is ours
            for setting in (
                "journal_mode = WAL",
                "synchronous = FULL",
                "foreign_keys = ON",
                "busy_timeout = 60000",
            ):
                connection.execute(f"PRAGMA {setting}")

        @event.listens_for(engine, "begin")
        def begun(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
            reads = connection.get_execution_options().get("reads", False)
            connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def lay(engine: Engine) -> int:
    """Make the tables where there are none; returns the version of the schema that is there."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Two servers may start at once.
            connection.execute(text("SELECT pg_advisory_xact_lock(7160)"))
        schema.create_all(connection)
        found = connection.execute(about.select()).scalar()
        if found is None:
            connection.execute(about.insert().values(version=VERSION))
            return VERSION
        return int(found)
