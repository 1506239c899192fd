"""What an agent does all the time goes along an index, and takes as many of SQLite's instructions with thousands as with a few:
claims, intake, the sweep, the outbox, counts, what is collected. No clock: that would tell of the machine.
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import pytest

from agent.domain.jobs import JobEvent, JobState
from agent.domain.retention import Retention
from agent.ports.ledger import DeliveryState, Ledger
from agent.ports.ledger_sqlalchemy import open_ledger
from tests.builders import NOW, uuid_of
from tests.ports.ledger_stage import (
    LEASE,
    OTHER_PEER,
    PEER,
    arrival,
    at,
    attested,
    fresh_ledger,
    handoff,
    order_named,
    queued,
    received,
    report,
)
from tests.ports.test_ledger_volume import GRAIN, fill

ROWS = 4_000
PAGE = 20
LIMIT = 6_000  # instructions of one statement; a look at each of ROWS rows takes several times that
VALUES: Final = re.compile(r"x?'[^']*'|\b\d+\b")
LARGE = {"jobs", "orders", "deliveries", "receipts", "bodies", "logs", "nonces", "events", "steps", "phases"}

# Of the copies that `fill` makes a third waits to be placed, a third for a worker, of which half rests, a third for a hand-off.
# What they demand is due at once, and one in three is to a peer that is away.
_WAITING = """
UPDATE jobs SET next_agent = NULL,
    state = CASE seq % 3 WHEN 0 THEN 'received' WHEN 1 THEN 'queued' ELSE 'received' END,
    not_before = CASE seq % 6 WHEN 1 THEN {later} ELSE NULL END WHERE order_id GLOB 'o*';
UPDATE jobs SET next_agent = 'p' WHERE seq % 3 = 2 AND order_id GLOB 'o*';
UPDATE deliveries SET state = 'pending', next_try_at = created_at, target = CASE seq % 3 WHEN 0 THEN '{away}' ELSE target END
    WHERE order_id GLOB 'o*';
