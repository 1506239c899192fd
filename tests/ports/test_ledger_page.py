"""What a person pages through, on the ledger in memory and on SQLAlchemy; and that an index finds each answer."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import event

from agent.domain.jobs import JobEvent, JobState
from agent.errors import NotFound
from agent.ports.ledger import Ledger
from tests.builders import dataset
from tests.fakes.ledger import MemoryLedger
from tests.ports.ledger_stage import at, attested, chain_of, fresh_ledger, order_named, queued, received


@pytest.fixture(params=["memory", "sqlalchemy"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    made: Ledger = MemoryLedger() if request.param == "memory" else fresh_ledger(tmp_path / "ledger")
    yield made
    made.close()


def test_an_order_stands_once_by_its_newest_job_and_the_newest_stands_first(ledger: Ledger) -> None:
    first = received(ledger, "one")
    other = received(ledger, "two")
    later = received(ledger, "one", position=3)

    assert ledger.newest_jobs(frozenset()) == (later, other)
    assert first not in ledger.newest_jobs(frozenset({JobState.RECEIVED}))


def test_orders_are_picked_by_the_state_of_their_newest_job(ledger: Ledger) -> None:
    waiting = queued(ledger, "one")
    lost = ledger.move(received(ledger, "two"), JobEvent.FAIL, at(1), reason="oom")
    arrived = received(ledger, "three")

    assert ledger.newest_jobs({JobState.QUEUED, JobState.FAILED}) == (lost, waiting)
    assert ledger.newest_jobs({JobState.RECEIVED}) == (arrived,)
    assert ledger.newest_jobs({JobState.DONE}) == ()


def test_orders_come_in_pages_that_leave_none_out_and_show_none_twice(ledger: Ledger) -> None:
    arrived = [received(ledger, f"order {number}") for number in range(7)]

    pages, after = [], None
    while page := ledger.newest_jobs(frozenset(), after=after, limit=3):
        pages.append(page)
        after = page[-1].id

    assert [len(page) for page in pages] == [3, 3, 1]
    assert [job for page in pages for job in page] == arrived[::-1]


def test_a_page_after_a_job_that_is_not_there_is_refused(ledger: Ledger) -> None:
    elsewhere = received(MemoryLedger())

    with pytest.raises(NotFound):
        ledger.newest_jobs(frozenset(), after=elsewhere.id)


def test_receipts_are_read_from_a_position_on(ledger: Ledger) -> None:
    order = order_named("order")
    received(ledger, position=4)

    told = ledger.receipts_from(order.digest, 1, 2)

    assert told == chain_of(order, 4)[1:3]
    assert ledger.receipts_from(order.digest, 4, 9) == ()


def test_lines_of_the_host_are_told_newest_first_and_those_of_orders_are_not_among_them(
    ledger: Ledger,
) -> None:
    received(ledger)
    for number in range(5):
        ledger.record_event("request.refused", at(number), values={"code": f"code-{number}"})
        ledger.record_event("service.started", at(number))
    names = {"request.refused"}

    first = ledger.events_of_host(names, limit=2)
    then = ledger.events_of_host(names, before=first[-1].seq, limit=9)

    assert [line.values["code"] for line in first] == ["code-4", "code-3"]
    assert [line.values["code"] for line in then] == ["code-2", "code-1", "code-0"]


def test_the_lines_of_a_dataset_are_told_newest_first(ledger: Ledger) -> None:
    received(ledger, "one")
    received(ledger, "two")
    ledger.record_event("request.refused", at(9), dataset=dataset("a1").id, values={"code": "no-share"})

    told = ledger.events_of_dataset(dataset("a1").id)

    assert [line.name for line in told] == ["request.refused", "job.received", "job.received"]
    assert ledger.events_of_dataset(dataset("a1").id, before=told[0].seq, limit=1) == told[1:2]
    assert ledger.events_of_dataset(dataset("a9").id) == ()


def test_datasets_stand_in_the_order_of_their_last_line_with_how_many_there_are(ledger: Ledger) -> None:
    received(ledger, "one")  # a1
    received(ledger, "two")  # a1
    received(ledger, "three", position=3)  # a2
    attested(ledger, name="four")  # a1

    uses = ledger.datasets_used()

    assert [(use.dataset, use.lines) for use in uses] == [(dataset("a1").id, 3), (dataset("a2").id, 1)]
    assert (uses[0].last.name, uses[0].last.order_id) == ("job.received", order_named("four").order.id)
    assert ledger.datasets_used(before=uses[0].last.seq) == uses[1:]
    assert ledger.datasets_used(limit=1) == uses[:1]


def test_an_index_finds_every_page(tmp_path: Path) -> None:
    ledger = fresh_ledger(tmp_path / "ledger")
    job = received(ledger)
    asked: list[tuple[str, tuple[str | int, ...]]] = []
    event.listen(
        ledger._file._engine, "before_cursor_execute", lambda *told: asked.append((told[2], told[3]))
    )

    ledger.newest_jobs(frozenset(), after=job.id, limit=5)
    ledger.newest_jobs({JobState.DONE}, limit=5)
    ledger.receipts_from(order_named("order").digest, 0, 5)
    ledger.events_of_host({"request.refused"}, limit=5)
    ledger.events_of_dataset(dataset("a1").id, limit=5)
    ledger.datasets_used(limit=5)
    with closing(sqlite3.connect(tmp_path / "ledger" / "ledger.db")) as plain:
        plans = [
            str(row[3])
            for query, values in asked
            if query.startswith("SELECT")
            for row in plain.execute(f"EXPLAIN QUERY PLAN {query}", tuple(map(_plain, values)))
        ]
    ledger.close()

    assert "SEARCH events USING INDEX events_by_order (order_id=?)" in plans
    assert "SEARCH events USING INDEX events_by_dataset (dataset=?)" in plans
    assert (
        "SCAN dataset_lines USING INDEX dataset_lines_by_last" in plans
    )  # the newest first, to the page's end
    assert [plan for plan in plans if plan.startswith("SCAN")] == [
        "SCAN dataset_lines USING INDEX dataset_lines_by_last"
    ]


def _plain(value: str | int) -> str | int:
    return str(value) if isinstance(value, str) else value
