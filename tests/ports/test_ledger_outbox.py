"""What every ledger does with its outbox: dead letters, and targets that do not answer; the one in memory, and SQLite."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.domain.jobs import JobState
from agent.errors import LostRace, NotFound
from agent.ports.ledger import Delivery, DeliveryId, DeliveryState, Ledger
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
    received,
    report,
)
from tests.simulate.ledger import SwiftLedger

PENDING, DEAD = DeliveryState.PENDING, DeliveryState.DEAD


@pytest.fixture(params=["memory", "simulated", "sqlalchemy"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    in_memory = {"memory": MemoryLedger, "simulated": SwiftLedger}
    made: Ledger = (
        in_memory[request.param]() if request.param in in_memory else fresh_ledger(tmp_path / "ledger")
    )
    yield made
    made.close()


def only(ledger: Ledger) -> Delivery:
    (delivery,) = ledger.deliveries()
    return delivery


def last_event(ledger: Ledger) -> tuple[str, object]:
    event = ledger.events()[-1]
    return event.name, event.values


# ------------------------------------------------------------------ looking


def test_the_outbox_lists_by_state_oldest_first_and_counts_what_is_open(ledger: Ledger) -> None:
    attested(ledger, report(), handoff())
    first, second = ledger.deliveries()
    ledger.bury(second.id, at(5), "refused")

    assert [head.id for head in ledger.outbox({PENDING, DEAD}, 10)] == [first.id, second.id]
    assert [head.id for head in ledger.outbox({DEAD}, 10)] == [second.id]
    assert [head.id for head in ledger.outbox({PENDING, DEAD}, 1)] == [first.id]
    assert ledger.outbox_counts() == {PENDING: 1, DEAD: 1}
    assert ledger.delivery(first.id) == first
    with pytest.raises(NotFound):
        ledger.delivery(DeliveryId("nothing"))


# ------------------------------------------------------------------ a person decides


def test_a_dead_report_is_pending_again_and_moves_no_job(ledger: Ledger) -> None:
    job = attested(ledger, report())
    ledger.bury(only(ledger).id, at(5), "refused")
    dead = only(ledger)

    ledger.retry_delivery(dead, at(60), uid=1000)

    assert (only(ledger).state, only(ledger).next_try_at, only(ledger).body) == (PENDING, at(60), dead.body)
    assert ledger.job(job.id).state is JobState.DONE
    assert last_event(ledger) == (
        "delivery.retried",
        {"delivery": dead.id, "was": "dead", "target": ORCHESTRATOR, "uid": 1000},
    )
    ledger.acknowledge(dead.id, at(61))
    assert ledger.job(job.id).state is JobState.DONE


def test_a_resting_delivery_and_its_target_are_tried_at_once(ledger: Ledger) -> None:
    attested(ledger, report())
    ledger.postpone(only(ledger).id, at(300), "no connection")
    ledger.rest_target(ORCHESTRATOR, 3, at(300))

    ledger.retry_delivery(only(ledger), at(10), uid=None)

    assert ledger.lease_delivery(only(ledger).id, at(10), at(70)) is not None


def test_a_dropped_report_lets_its_job_settle(ledger: Ledger) -> None:
    attested(ledger, report())

    job = ledger.drop_delivery(only(ledger), at(5), uid=1000, reason="dropped")

    assert (job.state, only(ledger).state) == (JobState.DONE, DeliveryState.DROPPED)
    assert [event.name for event in ledger.events()][-2:] == ["delivery.dropped", "job.done"]
    assert ledger.outbox_counts() == {PENDING: 0, DEAD: 0}


def test_a_dropped_hand_off_fails_the_job_that_was_only_placed(ledger: Ledger) -> None:
    ledger.redirect(received(ledger), NOW, next_agent=PEER, delivery=handoff())

    job = ledger.drop_delivery(only(ledger), at(5), uid=0, reason="dropped", deliveries=[report()])

    assert (job.state, job.reason) == (JobState.FAILED, "dropped")
    assert [delivery.state for delivery in ledger.deliveries()] == [DeliveryState.DROPPED, PENDING]


def test_a_dropped_hand_off_of_a_done_task_settles_with_the_report_of_it(ledger: Ledger) -> None:
    attested(ledger, handoff())

    job = ledger.drop_delivery(only(ledger), at(5), uid=0, reason="dropped", deliveries=[report()])
    settled = ledger.acknowledge(ledger.deliveries()[-1].id, at(6))

    assert (job.state, settled.state) == (JobState.ATTESTED, JobState.DONE)


def test_what_is_being_sent_is_not_dropped(ledger: Ledger) -> None:
    attested(ledger, report())
    ledger.lease_delivery(only(ledger).id, at(2), at(62))

    with pytest.raises(LostRace):
        ledger.drop_delivery(only(ledger), at(61), uid=0, reason="dropped")
    ledger.drop_delivery(only(ledger), at(62), uid=0, reason="dropped")

    assert only(ledger).state is DeliveryState.DROPPED


def test_who_saw_another_state_decides_nothing(ledger: Ledger) -> None:
    attested(ledger, report())
    seen = only(ledger)
    ledger.acknowledge(seen.id, at(5))
    events = ledger.events()

    with pytest.raises(LostRace):
        ledger.retry_delivery(seen, at(6), uid=0)
    with pytest.raises(LostRace):
        ledger.drop_delivery(seen, at(6), uid=0, reason="dropped")

    assert only(ledger).state is DeliveryState.ACKNOWLEDGED
    assert ledger.events() == events


def test_what_was_acknowledged_and_lost_there_is_sent_again_as_it_was(ledger: Ledger) -> None:
    job = attested(ledger, report())
    before = only(ledger)
    is_too_early = ledger.send_again(before.id, at(4), "not there")
    ledger.acknowledge(before.id, at(5))

    is_sent = ledger.send_again(before.id, at(9), "not there")

    assert (is_too_early, is_sent) == (False, True)
    assert (only(ledger).state, only(ledger).body, only(ledger).n) == (PENDING, before.body, before.n)
    assert ledger.unrung(at(9), 10).deliveries == (before.id,)
    assert ledger.job(job.id).state is JobState.DONE
    assert last_event(ledger)[0] == "delivery.sent_again"
    with pytest.raises(NotFound):
        ledger.send_again(DeliveryId("nothing"), at(9), "not there")


# ------------------------------------------------------------------ targets that do not answer


def test_nothing_is_sent_to_a_target_that_rests_and_others_are_not_held_up(ledger: Ledger) -> None:
    attested(ledger, report(), handoff())
    told, handed = ledger.deliveries()
    ledger.rest_target(ORCHESTRATOR, 1, at(100))

    assert ledger.lease_delivery(told.id, at(50), at(110)) is None
    assert ledger.unrung(at(50), 10).deliveries == (handed.id,)
    assert ledger.lease_delivery(handed.id, at(50), at(110)) is not None


def test_one_call_at_a_time_finds_out_whether_a_target_is_back(ledger: Ledger) -> None:
    attested(ledger, report(), report(b"{}"), report(b"[]"), handoff(OTHER_PEER))
    first, second, third, handed = ledger.deliveries()
    ledger.rest_target(ORCHESTRATOR, 4, at(100))

    rung = ledger.unrung(at(100), 10).deliveries
    probe = ledger.lease_delivery(first.id, at(100), at(160))
    other = ledger.lease_delivery(second.id, at(101), at(161))
    after = ledger.lease_delivery(second.id, at(160), at(220))

    assert set(rung) == {handed.id, first.id}
    assert (probe is None, other is None, after is None) == (False, True, False)
    assert ledger.target_failures(ORCHESTRATOR) == 4
    assert third.state is PENDING


def test_a_target_that_answers_has_no_failures_and_all_that_waits_for_it_may_go(ledger: Ledger) -> None:
    attested(ledger, report(), report(b"{}"), handoff())
    first, second, _ = ledger.deliveries()
    ledger.rest_target(ORCHESTRATOR, 4, at(100))
    ledger.lease_delivery(first.id, at(100), at(160))
    ledger.acknowledge(first.id, at(101))

    waiting = ledger.target_is_back(ORCHESTRATOR, at(101), 10)

    assert waiting == (second.id,)
    assert ledger.target_is_back(ORCHESTRATOR, at(101), 10) == ()
    assert ledger.target_failures(ORCHESTRATOR) == 0
    assert ledger.lease_delivery(second.id, at(101), at(161)) is not None


def test_a_backlog_for_one_who_is_away_takes_no_turn_from_others(ledger: Ledger) -> None:
    attested(ledger, *(report(b"%d" % number) for number in range(20)), handoff())
    ledger.rest_target(ORCHESTRATOR, 4, at(100))

    rung = ledger.unrung(at(200), 5).deliveries

    assert any("handoff" in each for each in rung)
    assert sum("report" in each for each in rung) == 1


def test_a_rest_of_a_target_beyond_any_rest_is_ended_after_a_clock_was_set_back(ledger: Ledger) -> None:
    attested(ledger, report())
    ledger.rest_target(ORCHESTRATOR, 1, at(10_000))

    ledger.correct_clock(at(10), lease=at(60) - NOW, rest=at(300) - NOW)

    assert ledger.lease_delivery(only(ledger).id, at(10), at(70)) is not None