"""


def crowded(folder: Path) -> Path:
    """A ledger with ROWS orders of each kind of trouble; where it lies."""
    path = folder / "ledger" / "ledger.db"
    with closing(fresh_ledger(folder / "ledger")) as ledger:
        attested(ledger, report(), handoff(), name="pattern")
    fill(path, ROWS)
    later = int(at(86400).timestamp() * 1_000_000)
    with closing(sqlite3.connect(path)) as plain:
        plain.executescript(f"BEGIN; {_WAITING.format(later=later, away=OTHER_PEER)} COMMIT;")
    return path


def go_on(ledger: Ledger) -> None:
    """A claim, an intake, a sweep, deliveries, and a look at all of it."""
    job = ledger.start(
        queued(ledger, "claimed"), NOW, worker="w1", lease_until=NOW + LEASE, deliveries=[report()]
    )
    ledger.renew("w1", at(90))
    ledger.release("w1", at(1))
    ledger.move(job, JobEvent.RETRY, at(2), not_before=at(30))
    received(ledger, "taken in")
    ledger.admit(arrival(order_named("taken in")), NOW, max_attempts=3, queue_limit=1_000_000)
    ledger.remember_nonce(PEER, "n", at(10), NOW)
    ledger.forget_nonces(at(20))
    ledger.rest_target(OTHER_PEER, 3, at(300))
    ledger.correct_clock(at(3), lease=LEASE, rest=timedelta(days=2))
    rung = ledger.unrung(at(100), PAGE).deliveries
    page = ledger.waiting(at(100), limit=PAGE)
    ledger.waiting(at(100), after=page.next or 0, limit=PAGE)
    unsent = ledger.unsent(at(100), limit=PAGE)
    ledger.unsent(at(100), after=unsent.next, limit=PAGE)
    ledger.is_placing(at(10_000), timedelta(seconds=60))
    assert ledger.lease_delivery(rung[0], at(101), at(160)) is not None
    ledger.acknowledge(rung[0], at(102))
    ledger.handed_over(at(0), at(103), 10)
    ledger.counts()
    ledger.outbox_counts()
    ledger.outbox({DeliveryState.DEAD, DeliveryState.PENDING}, PAGE)
    ledger.gauges()
    ledger.tallies()
    ledger.datasets_used(limit=5)
    ledger.newest_jobs(frozenset({JobState.QUEUED}), limit=PAGE)
    ledger.check()


@dataclass
class Seen:
    """What SQLite was asked: each statement with its values taken out, one example with them, its instructions in all."""

    examples: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def whole_reads(self, path: Path) -> dict[str, str]:
        """The statements whose plan reads a large table from one end to the other, with that line of it."""
        found = {}
        with closing(sqlite3.connect(path)) as plain:
            for shape, example in self.examples.items():
                if shape.split()[0] not in {"SELECT", "WITH", "UPDATE", "DELETE"}:
                    continue
                for *_, line in plain.execute(f"EXPLAIN QUERY PLAN {example}"):
                    is_whole = line.startswith("SCAN") and line.split()[1] in LARGE
                    if is_whole and not _is_ordered_by_limit(line):
                        found[shape] = line
        return found

    def laborious(self, most: int) -> dict[str, int]:
        """The statements that took more instructions than that."""
        return {shape: count for shape, count in self.counts.items() if count > most}


@contextmanager
def watched() -> Iterator[Seen]:
    """Every connection that is opened meanwhile, by SQLAlchemy or by itself, tells what it is asked."""
    seen, real = Seen(), sqlite3.connect

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        made: sqlite3.Connection = real(*args, **options)
        shape = ""

        def begin(statement: str) -> None:
            nonlocal shape
            if not statement.startswith("--"):  # a trigger's, which counts as part of what fired it
                shape = VALUES.sub("?", statement.strip())
                seen.examples.setdefault(shape, statement.strip())
                seen.counts.setdefault(shape, 0)

        def count() -> int:
            seen.counts[shape] = seen.counts.get(shape, 0) + GRAIN
            return 0

        made.set_trace_callback(begin)
        made.set_progress_handler(count, GRAIN)
        return made

    with patch.object(sqlite3, "connect", connect), patch.object(sqlite3.dbapi2, "connect", connect):
        yield seen


def test_no_statement_of_the_daily_work_reads_a_table_whole(tmp_path: Path) -> None:
    path = crowded(tmp_path)
    with watched() as seen, closing(open_ledger(path)) as ledger:
        go_on(ledger)

    assert len(seen.examples) > 60
    assert seen.whole_reads(path) == {}


def test_the_daily_work_is_as_little_with_thousands_of_orders(tmp_path: Path) -> None:
    path = crowded(tmp_path)
    with watched() as seen, closing(open_ledger(path)) as ledger:
        go_on(ledger)

    assert seen.laborious(LIMIT) == {}


def test_what_reads_a_table_whole_is_seen(tmp_path: Path) -> None:
    path = crowded(tmp_path)
    with watched() as seen, closing(open_ledger(path)) as ledger:
        ledger.deliveries(state=DeliveryState.ACKNOWLEDGED)

    assert list(seen.whole_reads(path).values()) == ["SCAN deliveries"]
    assert len(seen.laborious(LIMIT)) == 1


def test_what_is_collected_is_looked_for_once(tmp_path: Path) -> None:
    """Batch after batch costs what it collects, not what is there."""
    path = crowded(tmp_path)
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute("UPDATE jobs SET state = 'done'")
        plain.execute("UPDATE deliveries SET state = 'acknowledged', acknowledged_at = created_at")
    told = Retention(
        logs_before=at(1e9), bodies_before=at(1e9), orders_before=at(1e9), expired_before=at(1e9)
    )
    for _ in range(3):
        with watched() as seen, closing(open_ledger(path)) as ledger:
            went = ledger.collect(told, at(1e9), PAGE)
        assert (went.logs, went.bodies, went.orders) == (PAGE, PAGE, PAGE)
        assert seen.laborious(LIMIT * 2) == {}  # of a deletion, for PAGE orders together


def test_a_sweep_of_a_crowd_holds_no_more_than_a_page(tmp_path: Path) -> None:
    path = crowded(tmp_path)
    with closing(open_ledger(path)) as ledger:
        first = ledger.waiting(at(100), limit=PAGE)
        assert 0 < len(first.jobs) <= PAGE
        assert first.next is not None
        assert len(ledger.unsent(at(100), limit=PAGE).deliveries) <= PAGE


@pytest.mark.parametrize("limit", [1, 7, 10_000])
def test_pages_of_any_size_hold_the_same(tmp_path: Path, limit: int) -> None:
    with closing(fresh_ledger(tmp_path / "ledger")) as ledger:
        for n in range(9):
            received(ledger, f"order {n}")
        found, after = [], 0
        while True:
            page = ledger.waiting(at(1), after=after, limit=limit)
            found += [job.id for job in page.jobs]
            if page.next is None:
                break
            after = page.next

    assert found == [f"{uuid_of(f'order {n}')}.0" for n in range(9)]


def _is_ordered_by_limit(line: str) -> bool:
    """The newest or the oldest of a table, read along its key to the statement's limit: the instructions tell how many."""
    partial = ("deliveries_unsent", "deliveries_dead", "deliveries_to")
    return line in {"SCAN events", *(f"SCAN deliveries USING INDEX {name}" for name in partial)}


assert LIMIT > GRAIN
