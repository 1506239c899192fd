"""What is read by who looks on: on both ledgers what it says, on SQLite that it costs the same however much lies there."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event

from agent.domain.jobs import JobEvent, JobState
from agent.errors import NotFound
from agent.ports.ledger import DeliveryState, JobQuery, Ledger
from agent.ports.ledger_sqlalchemy import open_ledger
from tests.builders import NOW
from tests.fakes.ledger import MemoryLedger
from tests.ports.ledger_stage import (
    ORCHESTRATOR,
    OTHER_PEER,
    PEER,
    at,
    attested,
    fresh_ledger,
    handoff,
    order_named,
    queued,
    received,
    report,
    running,
)
from tests.ports.test_ledger_volume import fill

SOMEBODY = order_named("somebody").signer


@pytest.fixture(params=["memory", "sqlalchemy"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    made: Ledger = MemoryLedger() if request.param == "memory" else fresh_ledger(tmp_path / "ledger")
    yield made
    made.close()


# ------------------------------------------------------------------ what it says


def test_the_version_changes_with_every_write_and_with_nothing_else(ledger: Ledger) -> None:
    first = ledger.version()
    ledger.jobs(JobQuery())
    unchanged = ledger.version()
    received(ledger)
    second = ledger.version()
    ledger.record_event("host.paused", NOW)

    assert first == unchanged
    assert len({first, second, ledger.version()}) == 3


def test_the_version_tells_what_another_process_wrote(tmp_path: Path) -> None:
    with (
        closing(fresh_ledger(tmp_path / "l")) as mine,
        closing(open_ledger(tmp_path / "l/ledger.db")) as other,
    ):
        before = mine.version()
        other.record_event("host.paused", NOW)

        assert mine.version() != before


def test_the_newest_event_is_the_last_one_written(ledger: Ledger) -> None:
    assert ledger.newest_event() == 0

    received(ledger)

    assert ledger.newest_event() == ledger.events()[-1].seq > 0


def test_jobs_are_counted_in_every_state_they_pass(ledger: Ledger) -> None:
    received(ledger, "a")
    queued(ledger, "b")
    running(ledger, "c")
    attested(ledger, report(), name="d")
    ledger.move(queued(ledger, "e"), JobEvent.EXPIRE, at(1))

    counts = ledger.counts()

    assert set(counts) == set(JobState)
    assert {state: count for state, count in counts.items() if count} == {
        JobState.RECEIVED: 1,
        JobState.QUEUED: 1,
        JobState.RUNNING: 1,
        JobState.ATTESTED: 1,
        JobState.EXPIRED: 1,
    }


def test_the_kept_counts_are_those_of_the_rows_also_after_they_went(tmp_path: Path) -> None:
    path = tmp_path / "ledger" / "ledger.db"
    with closing(fresh_ledger(tmp_path / "ledger")) as ledger:
        attested(ledger, report(), handoff(), name="pattern")
        fill(path, 500)
        with closing(sqlite3.connect(path)) as plain, plain:
            plain.execute("DELETE FROM jobs WHERE state = 'failed' AND seq % 3 = 0")
            told = dict(plain.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())

        assert {str(state): count for state, count in ledger.counts().items() if count} == told


def test_the_receipts_of_places_are_those_and_no_others(ledger: Ledger) -> None:
    job = attested(ledger, report(), name="a")
    received(ledger, "b", position=3)
    other = order_named("b")

    found = ledger.receipts_at([(job.order, 0), (other.digest, 2), (other.digest, 3)])

    assert sorted((r.receipt.order, r.receipt.position) for r in found) == sorted(
        [(job.order, 0), (other.digest, 2)]
    )


def test_an_agent_has_the_jobs_of_the_chains_it_stands_in(ledger: Ledger) -> None:
    goes_on = attested(ledger, report(), name="goes-on")  # PEER goes on with it
    signed_there = received(ledger, "handed", position=2)  # PEER signed the receipt of position 1
    received(ledger, "nobody")

    mine = ledger.jobs_with([PEER], JobQuery(), 100)

    assert [job.id for job in mine] == [signed_there.id, goes_on.id]
    assert ledger.jobs_with([OTHER_PEER], JobQuery(), 100) == ()
    assert ledger.jobs_with([OTHER_PEER, PEER], JobQuery(), 100) == mine  # an agent that rotated its key
    assert len(ledger.jobs_with([ORCHESTRATOR], JobQuery(), 100)) == 3


def test_an_agents_jobs_are_filtered_paged_and_looked_for_among_the_newest(ledger: Ledger) -> None:
    old = attested(ledger, report(), name="old")
    new = attested(ledger, report(), name="new")
    ledger.move(queued(ledger, "other"), JobEvent.EXPIRE, at(1))

    assert [j.id for j in ledger.jobs_with([PEER], JobQuery(after=new.id), 100)] == [old.id]
    assert [j.id for j in ledger.jobs_with([PEER], JobQuery(order_id=old.order_id), 100)] == [old.id]
    assert ledger.jobs_with([PEER], JobQuery(states=frozenset({JobState.EXPIRED})), 100) == ()
    assert [j.id for j in ledger.jobs_with([PEER], JobQuery(limit=1), 100)] == [new.id]
    assert ledger.jobs_with([PEER], JobQuery(), 1) == ()
    with pytest.raises(NotFound):
        ledger.jobs_with([PEER], JobQuery(after=queued(MemoryLedger(), "elsewhere").id), 100)


# ------------------------------------------------------------------ what it costs


def _of_one(parameters: Any) -> Any:
    """Of a statement that is executed many times, those of the first time."""
    return parameters[0] if isinstance(parameters, list) else parameters


@contextmanager
def plans() -> Iterator[dict[str, list[str]]]:
    """SQLite's own plan of every statement that is executed while the context lasts."""
    found: dict[str, list[str]] = {}

    def note(connection: Connection, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.split(maxsplit=1)[0] in {"SELECT", "WITH", "UPDATE", "DELETE"}:
            plain: Any = connection.connection.dbapi_connection
            rows = plain.execute(f"EXPLAIN QUERY PLAN {statement}", _of_one(parameters)).fetchall()
            found[statement] = [str(row[3]) for row in rows]

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


# What a plan may read from one end to the other: tables with a row for each state or each word of the operator, what a
# subquery found, and `jobs` downwards by its key, which the page's limit ends.
SMALL = {"job_counts", "delivery_counts", "control", "merged"}


def whole_reads(plan: list[str]) -> list[str]:
    wrong = []
    for line in plan:
        words = line.split()
        if words[0] != "SCAN" or words[1] in SMALL or words[1].startswith(("anon_", "(")):
            continue
        if "USING INDEX deliveries_d" in line:
            continue  # the partial ones: what is due, what is dead
        if line in {"SCAN jobs", "SCAN events"}:
            continue  # in the order of their keys: `test_pages_are_read_in_the_order_of_keys` holds that nothing is sorted
        wrong.append(line)
    return wrong


VIEWS: tuple[JobQuery, ...] = (
    JobQuery(limit=101),
    JobQuery(limit=101, after="AFTER"),  # type: ignore[arg-type]  # the job is put in below
    JobQuery(limit=101, states=frozenset({JobState.DONE, JobState.FAILED})),
    JobQuery(limit=101, signer=ORCHESTRATOR),
    JobQuery(limit=101, signer=ORCHESTRATOR, states=frozenset({JobState.DONE}), after="AFTER"),  # type: ignore[arg-type]
)


def look_at_everything(ledger: Ledger) -> None:
    """Every reading of `orders`, `status`, /v1/orders, the streams and the page."""
    first = ledger.jobs(JobQuery(limit=1))[0]
    for query in VIEWS:
        asked = (
            query
            if query.after is None
            else JobQuery(limit=query.limit, signer=query.signer, states=query.states, after=first.id)
        )
        page = ledger.jobs(asked)
        ledger.receipts_at([(job.order, job.position) for job in page])
    ledger.jobs(JobQuery(order_id=first.order_id, limit=1000))
    ledger.jobs(JobQuery(states=frozenset({JobState.HELD}), limit=500))
    ledger.jobs_with([PEER], JobQuery(limit=100), 2000)
    ledger.jobs_with([PEER], JobQuery(limit=100, states=frozenset({JobState.DONE})), 2000)
    ledger.order(first.order_id)
    ledger.receipts(first.order)
    ledger.counts()
    ledger.outbox_counts()
    ledger.outbox({DeliveryState.DEAD}, 100)
    ledger.control()
    ledger.newest_event()
    ledger.events(order_id=first.order_id, after=1)
    ledger.events(after=1, limit=500)


def test_no_view_reads_a_table_whole(tmp_path: Path) -> None:
    with closing(fresh_ledger(tmp_path / "ledger")) as ledger:
        attested(ledger, report(), handoff(), name="pattern")
        fill(tmp_path / "ledger" / "ledger.db", 50)

        with plans() as found:
            look_at_everything(ledger)

    assert len(found) > 12
    assert {statement: whole_reads(plan) for statement, plan in found.items() if whole_reads(plan)} == {}


def test_pages_are_read_in_the_order_of_keys(tmp_path: Path) -> None:
    """A page that is sorted was read whole before. Only what was found by a limit may be sorted: a page, not a table."""
    with closing(fresh_ledger(tmp_path / "ledger")) as ledger:
        attested(ledger, report(), handoff(), name="pattern")
        fill(tmp_path / "ledger" / "ledger.db", 50)
        with plans() as found:
            ledger.jobs(JobQuery(limit=101))
            ledger.events(after=1, limit=500)
            ledger.events(order_id=ledger.jobs(JobQuery(limit=1))[0].order_id, after=1)

    sorting = {s: plan for s, plan in found.items() if any("TEMP B-TREE" in line for line in plan)}
    assert sorting == {}


def test_the_plan_of_a_table_that_is_read_whole_is_seen() -> None:
    assert whole_reads(["SCAN deliveries"]) == ["SCAN deliveries"]
    assert whole_reads(["SEARCH jobs USING INDEX jobs_by_state (state=?)", "SCAN job_counts"]) == []
