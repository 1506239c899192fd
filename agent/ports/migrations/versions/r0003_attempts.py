"""What makes an attempt outlive its worker: claims and steps. And the one row that says what the host does."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_MOMENT = sa.BigInteger  # microseconds since 1970, UTC


def upgrade() -> None:
    """Give jobs their claim, and make the two tables."""
    op.add_column("jobs", sa.Column("claim", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "steps",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("begun_at", _MOMENT, nullable=False),
        sa.Column("ended_at", _MOMENT),
        sa.Column("outcome", sa.LargeBinary),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "control",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("since", _MOMENT),
        sa.Column("until", _MOMENT),
        sa.Column("reason", sa.Text),
        sa.Column("uid", sa.BigInteger),
    )
