"""A full ledger answers as fast as an empty one. Counted in SQLite's own instructions: a clock would tell of the machine."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event

from agent.domain.jobs import JobEvent, JobState
from agent.ports.ledger import DeliveryState, JobQuery, Ledger
from tests.builders import NOW
from tests.ports.ledger_stage import (
    LEASE,
    ORCHESTRATOR,
    PEER,
    at,
    attested,
    chain_of,
    fresh_ledger,
    handoff,
    order_named,
    queued,
    received,
    report,
)

ROWS = 5_000
GRAIN = 50  # instructions between two counts
LIMIT = 10_000  # instructions of one statement; reading one table of ROWS rows takes several times that

# Copies of one attested order: its job done and told of, its report long delivered, its hand-off resting for a day.
_FILL = """
CREATE TEMP TABLE n (i INTEGER PRIMARY KEY);
WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {rows}) INSERT INTO n SELECT i FROM c;
INSERT INTO orders SELECT 'o' || i, 'd' || i, payload_type, signer, sender, expires, received_at, envelope, trace_id, images
    FROM orders, n;
INSERT INTO receipts SELECT 'd' || i, 0, 'r' || i, signer, recorded_at, envelope FROM receipts, n;
INSERT INTO jobs SELECT NULL, 'o' || i || '.0', 'o' || i, 'd' || i, signer, 0, NULL, kind,
        CASE i % 10 WHEN 0 THEN 'attested' WHEN 1 THEN 'failed' ELSE 'done' END,
        1, 3, received_at, changed_at, NULL, NULL, NULL, next_agent, NULL, NULL, 1
    FROM jobs, n;
INSERT INTO deliveries SELECT NULL, 'o' || i || '.0.' || kind || '.1', 'o' || i || '.0', 'o' || i, 'd' || i, 0, kind, 1,
        target, CASE kind WHEN 'report' THEN 'acknowledged' ELSE 'pending' END,
        0, next_try_at + 86400000000, created_at, expires_at, NULL, NULL, NULL
    FROM deliveries, n;
INSERT INTO bodies SELECT id, x'00' FROM deliveries WHERE order_id GLOB 'o*';
INSERT INTO events SELECT NULL, at, name, 'o' || i, position, "values", dataset, NULL FROM events, n
    WHERE name = 'job.done' OR seq < 5;
INSERT INTO nonces SELECT 'k', i, {later} FROM n;
INSERT INTO logs SELECT NULL, 'o' || i || '.0', 1, 'train', 'o' || i, x'00' FROM n;
"""


def fill(path: Path, rows: int) -> None:
    """So many orders, jobs, receipts and the rest, into a ledger that holds one attested order."""
    later = int(at(86400).timestamp() * 1_000_000)
    with closing(sqlite3.connect(path)) as plain:
        plain.executescript(f"BEGIN; {_FILL.format(rows=rows, later=later)} COMMIT;")


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Instructions by statement, while the context lasts."""
    counts: dict[str, int] = {}

    def note(connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        counts.setdefault(statement, 0)

        def count() -> int:
            counts[statement] += GRAIN
            return 0

        plain: Any = connection.connection.dbapi_connection
        plain.set_progress_handler(count, GRAIN)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield counts
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_a_full_ledger_works_no_harder_than_an_empty_one(tmp_path: Path) -> None:
    with closing(fresh_ledger(tmp_path / "ledger")) as ledger:
        attested(ledger, report(), handoff(), name="pattern")
        fill(tmp_path / "ledger" / "ledger.db", ROWS)
        assert sum(ledger.counts().values()) == ROWS + 1

        with counted() as counts:
            walk_through_every_call(ledger)

    assert len(counts) > 35
    assert {statement: count for statement, count in counts.items() if count > LIMIT} == {}


def test_the_count_would_see_a_table_that_is_read_whole(tmp_path: Path) -> None:
    with closing(fresh_ledger(tmp_path / "ledger")) as ledger:
        attested(ledger, report(), handoff(), name="pattern")
        fill(tmp_path / "ledger" / "ledger.db", ROWS)

        with counted() as counts:
            ledger.deliveries(state=DeliveryState.ACKNOWLEDGED)

    assert max(counts.values()) > 5 * LIMIT


def walk_through_every_call(ledger: Ledger) -> None:
    order = order_named("one")
    job = queued(ledger, "one", position=1)
    job = ledger.start(job, NOW, worker="w1", lease_until=NOW + LEASE, deliveries=[report()])
    ledger.renew("w1", at(90))
    ledger.keep_log(job, "train", b"log")
    ledger.move(job, JobEvent.ATTEST, at(1), receipt=chain_of(order, 2)[1], deliveries=[report(), handoff()])
    ledger.redirect(received(ledger, "two"), NOW, next_agent=PEER, delivery=handoff())
    first, second, third, fourth = ledger.unrung(at(100), 100).deliveries[-4:]
    ledger.lease_delivery(first, at(101), at(160))
    ledger.acknowledge(first, at(102))
    ledger.postpone(second, at(200), "?")
    ledger.bury(third, at(102), "?", deliveries=[report()])
    ledger.bury(fourth, at(102), "?", deliveries=[report()])
    ledger.remember_nonce(PEER, "n", at(10), NOW)
    ledger.forget_nonces(at(20))
    states = frozenset({JobState.DONE, JobState.FAILED})
    for query in (
        JobQuery(limit=20),
        JobQuery(limit=20, after=job.id),
        JobQuery(limit=20, states=states),
        JobQuery(limit=20, states=states, signer=ORCHESTRATOR, after=job.id),
        JobQuery(limit=20, signer=ORCHESTRATOR),
        JobQuery(order_id=job.order_id, states=states),
    ):
        ledger.jobs(query)
    ledger.order(job.order_id)
    ledger.digest_of_order(job.order_id)
    ledger.recorded_last_receipt(job.order, 1)
    ledger.receipts(job.order)
    ledger.deliveries(order_id=job.order_id)
    ledger.deliveries(order_id=job.order_id, state=DeliveryState.PENDING)
    ledger.deliveries(state=DeliveryState.DEAD)
    ledger.events(order_id=job.order_id, after=1)
    ledger.events(after=1, limit=20)
    ledger.logs(job.order_id)
    ledger.check()
