"""How many jobs are in each state, kept by triggers, so that nobody counts a million finished ones."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_ONE_MORE = (
    "INSERT INTO job_counts VALUES (NEW.state, 1) ON CONFLICT (state) DO UPDATE SET count = count + 1;"
)
_ONE_LESS = "UPDATE job_counts SET count = count - 1 WHERE state = OLD.state;"
_TRIGGERS = (
    f"CREATE TRIGGER jobs_come AFTER INSERT ON jobs BEGIN {_ONE_MORE} END",
    f"CREATE TRIGGER jobs_go AFTER DELETE ON jobs BEGIN {_ONE_LESS} END",
    "CREATE TRIGGER jobs_move AFTER UPDATE OF state ON jobs WHEN OLD.state IS NOT NEW.state"
    f" BEGIN {_ONE_LESS} {_ONE_MORE} END",
)


def upgrade() -> None:
    """Make the table with what is there now, and the triggers that keep it."""
    op.create_table(
        "job_counts",
        sa.Column("state", sa.Text, primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.execute("INSERT INTO job_counts SELECT state, count(*) FROM jobs GROUP BY state")
    if op.get_bind().dialect.name == "sqlite":
        for trigger in _TRIGGERS:
            op.execute(trigger)
