"""What every ledger counts and measures, in memory and on SQLite; on SQLite from several processes, and over a restart."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from agent.domain import measures
from agent.domain.audit import NewEvent
from agent.domain.control import Control, Mode
from agent.domain.jobs import JobEvent, JobState
from agent.domain.measures import PhaseTime
from agent.domain.retention import Retention
from agent.domain.traces import TraceId
from agent.errors import LostRace
from agent.ports.ledger import Arrival, Ledger
from agent.ports.ledger_sqlalchemy import open_ledger
from tests.builders import NOW
from tests.fakes.ledger import MemoryLedger
from tests.ports.ledger_stage import (
    ORCHESTRATOR,
    PEER,
    arrival,
    at,
    attested,
    chain_of,
    fresh_ledger,
    handoff,
    order_named,
    queued,
    received,
    report,
    running,
)

ROOT = Path(__file__).resolve().parents[2]
TRACE = TraceId("4bf92f3577b34da6a3ce929d0e0e4736")


@pytest.fixture(params=["memory", "sqlalchemy"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    made: Ledger = MemoryLedger() if request.param == "memory" else fresh_ledger(tmp_path / "ledger")
    yield made
    made.close()


def counted(ledger: Ledger, name: str) -> dict[tuple[str, ...], float]:
    return {one.labels: one.value for one in ledger.tallies() if one.name == name}


def traced(name: str, trace: TraceId | None) -> Arrival:
    order = order_named(name)
    return Arrival(order=order, receipts=(), kind=arrival(order).kind, sender=ORCHESTRATOR, trace=trace)


# ------------------------------------------------------------------ traces


def test_the_trace_stays_that_of_the_first_arrival(ledger: Ledger) -> None:
    order = order_named("order").order.id
    assert ledger.given_trace(order) is None

    ledger.admit(traced("order", TRACE), NOW, max_attempts=3, queue_limit=10)
    ledger.admit(traced("order", TraceId("f" * 32)), NOW, max_attempts=3, queue_limit=10)

    assert ledger.given_trace(order) == TRACE
    assert ledger.order(order).trace == TRACE


def test_an_order_that_came_without_one_has_none_recorded(ledger: Ledger) -> None:
    ledger.admit(traced("order", None), NOW, max_attempts=3, queue_limit=10)

    assert ledger.given_trace(order_named("order").order.id) is None


# ------------------------------------------------------------------ phases


def test_the_phases_of_an_attempt_are_recorded_with_its_end(ledger: Ledger) -> None:
    job = running(ledger)
    receipt = chain_of(order_named("order"), 1)[0]

    ledger.move(job, JobEvent.ATTEST, at(9), receipt=receipt, phases={"fetch": 0.5, "train": 7.0})

    assert ledger.phase_times(job.order_id) == (
        PhaseTime(job=job.id, attempt=1, phase="fetch", seconds=0.5),
        PhaseTime(job=job.id, attempt=1, phase="train", seconds=7.0),
    )
    assert counted(ledger, measures.PHASE_S) == {
        ("learn", "fetch", "1.0"): 1,
        ("learn", "fetch", "sum"): 0.5,
        ("learn", "train", "15.0"): 1,
        ("learn", "train", "sum"): 7.0,
    }


def test_each_attempt_has_phases_of_its_own(ledger: Ledger) -> None:
    job = running(ledger)
    job = ledger.move(job, JobEvent.RETRY, at(1), reason="storage-unavailable", phases={"fetch": 1.0})
    job = ledger.start(job, at(2), worker="w2", lease_until=at(62))

    ledger.move(job, JobEvent.FAIL, at(3), reason="oom", phases={"fetch": 2.0})

    assert [(one.attempt, one.seconds) for one in ledger.phase_times(job.order_id)] == [(1, 1.0), (2, 2.0)]
    assert counted(ledger, measures.RETRIES) == {("storage-unavailable",): 1}


def test_a_move_that_lost_its_race_measures_nothing(ledger: Ledger) -> None:
    job = running(ledger)
    ledger.move(job, JobEvent.FAIL, at(1), reason="oom")
    before = ledger.tallies()

    with pytest.raises(LostRace):
        ledger.move(job, JobEvent.FAIL, at(2), reason="oom", phases={"fetch": 1.0})

    assert ledger.tallies() == before
    assert ledger.phase_times(job.order_id) == ()


# ------------------------------------------------------------------ tallies


def test_moves_are_counted_by_state_and_ends_by_reason(ledger: Ledger) -> None:
    ledger.move(running(ledger, "one"), JobEvent.FAIL, at(1), reason="exit:3")
    ledger.move(queued(ledger, "two"), JobEvent.EXPIRE, at(1), reason="order-expired")

    assert counted(ledger, measures.MOVES) == {
        ("received",): 2,
        ("queued",): 2,
        ("running",): 1,
        ("failed",): 1,
        ("expired",): 1,
    }
    assert counted(ledger, measures.ENDED) == {("failed", "exit"): 1, ("expired", "order-expired"): 1}


def test_deliveries_are_counted_by_what_became_of_each_try(ledger: Ledger) -> None:
    job = attested(ledger, report(), handoff())
    first, second = (each.id for each in ledger.deliveries(order_id=job.order_id))
    ledger.postpone(first, at(5), "peer-unavailable: no connection")
    ledger.acknowledge(first, at(1 + 20))
    ledger.acknowledge(first, at(1 + 30))  # a repeat counts nothing
    ledger.bury(second, at(40), "refused")

    assert counted(ledger, measures.TRIES) == {
        ("report", "failed"): 1,
        ("report", "acknowledged"): 1,
        ("handoff", "refused"): 1,
    }
    assert counted(ledger, measures.DELIVERY_S) == {("report", "60.0"): 1, ("report", "sum"): 20.0}


def test_lines_of_other_changes_count_too(ledger: Ledger) -> None:
    job = running(ledger)
    told = [NewEvent(name="share.received", order_id=job.order_id, position=0, values={"of": "x"})]

    ledger.record_events(told * 2, at(1))
    ledger.record_event("selftest.held", at(1), values={"runtime": "runc"})
    ledger.end_step(
        job, "run.train", at(2), b"{}", told=[NewEvent(name="run.ended", values={"run": "train"})]
    )
    ledger.park(job, at(3), until=at(60), reason="storage-unavailable")

    assert counted(ledger, measures.SHARES) == {("received",): 2}
    assert counted(ledger, measures.SELFTESTS) == {("held",): 1}
    assert counted(ledger, measures.RUNS) == {("train", ""): 1}
    assert counted(ledger, measures.PUT_OFF) == {("storage-unavailable",): 1}


def test_what_is_forgotten_is_still_counted(ledger: Ledger) -> None:
    job = running(ledger)
    ledger.move(job, JobEvent.FAIL, at(1), reason="oom", phases={"fetch": 1.0})
    before = ledger.tallies()
    long_after = NOW + timedelta(days=4000)
    told = Retention(
        logs_before=long_after, bodies_before=long_after, orders_before=long_after, expired_before=long_after
    )

    assert ledger.collect(told, long_after, 10).orders == 1

    assert ledger.phase_times(job.order_id) == ()
    assert ledger.tallies() == before


# ------------------------------------------------------------------ how things stand


def test_the_oldest_of_each_open_state_is_told(ledger: Ledger) -> None:
    queued(ledger, "first", now=at(1))
    queued(ledger, "second", now=at(2))
    received(ledger, "third", now=at(3))
    ledger.move(running(ledger, "over", now=at(0)), JobEvent.FAIL, at(4), reason="oom")

    gauges = ledger.gauges()

    assert gauges.waiting == {JobState.QUEUED: at(1), JobState.RECEIVED: at(3)}


def test_what_is_unsent_and_who_rests_is_told(ledger: Ledger) -> None:
    assert (ledger.gauges().unsent, ledger.gauges().resting) == (None, 0)
    job = attested(ledger, report(), handoff())
    first, _ = ledger.deliveries(order_id=job.order_id)
    ledger.rest_target(PEER, 3, at(90))

    assert (ledger.gauges().unsent, ledger.gauges().resting) == (at(1), 1)

    ledger.acknowledge(first.id, at(5))
    assert ledger.gauges().unsent == at(1)


def test_lines_without_a_signed_head_are_told_since_the_oldest(ledger: Ledger) -> None:
    assert (ledger.gauges().lines, ledger.gauges().unsigned) == (0, None)
    ledger.set_control(Control(mode=Mode.PAUSED, since=NOW), at(1))
    ledger.set_control(Control(mode=Mode.RUNNING, since=NOW), at(2))

    assert (ledger.gauges().lines, ledger.gauges().unsigned) == (2, at(1))

    assert ledger.checkpoint(lambda *_: "signed", at(10), lines=1, age=timedelta(hours=1))
    assert (ledger.gauges().lines, ledger.gauges().unsigned) == (3, None)


# ------------------------------------------------------------------ SQLite: processes, restarts


def test_processes_count_into_the_same_numbers_and_a_restart_sets_none_back(tmp_path: Path) -> None:
    folder = tmp_path / "ledger"
    fresh_ledger(folder).close()
    script = (
        "import sys; from pathlib import Path; from tests.ports.ledger_stage import *\n"
        "from agent.domain.jobs import JobEvent\n"
        "ledger = open_ledger(Path(sys.argv[1]))\n"
        "for n in range(10):\n"
        "    job = running(ledger, f'{sys.argv[2]}-{n}')\n"
        "    ledger.move(job, JobEvent.FAIL, at(1), reason='oom', phases={'fetch': 0.5})\n"
        "ledger.close()\n"
    )
    command = [sys.executable, "-c", script, str(folder / "ledger.db")]
    workers = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("one", "two")]
    assert [worker.wait(120) for worker in workers] == [0, 0]

    with closing(open_ledger(folder / "ledger.db")) as ledger:
        assert counted(ledger, measures.ENDED) == {("failed", "oom"): 20}
        assert counted(ledger, measures.PHASE_S)["learn", "fetch", "1.0"] == 20
        assert counted(ledger, measures.PHASE_S)["learn", "fetch", "sum"] == 10.0


def test_a_tally_of_nothing_makes_no_row(ledger: Ledger) -> None:
    ledger.record_event("upload.ended", NOW, values={"kind": "model", "bytes": 0})

    assert counted(ledger, measures.UPLOADED) == {}
