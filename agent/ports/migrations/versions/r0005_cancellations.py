"""Orders that end here because somebody said so, also when they come later."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_MOMENT = sa.BigInteger  # microseconds since 1970, UTC


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "cancellations",
        sa.Column("order_digest", sa.Text, primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("keep_until", _MOMENT, nullable=False),
        sa.Column("uid", sa.BigInteger),
        sa.Column("reason", sa.Text),
        sa.Column("envelope", sa.LargeBinary),
        sqlite_with_rowid=False,
    )
    op.create_index("cancellations_by_source", "cancellations", ["source"])
    op.create_index("cancellations_by_end", "cancellations", ["keep_until"])
