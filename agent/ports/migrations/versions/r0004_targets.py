"""Who could not be reached when something was sent last."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "targets",
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("rests_until", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
