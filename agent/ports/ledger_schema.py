"""The ledger's tables and indices as they are now. What a row means is said by the values in `ledger.py`, how the tables came
about by `migrations/`; a test holds that both give the same file.

Large columns stand last or in a table of their own: a row that moves often must not drag megabytes along.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    event,
    text,
)

HEAD: Final = "0010"  # the newest revision in migrations/versions

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Moment(TypeDecorator[datetime]):
    """An aware moment, kept as whole microseconds since 1970 in UTC: sortable, exact, no time zone to guess."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + value * _MICROSECOND


# The conditions of the partial indices. A query must carry the very same text, or SQLite does not see that an index fits:
# values that are bound later prove nothing to its planner. A full index on a delivery's state would be worse than none: the
# planner then prefers it to the order's, and reads everything that is pending.
IS_PENDING: Final = "state = 'pending'"
IS_DEAD: Final = "state = 'dead'"
IS_FINAL: Final = "state IN ('done', 'failed', 'cancelled', 'expired')"

metadata = MetaData()

_Key = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only in an INTEGER key

orders = Table(
    "orders",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False, unique=True),
    Column("payload_type", Text, nullable=False),
    Column("signer", Text, nullable=False),
    Column("sender", Text, nullable=False),
    Column("expires", Moment, nullable=False),
    Column("received_at", Moment, nullable=False),
    Column("trace_id", Text),  # what was given with it; none where it is the order's own
    Column("envelope", LargeBinary, nullable=False),
)

