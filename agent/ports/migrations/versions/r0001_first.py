"""The first ledger: orders, receipts, jobs, deliveries, nonces, events, logs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_MOMENT = sa.BigInteger  # microseconds since 1970, UTC


def upgrade() -> None:
    """Make the tables."""
    _orders_and_receipts()
    _jobs()
    _deliveries()
    _nonces()
    _events_and_logs()
    _probe()


def _orders_and_receipts() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False, unique=True),
        sa.Column("payload_type", sa.Text, nullable=False),
        sa.Column("signer", sa.Text, nullable=False),
        sa.Column("sender", sa.Text, nullable=False),
        sa.Column("expires", _MOMENT, nullable=False),
        sa.Column("received_at", _MOMENT, nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "receipts",
        sa.Column("order_digest", sa.Text, sa.ForeignKey("orders.digest"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("signer", sa.Text, nullable=False),
        sa.Column("recorded_at", _MOMENT, nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("seq", _KEY, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("order_id", sa.Text, sa.ForeignKey("orders.id"), nullable=False),
        sa.Column("order_digest", sa.Text, nullable=False),
        sa.Column("signer", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("last_receipt", sa.Text),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("received_at", _MOMENT, nullable=False),
        sa.Column("changed_at", _MOMENT, nullable=False),
        sa.Column("not_before", _MOMENT),
        sa.Column("worker", sa.Text),
        sa.Column("lease_until", _MOMENT),
        sa.Column("next_agent", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("score", sa.Text),
        sa.UniqueConstraint("order_id", "position"),
    )
    op.create_index("jobs_by_state", "jobs", ["state", "seq"])
    op.create_index("jobs_by_signer", "jobs", ["signer", "state", "seq"])


def _deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("seq", _KEY, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("order_id", sa.Text, nullable=False),
        sa.Column("order_digest", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_try_at", _MOMENT, nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("expires_at", _MOMENT),
        sa.Column("acknowledged_at", _MOMENT),
        sa.Column("lease_until", _MOMENT),
        sa.Column("last_error", sa.Text),
        sa.UniqueConstraint("order_id", "position", "kind", "n"),
    )
    _partial_index("deliveries_dead", "deliveries", "seq", "state = 'dead'")
    _partial_index("deliveries_due", "deliveries", "next_try_at", "state = 'pending'")
    op.create_table(
        "bodies",
        sa.Column("delivery", sa.Text, sa.ForeignKey("deliveries.id"), primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )


def _nonces() -> None:
    op.create_table(
        "nonces",
        sa.Column("keyid", sa.Text, primary_key=True),
        sa.Column("nonce", sa.Text, primary_key=True),
        sa.Column("keep_until", _MOMENT, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("nonces_by_end", "nonces", ["keep_until"])


def _events_and_logs() -> None:
    op.create_table(
        "events",
        sa.Column("seq", _KEY, primary_key=True),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("order_id", sa.Text),
        sa.Column("position", sa.Integer),
        sa.Column("values", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("events_by_order", "events", ["order_id", "seq"])
    op.create_table(
        "logs",
        sa.Column("seq", _KEY, primary_key=True),
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id"), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("order_id", sa.Text, nullable=False),
        sa.Column("log", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("job_id", "attempt", "run"),
    )
    op.create_index("logs_by_order", "logs", ["order_id", "seq"])


def _probe() -> None:
    probe = op.create_table(
        "probe",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("count", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(probe, [{"id": 1, "count": 0}])


def _partial_index(name: str, table: str, column: str, where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, table, [column], sqlite_where=condition, postgresql_where=condition)
