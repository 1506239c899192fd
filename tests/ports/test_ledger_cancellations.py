"""Cancellations, and what the host does as a whole: the part of the ledger's contract that is held beside its own suite."""

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.domain.cancellations import BY_OPERATOR, CANCELLED, OPERATOR, KeptCancellation
from agent.domain.control import Control, Mode
from agent.domain.ids import Digest
from agent.domain.jobs import Job, JobEvent, JobState
from agent.errors import LostRace, QueueFull
from agent.ports.ledger import CancelStep, DeliveryKind, DeliveryState, Ledger
from agent.ports.ledger_sqlalchemy import open_ledger
from tests.builders import NOW, digest_named
from tests.fakes.ledger import MemoryLedger
from tests.ports.ledger_stage import (
    LEASE,
    ORCHESTRATOR,
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
from tests.simulate.ledger import SwiftLedger

ORDER = order_named("order").digest
MOST = 1000


@pytest.fixture(params=["memory", "simulated", "sqlalchemy"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    in_memory = {"memory": MemoryLedger, "simulated": SwiftLedger}
    made: Ledger = (
        in_memory[request.param]() if request.param in in_memory else fresh_ledger(tmp_path / "ledger")
    )
    yield made
    made.close()


def word(order: Digest = ORDER, source: str = ORCHESTRATOR, **changes: Any) -> KeptCancellation:
    fields: dict[str, Any] = {"at": NOW, "keep_until": at(3600), "envelope": b"{}"} | changes
    return KeptCancellation(order=order, source=source, **fields)


def cancel(ledger: Ledger, kept: KeptCancellation, *steps: CancelStep, now: datetime = NOW) -> bool:
    return ledger.cancel(kept, steps, now, most_without_order=MOST)


def ends(job: Job, *, told: bool = True) -> CancelStep:
    return CancelStep(job=job, is_ended=True, deliveries=(report(),) if told else ())


def event_names(ledger: Ledger) -> list[str]:
    return [event.name for event in ledger.events()]


@pytest.mark.parametrize("make", [received, queued, running])
def test_an_open_job_ends_with_its_report_and_nobody_holds_it_any_more(ledger: Ledger, make: Any) -> None:
    job = make(ledger)

    is_new = cancel(ledger, word(), ends(job), now=at(5))

    ended = ledger.job(job.id)
    assert is_new
    assert (ended.state, ended.reason, ended.changed_at) == (JobState.CANCELLED, CANCELLED, at(5))
    assert (ended.worker, ended.lease_until, ended.not_before) == (None, None, None)
    assert [d.kind for d in ledger.deliveries()] == [DeliveryKind.REPORT]
    assert event_names(ledger)[-2:] == ["order.cancelled", "job.cancelled"]
    assert ledger.cancellations(ORDER) == (word(),)


def test_a_job_that_moved_undoes_all_of_it(ledger: Ledger) -> None:
    seen = queued(ledger)
    ledger.start(seen, NOW, worker="w1", lease_until=NOW + LEASE)

    with pytest.raises(LostRace):
        cancel(ledger, word(), ends(seen))

    assert ledger.cancellations(ORDER) == ()
    assert ledger.deliveries() == ()
    assert ledger.job(seen.id).state is JobState.RUNNING
    assert "order.cancelled" not in event_names(ledger)


def test_a_job_that_is_left_out_is_a_lost_race(ledger: Ledger) -> None:
    received(ledger)

    with pytest.raises(LostRace):
        cancel(ledger, word())

    assert ledger.cancellations(ORDER) == ()


def test_the_operator_leaves_what_was_handed_over_and_an_orchestrator_does_not(ledger: Ledger) -> None:
    job = ledger.redirect(received(ledger), NOW, next_agent=PEER, delivery=handoff())

    assert cancel(ledger, word(source=OPERATOR, envelope=None, uid=7, reason="mine"))
    with pytest.raises(LostRace):
        cancel(ledger, word())

    assert ledger.job(job.id).state is JobState.RECEIVED


def test_the_operators_word_names_itself_as_the_reason(ledger: Ledger) -> None:
    job = queued(ledger)

    cancel(ledger, word(source=OPERATOR, envelope=None, uid=7, reason="mine"), ends(job))

    assert ledger.job(job.id).reason == BY_OPERATOR
    (event,) = [e for e in ledger.events() if e.name == "order.cancelled"]
    assert event.values == {"order": ORDER, "source": OPERATOR, "uid": 7, "reason": "mine"}
    assert event.order_id == job.order_id


def test_a_hand_off_is_withdrawn_and_the_job_waits_for_what_replaces_it(ledger: Ledger) -> None:
    job = attested(ledger, handoff())
    (sent,) = ledger.deliveries()
    step = CancelStep(job=job, is_ended=False, withdrawn=(sent.id,), deliveries=(report(),))

    cancel(ledger, word(), step, now=at(9))
    (withdrawn, told) = ledger.deliveries()
    waiting = ledger.job(job.id).state
    due = ledger.unrung(at(10), 10).deliveries
    ledger.acknowledge(told.id, at(11))

    assert (withdrawn.state, withdrawn.last_error) == (DeliveryState.WITHDRAWN, CANCELLED)
    assert waiting is JobState.ATTESTED
    assert due == (told.id,)
    assert ledger.lease_delivery(sent.id, at(12), at(99)) is None
    assert ledger.job(job.id).state is JobState.DONE


def test_a_job_that_waited_for_the_hand_off_alone_is_done_when_it_is_withdrawn(ledger: Ledger) -> None:
    job = attested(ledger, handoff())
    (sent,) = ledger.deliveries()

    cancel(ledger, word(), CancelStep(job=job, is_ended=False, withdrawn=(sent.id,)))

    assert ledger.job(job.id).state is JobState.DONE


def test_a_hand_off_that_was_acknowledged_meanwhile_is_a_lost_race(ledger: Ledger) -> None:
    job = attested(ledger, handoff(), report())
    sent = next(d for d in ledger.deliveries() if d.kind is DeliveryKind.HANDOFF)
    ledger.acknowledge(sent.id, at(2))

    with pytest.raises(LostRace):
        cancel(ledger, word(), CancelStep(job=job, is_ended=False, withdrawn=(sent.id,)))

    assert ledger.cancellations(ORDER) == ()


@pytest.mark.parametrize("late", ["postpone", "bury"])
def test_what_the_sender_says_of_a_withdrawn_hand_off_changes_nothing(ledger: Ledger, late: str) -> None:
    job = attested(ledger, handoff(), report())
    sent = next(d for d in ledger.deliveries() if d.kind is DeliveryKind.HANDOFF)
    cancel(ledger, word(), CancelStep(job=job, is_ended=False, withdrawn=(sent.id,)))
    before = ledger.deliveries()

    if late == "postpone":
        ledger.postpone(sent.id, at(99), "no connection")
    else:
        ledger.bury(sent.id, at(3), "refused", deliveries=[handoff()])

    assert ledger.deliveries() == before


def test_that_a_withdrawn_hand_off_arrived_is_a_fact_all_the_same(ledger: Ledger) -> None:
    job = attested(ledger, handoff(), report())
    sent = next(d for d in ledger.deliveries() if d.kind is DeliveryKind.HANDOFF)
    cancel(ledger, word(), CancelStep(job=job, is_ended=False, withdrawn=(sent.id,)))

    ledger.acknowledge(sent.id, at(4))

    assert next(d.state for d in ledger.deliveries() if d.id == sent.id) is DeliveryState.ACKNOWLEDGED


def test_the_same_word_again_keeps_the_first_and_only_lives_longer(ledger: Ledger) -> None:
    first, shorter, longer = word(), word(at=at(1), keep_until=at(1)), word(at=at(2), keep_until=at(7200))

    told = [cancel(ledger, kept) for kept in (first, shorter, longer)]

    assert told == [True, False, False]
    assert ledger.cancellations(ORDER) == (word(keep_until=at(7200)),)
    assert event_names(ledger).count("order.cancelled") == 1


def test_two_sources_have_a_word_each(ledger: Ledger) -> None:
    cancel(ledger, word())
    cancel(ledger, word(source="another", at=at(1)))

    assert [kept.source for kept in ledger.cancellations(ORDER)] == [ORCHESTRATOR, "another"]
    assert ledger.cancellations(digest_named("other")) == ()


def test_words_on_orders_that_never_came_are_bounded_by_their_source(ledger: Ledger) -> None:
    job = received(ledger)
    for n in range(2):
        ledger.cancel(word(digest_named(f"order {n}")), [], NOW, most_without_order=2)

    with pytest.raises(QueueFull):
        ledger.cancel(word(digest_named("order 2")), [], NOW, most_without_order=2)
    again = ledger.cancel(word(digest_named("order 1")), [], NOW, most_without_order=2)
    other = ledger.cancel(word(digest_named("order 2"), "another"), [], NOW, most_without_order=2)
    known = ledger.cancel(word(), [ends(job)], NOW, most_without_order=2)

    assert (again, other, known) == (False, True, True)


def test_words_whose_time_is_over_are_forgotten(ledger: Ledger) -> None:
    cancel(ledger, word(keep_until=at(10)))
    cancel(ledger, word(digest_named("other"), keep_until=at(20)))

    assert ledger.forget_cancellations(at(10)) == 0
    assert ledger.forget_cancellations(at(11)) == 1
    assert ledger.cancellations(ORDER) == ()
    assert len(ledger.cancellations(digest_named("other"))) == 1


def test_an_order_is_found_by_its_digest(ledger: Ledger) -> None:
    job = received(ledger)

    found = ledger.order_of_digest(ORDER)

    assert found == ledger.order(job.order_id)
    assert ledger.order_of_digest(digest_named("other")) is None


@pytest.mark.parametrize("mode", [Mode.PAUSED, Mode.DRAINING, Mode.RESTORED])
def test_no_task_starts_unless_the_host_runs_and_what_runs_goes_on(ledger: Ledger, mode: Mode) -> None:
    job, under_way = queued(ledger), running(ledger, "another")
    ledger.set_control(Control(mode=mode, since=NOW), NOW)

    with pytest.raises(LostRace):
        ledger.start(job, NOW, worker="w1", lease_until=NOW + LEASE)
    failed = ledger.move(under_way, JobEvent.FAIL, at(1), reason="oom")
    ledger.set_control(Control(since=at(2)), at(2))
    started = ledger.start(job, at(3), worker="w1", lease_until=at(3) + timedelta(seconds=9))

    assert failed.state is JobState.FAILED
    assert started.state is JobState.RUNNING


def test_what_the_host_does_and_which_orders_end_outlive_every_process(tmp_path: Path) -> None:
    said = Control(mode=Mode.DRAINING, since=NOW, until=at(60), reason="a new disk", uid=1000)
    with closing(fresh_ledger(tmp_path / "ledger")) as before:
        before.set_control(said, NOW)
        cancel(before, word(source=OPERATOR, envelope=None, uid=7, reason="mine"))

    with closing(open_ledger(tmp_path / "ledger" / "ledger.db")) as after:
        assert after.control() == said
        (kept,) = after.cancellations(ORDER)
        assert (kept.uid, kept.reason, kept.keep_until) == (7, "mine", at(3600))
