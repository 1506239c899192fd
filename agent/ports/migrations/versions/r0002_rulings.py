"""What the operator ruled on images, and what archives hold that wait for a ruling."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_MOMENT = sa.BigInteger  # microseconds since 1970, UTC


def upgrade() -> None:
    """Make the three tables."""
    op.create_table(
        "rulings",
        sa.Column("seq", _KEY, primary_key=True),
        sa.Column("image", sa.Text, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("uid", sa.BigInteger),
        sa.Column("reason", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index("rulings_by_image", "rulings", ["image", "seq"])
    op.create_table(
        "descriptions",
        sa.Column("image", sa.Text, primary_key=True),
        sa.Column("read_at", _MOMENT, nullable=False),
        sa.Column("archive_bytes", sa.BigInteger, nullable=False),
        sa.Column("problem", sa.Text),
        sa.Column("about", sa.LargeBinary),
    )
    op.create_table(
        "listings",
        sa.Column("image", sa.Text, sa.ForeignKey("descriptions.image"), primary_key=True),
        sa.Column("page", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("entries", sa.LargeBinary, nullable=False),
    )
