"""When this ledger was put back from a backup, and which requests it therefore refuses."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_MOMENT = sa.BigInteger  # microseconds since 1970, UTC


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "restores",
        sa.Column("seq", _KEY, primary_key=True),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("backup_made_at", _MOMENT, nullable=False),
        sa.Column("signed_after", _MOMENT, nullable=False),
        sa.Column("uid", sa.BigInteger),
    )
