"""Leave the schema version to Alembic, and keep programs without Alembic out.

Programs up to schema version 4 read the number in `about` and refuse a store that has another one.
From here on that number stays 5, and the table `alembic_version` has the version.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Set the number in `about` to 5."""
    about = sa.table("about", sa.column("version", sa.Integer))
    op.execute(about.update().values(version=5))
