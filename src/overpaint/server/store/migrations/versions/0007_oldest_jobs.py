"""Find expired jobs without reading all ended jobs."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create an index of the times at which jobs ended."""
    op.create_index("jobs_oldest", "jobs", ["ended"])
