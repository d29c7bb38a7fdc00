"""Create jobs, events, idempotency tokens, used files and webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables of schema version 1."""
    about = op.create_table("about", sa.Column("version", sa.Integer, nullable=False))
    op.bulk_insert(about, [{"version": 1}])
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("origin", sa.JSON, nullable=False),
        sa.Column("webhook", sa.Text),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("work", sa.Float, nullable=False),
        sa.Column("rank", sa.Float, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(64)),
        sa.Column("lease", sa.Float),
        sa.Column("canceling", sa.Boolean, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("started", sa.Float),
        sa.Column("ended", sa.Float),
        sa.Column("error", sa.Text),
        sa.Column("result", sa.JSON),
    )
    op.create_index("jobs_next", "jobs", ["state", "priority", "rank", "id"])
    op.create_index("jobs_queued", "jobs", ["key", "state", "work"])
    op.create_index("jobs_newest", "jobs", ["key", "created", "id"])
    op.create_index("jobs_owned", "jobs", ["owner", "lease"])
    op.create_table(
        "events",
        sa.Column("job", sa.String(64), _job(), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
    )
    op.create_table(
        "tokens",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("token", sa.String(256), primary_key=True),
        sa.Column("body", sa.String(64), nullable=False),
        sa.Column("job", sa.String(64), _job(), nullable=False, index=True),
    )
    op.create_table(
        "uses",
        sa.Column("job", sa.String(64), _job(), primary_key=True),
        sa.Column("file", sa.String(64), primary_key=True, index=True),
    )
    op.create_table(
        "outbox",
        sa.Column("id", _number(), primary_key=True),
        sa.Column("job", sa.String(64), _job(), nullable=False, index=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("due", sa.Float, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
    )
    op.create_index("outbox_due", "outbox", ["state", "due"])
    op.create_table(
        "deliveries",
        sa.Column("id", _number(), primary_key=True),
        sa.Column(
            "post",
            _number(),
            sa.ForeignKey("outbox.id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
        sa.Column("at", sa.Float, nullable=False),
        sa.Column("status", sa.Integer),
        sa.Column("error", sa.Text),
        sa.Column("seconds", sa.Float, nullable=False),
    )


def _job() -> sa.ForeignKey:
    return sa.ForeignKey("jobs.id", ondelete="CASCADE")


def _number() -> sa.types.TypeEngine[int]:
    return sa.BigInteger().with_variant(sa.Integer, "sqlite")
