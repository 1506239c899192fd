"""So that a million rows slow nothing down: indices for the sweep and the outbox, counts of deliveries and of lines."""

import base64
import json
import time
from contextlib import suppress

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
_OPEN = "('received', 'held', 'queued', 'running')"
_NEEDS = tuple(
    words.replace("OPEN_", _OPEN)
    for words in (
        "CREATE TRIGGER needs_come AFTER INSERT ON jobs WHEN NEW.state IN OPEN_ BEGIN"
        " INSERT INTO image_needs SELECT images, 1, NEW.state = 'held' FROM orders"
        " WHERE id = NEW.order_id AND images IS NOT NULL"
        " ON CONFLICT (images) DO UPDATE SET open = open + 1, held = held + excluded.held; END",
        "CREATE TRIGGER needs_go AFTER DELETE ON jobs WHEN OLD.state IN OPEN_ BEGIN"
        " UPDATE image_needs SET open = open + -1, held = held + - (OLD.state = 'held')"
        " WHERE images = (SELECT images FROM orders WHERE id = OLD.order_id); END",
        "CREATE TRIGGER needs_move AFTER UPDATE OF state ON jobs WHEN 'held' IN (OLD.state, NEW.state)"
        " OR (OLD.state IN OPEN_) IS NOT (NEW.state IN OPEN_) BEGIN"
        " UPDATE image_needs SET open = open + (NEW.state IN OPEN_) - (OLD.state IN OPEN_),"
        " held = held + (NEW.state = 'held') - (OLD.state = 'held')"
        " WHERE images = (SELECT images FROM orders WHERE id = NEW.order_id); END",
    )
)
# Orders that may still get a job here, or have one that is open.
_ALIVE = sa.text(
    f"SELECT id, envelope FROM orders WHERE expires > :now OR id IN (SELECT order_id FROM jobs WHERE state IN {_OPEN})"  # noqa: S608 - our own words
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
    op.create_index("deliveries_by_job", "deliveries", ["job_id"])
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
    op.add_column("orders", sa.Column("images", sa.Text))
    op.create_table(
        "image_needs",
        sa.Column("images", sa.Text, primary_key=True),
        sa.Column("open", sa.BigInteger, nullable=False),
        sa.Column("held", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    _note_images(op.get_bind())
    if op.get_bind().dialect.name == "sqlite":
        for trigger in (*_TRIGGERS, *_NEEDS):
            op.execute(trigger)


def _note_images(connection: sa.Connection) -> None:
    """What the orders name that are alive, and how often. One that cannot be read names nothing: it cannot run either."""
    day_ago = int((time.time() - 86_400) * 1_000_000)
    told = sa.text("UPDATE orders SET images = :images WHERE id = :id")
    for row in connection.execute(_ALIVE, {"now": day_ago}).fetchall():
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            payload = json.loads(base64.b64decode(json.loads(row.envelope)["payload"]))
            named = {payload[name]["digest"] for name in ("problem_image", "algo_image") if name in payload}
            connection.execute(told, {"id": row.id, "images": " ".join(sorted(named))})
    connection.execute(
        sa.text(
            "INSERT INTO image_needs SELECT orders.images, count(*), sum(jobs.state = 'held')"  # noqa: S608 - our own words
            " FROM jobs JOIN orders ON orders.id = jobs.order_id"
            f" WHERE jobs.state IN {_OPEN} AND orders.images IS NOT NULL GROUP BY orders.images"
        )
    )
