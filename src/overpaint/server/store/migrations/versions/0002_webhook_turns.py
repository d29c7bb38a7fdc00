"""Count how often a webhook became due again, and store the secrets that sign webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add `outbox.turn`, 0 for the webhooks that are there, and the table `secrets`."""
    with op.batch_alter_table("outbox") as outbox:
        outbox.add_column(sa.Column("turn", sa.Integer, nullable=False, server_default="0"))
    with op.batch_alter_table("outbox") as outbox:
        outbox.alter_column("turn", server_default=None)
    # An early program created missing tables before it refused the store.
    op.create_table(
        "secrets",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("secret", sa.Text, nullable=False),
        if_not_exists=True,
    )