receipts = Table(
    "receipts",
    metadata,
    Column("order_digest", Text, ForeignKey("orders.digest"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("digest", Text, nullable=False),
    Column("signer", Text, nullable=False),
    Column("recorded_at", Moment, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", _Key, primary_key=True),  # the order of arrival, for paging
    Column("id", Text, nullable=False, unique=True),
    Column("order_id", Text, ForeignKey("orders.id"), nullable=False),
    Column("order_digest", Text, nullable=False),
    Column("signer", Text, nullable=False),  # the order's, kept here so that one index serves a listing
    Column("position", Integer, nullable=False),
    Column("last_receipt", Text),  # the digest of the receipt before this place, as the job arrived
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("received_at", Moment, nullable=False),
    Column("changed_at", Moment, nullable=False),
    Column("not_before", Moment),
    Column("worker", Text),
    Column("lease_until", Moment),
    Column("next_agent", Text),
    Column("reason", Text),
    Column("score", Text),
    Column("claim", Integer, nullable=False, server_default="0"),
    UniqueConstraint("order_id", "position"),
)
Index("jobs_by_state", jobs.c.state, jobs.c.seq)
Index("jobs_by_signer", jobs.c.signer, jobs.c.state, jobs.c.seq)

# How many jobs are in each state. Triggers keep it, whoever writes: finished jobs only grow, and are asked for all the time.
job_counts = Table(
    "job_counts",
    metadata,
    Column("state", Text, primary_key=True),
    Column("count", BigInteger, key="count_", nullable=False),
    sqlite_with_rowid=False,
)
_ONE_MORE: Final = (
    "INSERT INTO job_counts VALUES (NEW.state, 1) ON CONFLICT (state) DO UPDATE SET count = count + 1;"
)
_ONE_LESS: Final = "UPDATE job_counts SET count = count - 1 WHERE state = OLD.state;"
COUNTING: Final = (
    f"CREATE TRIGGER jobs_come AFTER INSERT ON jobs BEGIN {_ONE_MORE} END",
    f"CREATE TRIGGER jobs_go AFTER DELETE ON jobs BEGIN {_ONE_LESS} END",
    "CREATE TRIGGER jobs_move AFTER UPDATE OF state ON jobs WHEN OLD.state IS NOT NEW.state"
    f" BEGIN {_ONE_LESS} {_ONE_MORE} END",
)
for _counting in COUNTING:
    event.listen(jobs, "after_create", DDL(_counting).execute_if(dialect="sqlite"))  # type: ignore[no-untyped-call]

deliveries = Table(
    "deliveries",
    metadata,
    Column("seq", _Key, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    Column("order_id", Text, nullable=False),
    Column("order_digest", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("kind", Text, nullable=False),
    Column("n", Integer, nullable=False),
    Column("target", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_try_at", Moment, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment),
    Column("acknowledged_at", Moment),
    Column("lease_until", Moment),
    Column("last_error", Text),
    UniqueConstraint("order_id", "position", "kind", "n"),
)
Index("deliveries_dead", deliveries.c.seq, sqlite_where=text(IS_DEAD))
Index(
    "deliveries_due",
    deliveries.c.next_try_at,
    sqlite_where=text(IS_PENDING),
)

bodies = Table(
    "bodies",
    metadata,
    Column("delivery", Text, ForeignKey("deliveries.id"), primary_key=True),
    Column("body", LargeBinary, nullable=False),
)

# Who could not be reached when something was sent last: a row goes with the first answer.
targets = Table(
    "targets",
    metadata,
    Column("target", Text, primary_key=True),
    Column("failures", Integer, nullable=False),  # in a row
    Column("rests_until", Moment, nullable=False),
    sqlite_with_rowid=False,
)

nonces = Table(
    "nonces",
    metadata,
    Column("keyid", Text, primary_key=True),
    Column("nonce", Text, primary_key=True),
    Column("keep_until", Moment, nullable=False),
    sqlite_with_rowid=False,
)
Index("nonces_by_end", nonces.c.keep_until)

events = Table(
    "events",
    metadata,
    Column("seq", _Key, primary_key=True),  # never used twice: readers resume by it
    Column("at", Moment, nullable=False),
    Column("name", Text, nullable=False),
    Column("order_id", Text),
    Column("position", Integer),
    Column("values", Text, nullable=False),  # a JSON object of plain values
    Column("dataset", Text),
    Column("digest", Text),  # over the line and the digest before it: `domain.audit`
    sqlite_autoincrement=True,
)
Index("events_by_order", events.c.order_id, events.c.seq)
HAS_DATASET: Final = "dataset IS NOT NULL"
Index(
    "events_by_dataset",
    events.c.dataset,
    events.c.seq,
    sqlite_where=text(HAS_DATASET),
)

# The log of events only grows. Who can write the file can drop these: they keep this program honest, the chain shows the rest.
# INSERT OR REPLACE deletes without asking the trigger on DELETE, so it is refused by itself.
APPEND_ONLY: Final = (
    "CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
    "CREATE TRIGGER events_last BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
    "CREATE TRIGGER events_once BEFORE INSERT ON events WHEN EXISTS (SELECT 1 FROM events WHERE seq = NEW.seq)"
    " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
)
for _trigger in APPEND_ONLY:
    event.listen(events, "after_create", DDL(_trigger).execute_if(dialect="sqlite"))  # type: ignore[no-untyped-call]

logs = Table(
    "logs",
    metadata,
    Column("seq", _Key, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("run", Text, nullable=False),
    Column("order_id", Text, nullable=False),
    Column("log", LargeBinary, nullable=False),
    UniqueConstraint("job_id", "attempt", "run"),
)
Index("logs_by_order", logs.c.order_id, logs.c.seq)

# Orders that end here, also when they come later.
cancellations = Table(
    "cancellations",
    metadata,
    Column("order_digest", Text, primary_key=True),
    Column("source", Text, primary_key=True),  # the orchestrator that signed it, or "operator"
    Column("at", Moment, nullable=False),
    Column("keep_until", Moment, nullable=False),
    Column("uid", BigInteger),
    Column("reason", Text),
    Column("envelope", LargeBinary),
    sqlite_with_rowid=False,
)
Index("cancellations_by_source", cancellations.c.source)
Index("cancellations_by_end", cancellations.c.keep_until)

# How far an attempt came: a row before each effect, its outcome after it.
steps = Table(
    "steps",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("tries", Integer, nullable=False),
    Column("begun_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("outcome", LargeBinary),
    sqlite_with_rowid=False,
)

# How long the phases of an attempt took that ended.
phases = Table(
    "phases",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id"), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    Column("n", Integer, primary_key=True, autoincrement=False),  # the order in which they ran
    Column("phase", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    sqlite_with_rowid=False,
)

# Numbers that only grow, whatever is forgotten: `domain.measures`.
tallies = Table(
    "tallies",
    metadata,
    Column("name", Text, primary_key=True),
    Column("labels", Text, primary_key=True),  # a JSON list of words
    Column("value", Float, nullable=False),
    sqlite_with_rowid=False,
)

# One row, or none while nobody said anything: what the host does as a whole.
control = Table(
    "control",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("mode", Text, nullable=False),
    Column("since", Moment),
    Column("until", Moment),
    Column("reason", Text),
    Column("uid", BigInteger),
)

# When this ledger was put back from a backup, and up to which moment of signing it refuses requests.
restores = Table(
    "restores",
    metadata,
    Column("seq", _Key, primary_key=True),
    Column("at", Moment, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("backup_made_at", Moment, nullable=False),
    Column("signed_after", Moment, nullable=False),
    Column("uid", BigInteger),
)

# What the operator decided on images: rows are only ever added, the last one of an image counts.
rulings = Table(
    "rulings",
    metadata,
    Column("seq", _Key, primary_key=True),
    Column("image", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("at", Moment, nullable=False),
    Column("uid", BigInteger),
    Column("reason", Text),
    sqlite_autoincrement=True,
)
Index("rulings_by_image", rulings.c.image, rulings.c.seq)

descriptions = Table(
    "descriptions",
    metadata,
    Column("image", Text, primary_key=True),
    Column("read_at", Moment, nullable=False),
    Column("archive_bytes", BigInteger, nullable=False),
    Column("problem", Text),
    Column("about", LargeBinary),  # JSON of ImageAbout
)

listings = Table(
    "listings",
    metadata,
    Column("image", Text, ForeignKey("descriptions.image"), primary_key=True),
    Column("page", Integer, primary_key=True, autoincrement=False),
    Column("entries", LargeBinary, nullable=False),  # zlib of the JSON of a list of ImageEntry
)

# Orders that were kept long enough: what is left of them, so that none of them ever runs again, whatever the clock says.
past_orders = Table(
    "past_orders",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("expires", Moment, nullable=False),
    Column("forgotten_at", Moment, nullable=False),
    sqlite_with_rowid=False,
)
Index("jobs_by_end", jobs.c.changed_at, sqlite_where=text(IS_FINAL))

# One row that `check` writes to: a disk that is full or read-only shows itself there first.
probe = Table(
    "probe",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("count", BigInteger, nullable=False),
)
