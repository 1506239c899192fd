"""The orders that fill a ledger for the bench are those that an agent takes in: every row of a copy, and what is counted."""

import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from agent.bench.scale_rows import OWNER, Pattern, end_orders, order_name, pattern_of, put_orders
from agent.domain.audit import Line, digest_of_line
from agent.domain.ids import OrderId
from agent.domain.jobs import Job, JobEvent, JobState
from agent.ports.ledger import DeliveryState, JobQuery, Ledger
from agent.ports.ledger_schema import metadata
from agent.ports.ledger_sqlalchemy import open_ledger
from agent.ports.ledger_sqlalchemy_disk import _belongs_to
from tests.builders import failed, forged_receipt, uuid_of
from tests.ports.ledger_stage import WORLD, at, chain_of, fresh_ledger, order_named, queued, report

COPIES = 30
BY_THE_LEDGER = {"jobs": {"seq"}, "deliveries": {"seq"}, "events": {"seq", "digest"}}


def ended(ledger: Ledger, job: Job) -> Job:
    """The job failed with a receipt, and its orchestrator knows."""
    (done,) = chain_of(order_named("pattern" if job.order_id == uuid_of("pattern") else "other"), 1)
    receipt = forged_receipt(failed(done.receipt, "oom"), WORLD.agent("a"))
    over = ledger.move(job, JobEvent.FAIL, at(2), reason="oom", receipt=receipt, deliveries=[report()])
    (delivery,) = ledger.deliveries(order_id=job.order_id, state=DeliveryState.PENDING)
    assert ledger.lease_delivery(delivery.id, at(3), at(60)) is not None
    ledger.acknowledge(delivery.id, at(4))
    return over


def rows_of(pattern: Pattern) -> dict[str, list[dict[str, Any]]]:
    """What is the same in a copy: not the numbers that the ledger gives, nor the signatures."""
    return {
        table: [
            {
                column: re.sub(rb'"sig":"[^"]+"', b"", value) if column == "envelope" else value
                for column, value in row.items()
                if column not in BY_THE_LEDGER.get(table, ())
            }
            for row in rows
        ]
        for table, rows in pattern.rows.items()
    }


@pytest.mark.parametrize("is_ended", [False, True])
def test_a_copy_has_the_rows_of_an_order_that_was_taken_in(tmp_path: Path, is_ended: bool) -> None:
    path, real = tmp_path / "a" / "ledger.db", tmp_path / "b" / "ledger.db"
    other = OrderId(uuid_of("other"))
    with closing(fresh_ledger(path.parent)) as ledger:
        job = queued(ledger, "pattern")
        before = pattern_of(path, job.order_id)
        if is_ended:
            ended(ledger, job)
        after = pattern_of(path, job.order_id)
    with closing(fresh_ledger(real.parent)) as ledger:
        taken = queued(ledger, "other")
        if is_ended:
            ended(ledger, taken)

    assert put_orders(path, before, [other]) == 1
    if is_ended:
        assert end_orders(path, before, after, [other]) == 1

    assert rows_of(pattern_of(path, other)) == rows_of(pattern_of(real, other))
    with closing(sqlite3.connect(path)) as plain:
        mine = {
            table.name: plain.execute(f"SELECT count(*) FROM {table.name}").fetchone()[0]  # noqa: S608 - our own words
            for table in metadata.sorted_tables
            if table.name not in {*OWNER, "bodies"}
            and _belongs_to(table, {"id": "", "digest": ""}) is not None
        }
    assert set(mine.values()) == {0}  # no table besides has rows of such an order


def test_the_copies_are_counted_chained_and_read_as_any_order(tmp_path: Path) -> None:
    path = tmp_path / "a" / "ledger.db"
    with closing(fresh_ledger(path.parent)) as ledger:
        job = queued(ledger, "pattern")
        before = pattern_of(path, job.order_id)
        ended(ledger, job)
        after = pattern_of(path, job.order_id)
        once = {(tally.name, tally.labels): tally.value for tally in ledger.tallies()}

    put_orders(path, before, map(order_name, range(COPIES)))
    end_orders(path, before, after, map(order_name, range(COPIES - 1)))

    with closing(open_ledger(path)) as ledger:
        assert ledger.counts()[JobState.FAILED] == COPIES
        assert ledger.counts()[JobState.QUEUED] == 1
        newest = ledger.jobs(JobQuery(limit=COPIES))
        assert len({ledger.order(job.order_id).digest for job in newest}) == COPIES
        assert all(ledger.receipts(job.order) for job in newest if job.state is JobState.FAILED)
        moves = {tally.labels: tally.value for tally in ledger.tallies() if tally.name == "job_moves"}
        assert moves == {
            labels: value * COPIES + (labels != ("failed",))
            for (name, labels), value in once.items()
            if name == "job_moves"
        }
    previous = None
    for name, at_, line in lines_of(path):
        told = Line(
            line["seq"],
            at_,
            name,
            line["order_id"],
            line["position"],
            line["dataset"],
            Raw(line["values"]),
            previous,
        )
        previous = digest_of_line(told)
        assert previous == line["digest"]


def lines_of(path: Path) -> list[tuple[str, datetime, sqlite3.Row]]:
    with closing(sqlite3.connect(path)) as plain:
        plain.row_factory = sqlite3.Row
        rows = plain.execute("SELECT * FROM events ORDER BY seq").fetchall()
    return [
        (row["name"], datetime.fromtimestamp(0, UTC) + timedelta(microseconds=row["at"]), row) for row in rows
    ]
