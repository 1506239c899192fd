"""The log of events becomes the audit log: each line carries a digest over itself and the one before, and none can go.

The lines that are there are chained as they stand. Jobs that were there before lines named datasets get a line that does. How a
line becomes bytes is written down here once more, for a revision never changes.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_BATCH = 20_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HAS_DATASET = "dataset IS NOT NULL"
_TRIGGERS = (
    "CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
    "CREATE TRIGGER events_last BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
    "CREATE TRIGGER events_once BEFORE INSERT ON events WHEN EXISTS (SELECT 1 FROM events WHERE seq = NEW.seq)"
    " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
)


class _Line(msgspec.Struct):
    """A line; the order of its members is that of the bytes."""

    seq: int
    at: datetime
    name: str
    order: str | None
    position: int | None
    dataset: str | None
    values: msgspec.Raw
    previous: str | None


def upgrade() -> None:
    """Add the columns, chain what is there, and then let nothing be changed any more."""
    op.add_column("events", sa.Column("dataset", sa.Text))
    op.add_column("events", sa.Column("digest", sa.Text))
    plain = op.get_bind().connection.cursor()
    last = _chain(plain)
    if last is not None:
        _tell(plain, last, _about_old_jobs(plain))
    where = sa.text(_HAS_DATASET)
    op.create_index(
        "events_by_dataset", "events", ["dataset", "seq"], sqlite_where=where, postgresql_where=where
    )
    for trigger in _TRIGGERS:
        op.execute(trigger)


def _digest(line: _Line) -> str:
    return "sha256:" + hashlib.sha256(msgspec.json.encode(line)).hexdigest()


def _chain(plain: Any) -> tuple[int, str] | None:
    """Give every line its digest, batch by batch; (number, digest) of the last one."""
    seq, digest = 0, None
    query = (
        'SELECT seq, at, name, order_id, position, "values" FROM events WHERE seq > ? ORDER BY seq LIMIT ?'
    )
    while rows := plain.execute(query, (seq, _BATCH)).fetchall():
        digests = []
        for seq, at, name, order, position, values in rows:
            moment = _EPOCH + timedelta(microseconds=at)
            line = _Line(seq, moment, name, order, position, None, msgspec.Raw(values.encode()), digest)
            digest = _digest(line)
            digests.append((digest, seq))
        plain.executemany("UPDATE events SET digest = ? WHERE seq = ?", digests)
    return None if digest is None else (seq, digest)


def _about_old_jobs(plain: Any) -> Iterator[tuple[str, str | None, int | None, str | None, dict[str, Any]]]:
    """(name, order, position, dataset, values) of the lines to be added."""
    (lines,) = plain.execute("SELECT count(*) FROM events").fetchone()
    yield "audit.began", None, None, None, {"lines": lines}
    known = plain.connection.execute(
        "SELECT jobs.order_id, jobs.position, jobs.kind, orders.digest, orders.signer, orders.envelope"
        " FROM jobs JOIN orders ON orders.id = jobs.order_id ORDER BY jobs.seq"
    )
    for order, position, kind, digest, signer, envelope in known:
        tree = _payload(envelope)
        data = tree["data"] if "data" in tree else [*tree["train_data"], *tree["test_data"]]
        values = {
            "kind": kind,
            "version": data[position]["version"],
            "orchestrator": signer,
            "order": digest,
        }
        if kind == "test":
            values["problem_image"] = tree["problem_image"]["digest"]
        values["algo_image"] = tree["algo_image"]["digest"]
        yield "job.known", order, position, data[position]["id"], values


def _payload(envelope: bytes) -> dict[str, Any]:
    """The order in an envelope that was verified when it was recorded."""
    text = json.loads(envelope)["payload"].translate(str.maketrans("-_", "+/"))
    tree: dict[str, Any] = json.loads(base64.b64decode(text))
    return tree


def _tell(plain: Any, last: tuple[int, str], told: Iterator[Any]) -> None:
    seq, digest = last
    moment = datetime.now(UTC)
    rows = []
    for name, order, position, dataset, values in told:
        seq += 1
        raw = msgspec.json.encode(values)
        digest = _digest(_Line(seq, moment, name, order, position, dataset, msgspec.Raw(raw), digest))
        at = (moment - _EPOCH) // timedelta(microseconds=1)
        rows.append((seq, at, name, order, position, raw.decode(), dataset, digest))
    plain.executemany(
        'INSERT INTO events (seq, at, name, order_id, position, "values", dataset, digest)'
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        rows,
    )
