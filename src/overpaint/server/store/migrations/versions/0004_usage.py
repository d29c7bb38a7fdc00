"""Record what each job used, from its end on.

Jobs that ended earlier get no row, because their cost is not known.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the table `usage`."""
    # An early program created missing tables before it refused the store.
    op.create_table(
        "usage",
        sa.Column("job", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("ended", sa.Float, nullable=False),
        sa.Column("day", sa.String(10), nullable=False),
        sa.Column("pictures", sa.Integer, nullable=False),
        sa.Column("megapixel_steps", sa.Float, nullable=False),
        sa.Column("device_seconds", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_index("usage_by_key", "usage", ["key", "day"], if_not_exists=True)
