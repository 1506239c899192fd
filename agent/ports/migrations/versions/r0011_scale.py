"""So that a million rows slow nothing down: indices for the sweep and the outbox, counts of deliveries and of lines."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

_PENDING = "state = 'pending'"
_INDICES = (
    ("jobs_resting", "jobs", ["not_before"], "state = 'queued' AND not_before IS NOT NULL"),
    ("jobs_placing", "jobs", ["changed_at"], "state = 'received'"),
    ("deliveries_to", "deliveries", ["target", "next_try_at"], _PENDING),
    ("deliveries_unsent", "deliveries", ["seq"], _PENDING),
    ("deliveries_leased", "deliveries", ["lease_until"], "state = 'pending' AND lease_until IS NOT NULL"),
    (
        "deliveries_handed_over",
        "deliveries",
        ["acknowledged_at"],
        "kind = 'handoff' AND state = 'acknowledged'",
    ),
)
_ONE_MORE = (
    "INSERT INTO delivery_counts VALUES (NEW.state, 1) ON CONFLICT (state) DO UPDATE SET count = count + 1;"
)
_ONE_LESS = "UPDATE delivery_counts SET count = count - 1 WHERE state = OLD.state;"
_TRIGGERS = (
    f"CREATE TRIGGER deliveries_come AFTER INSERT ON deliveries BEGIN {_ONE_MORE} END",
    f"CREATE TRIGGER deliveries_go AFTER DELETE ON deliveries BEGIN {_ONE_LESS} END",
    "CREATE TRIGGER deliveries_move AFTER UPDATE OF state ON deliveries WHEN OLD.state IS NOT NEW.state"
    f" BEGIN {_ONE_LESS} {_ONE_MORE} END",
    "CREATE TRIGGER events_of_dataset AFTER INSERT ON events WHEN NEW.dataset IS NOT NULL"
    " BEGIN INSERT INTO dataset_lines VALUES (NEW.dataset, 1, NEW.seq)"
    " ON CONFLICT (dataset) DO UPDATE SET lines = lines + 1, last = excluded.last; END",
)


def upgrade() -> None:
    """Make the indices, and the counts of what is there now with the triggers that keep them."""
    for name, table, columns, where in _INDICES:
        op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))
    op.create_table(
        "delivery_counts",
        sa.Column("state", sa.Text, primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "dataset_lines",
        sa.Column("dataset", sa.Text, primary_key=True),
        sa.Column("lines", sa.BigInteger, nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("dataset_lines_by_last", "dataset_lines", ["last"])
    op.execute("INSERT INTO delivery_counts SELECT state, count(*) FROM deliveries GROUP BY state")
    op.execute(
        "INSERT INTO dataset_lines SELECT dataset, count(*), max(seq) FROM events"
        " WHERE dataset IS NOT NULL GROUP BY dataset"
    )
    if op.get_bind().dialect.name == "sqlite":
        for trigger in _TRIGGERS:
            op.execute(trigger)
