"""What is left of orders that were kept long enough, and an index that finds them."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_MOMENT = sa.BigInteger  # microseconds since 1970, UTC
_IS_FINAL = sa.text("state IN ('done', 'failed', 'cancelled', 'expired')")


def upgrade() -> None:
    """Make the table and the index."""
    op.create_table(
        "past_orders",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("expires", _MOMENT, nullable=False),
        sa.Column("forgotten_at", _MOMENT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("jobs_by_end", "jobs", ["changed_at"], sqlite_where=_IS_FINAL, postgresql_where=_IS_FINAL)
