"""The ledger's tables and indices as they are now. What a row means is said by the values in `ledger.py`, how the tables came
about by `migrations/`; a test holds that both give the same file.

Large columns stand last or in a table of their own: a row that moves often must not drag megabytes along.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

from agent.ports.ledger_schema_parts import Moment, counting, counts_table, needing, partly, trigger

HEAD: Final = "0011"  # the newest revision in migrations/versions

# The conditions of the partial indices. A query must carry the very same text, or SQLite does not see that an index fits:
# values that are bound later prove nothing to its planner. A full index on a delivery's state would be worse than none: the
# planner then prefers it to the order's, and reads everything that is pending.
IS_PENDING: Final = "state = 'pending'"
IS_DEAD: Final = "state = 'dead'"
RESTS: Final = "state = 'queued' AND not_before IS NOT NULL"
IS_RECEIVED: Final = "state = 'received'"
IS_LEASED: Final = "state = 'pending' AND lease_until IS NOT NULL"
IS_HANDED_OVER: Final = "kind = 'handoff' AND state = 'acknowledged'"
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
    Column(
        "images", Text
    ),  # their digests in order, between blanks; none in orders that were over before 0011
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
Index("jobs_resting", jobs.c.not_before, **partly(RESTS))
Index("jobs_placing", jobs.c.changed_at, **partly(IS_RECEIVED))

# How many jobs are in each state. Triggers keep it, whoever writes: finished jobs only grow, and are asked for all the time.
job_counts = counts_table("job_counts", metadata)
COUNTING: Final = counting("jobs", "job_counts")
trigger(jobs, *COUNTING)

# Which images jobs name that are to run still, and that are held: asked at each sweep, whatever waits. By the sets that orders
# name, of which there are few.
image_needs = Table(
    "image_needs",
    metadata,
    Column("images", Text, primary_key=True),  # as in `orders`
    Column("open", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
NEEDING: Final = needing("'received', 'held', 'queued', 'running'")
trigger(jobs, *NEEDING)

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
Index("deliveries_dead", deliveries.c.seq, **partly(IS_DEAD))
Index(
    "deliveries_due",
    deliveries.c.next_try_at,
    **partly(IS_PENDING),
)
Index("deliveries_by_job", deliveries.c.job_id)  # a job that goes is asked whether one points at it
Index(
    "deliveries_to",  # whoever is away holds up what is for others no more than by its own name
    deliveries.c.target,
    deliveries.c.next_try_at,
    **partly(IS_PENDING),
)
Index("deliveries_unsent", deliveries.c.seq, **partly(IS_PENDING))
Index(
    "deliveries_leased",
    deliveries.c.lease_until,
    **partly(IS_LEASED),
)
Index(
    "deliveries_handed_over",
    deliveries.c.acknowledged_at,
    **partly(IS_HANDED_OVER),
)

# The same for deliveries: what waits for one who is away may be a million.
delivery_counts = counts_table("delivery_counts", metadata)
DELIVERY_COUNTING: Final = counting("deliveries", "delivery_counts")
trigger(deliveries, *DELIVERY_COUNTING)

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
    **partly(HAS_DATASET),
)

# The log of events only grows. Who can write the file can drop these: they keep this program honest, the chain shows the rest.
# INSERT OR REPLACE deletes without asking the trigger on DELETE, so it is refused by itself.
APPEND_ONLY: Final = (
    "CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
    "CREATE TRIGGER events_last BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
    "CREATE TRIGGER events_once BEFORE INSERT ON events WHEN EXISTS (SELECT 1 FROM events WHERE seq = NEW.seq)"
    " BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END",
)
trigger(events, *APPEND_ONLY)

# How many lines tell of each dataset, and the newest of them: what the status page shows of the whole log.
dataset_lines = Table(
    "dataset_lines",
    metadata,
    Column("dataset", Text, primary_key=True),
    Column("lines", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),  # its number
    sqlite_with_rowid=False,
)
Index("dataset_lines_by_last", dataset_lines.c.last)
DATASET_COUNTING: Final = (
    "CREATE TRIGGER events_of_dataset AFTER INSERT ON events WHEN NEW.dataset IS NOT NULL"
    " BEGIN INSERT INTO dataset_lines VALUES (NEW.dataset, 1, NEW.seq)"
    " ON CONFLICT (dataset) DO UPDATE SET lines = lines + 1, last = excluded.last; END"
)
trigger(events, DATASET_COUNTING)

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
Index("jobs_by_end", jobs.c.changed_at, **partly(IS_FINAL))

# One row that `check` writes to: a disk that is full or read-only shows itself there first.
probe = Table(
    "probe",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("count", BigInteger, nullable=False),
)

TRIGGERS: Final = (*COUNTING, *NEEDING, *DELIVERY_COUNTING, *APPEND_ONLY, DATASET_COUNTING)
