"""What every ledger does, run on the one in memory and on SQLAlchemy over a real SQLite file."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.domain.approvals import Ruling, Verdict
from agent.domain.chain import TaskKind
from agent.domain.control import Control, Mode
from agent.domain.ids import Digest, JobId, OrderId, digest_of, job_id
from agent.domain.images import PAGE_ENTRIES, ImageAbout, ImageDescription, ImageEntry, ImageLayer
from agent.domain.jobs import FINAL, TRANSITIONS, IllegalMove, Job, JobEvent, JobState
from agent.domain.nonces import Nonce
from agent.errors import HandoffConflict, LostRace, NotFound, OrderConflict, QueueFull, ReplayedRequest
from agent.ports.ledger import (
    Admission,
    Candidate,
    DeliveryId,
    DeliveryKind,
    DeliveryState,
    JobQuery,
    Ledger,
    Successor,
)
from tests.builders import NOW, failed, receipt_for, uuid_of
from tests.fakes.ledger import MemoryLedger
from tests.ports.ledger_stage import (
    LEASE,
    ORCHESTRATOR,
    OTHER_PEER,
    PEER,
    WORLD,
    arrival,
    at,
    attested,
    chain_of,
    fresh_ledger,
    handoff,
    order_named,
    other_receipt,
    queued,
    received,
    report,
    running,
)
from tests.simulate.ledger import SwiftLedger


@pytest.fixture(params=["memory", "simulated", "sqlalchemy"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    in_memory = {"memory": MemoryLedger, "simulated": SwiftLedger}
    made: Ledger = (
        in_memory[request.param]() if request.param in in_memory else fresh_ledger(tmp_path / "ledger")
    )
    yield made
    made.close()


def event_names(ledger: Ledger) -> list[str]:
    return [event.name for event in ledger.events()]


def pending(ledger: Ledger) -> list[DeliveryId]:
    return [delivery.id for delivery in ledger.deliveries(state=DeliveryState.PENDING)]


def waiting(ledger: Ledger, now: datetime) -> list[JobId]:
    """The jobs that the sweep would ring for, in pages of two."""
    found, after = [], 0
    while True:
        page = ledger.waiting(now, after=after, limit=2)
        found += [job.id for job in page.jobs]
        if page.next is None:
            return found
        after = page.next


# ------------------------------------------------------------------ intake


def test_an_order_is_recorded_with_a_received_job(ledger: Ledger) -> None:
    order = order_named("order")

    admission = ledger.admit(arrival(order), NOW, max_attempts=3, queue_limit=10)

    assert not admission.is_repeat
    assert admission.job == Job(
        id=job_id(order.order.id, 0),
        order=order.digest,
        order_id=order.order.id,
        position=0,
        kind=TaskKind.LEARN,
        state=JobState.RECEIVED,
        attempt=0,
        max_attempts=3,
        received_at=NOW,
        changed_at=NOW,
    )
    assert ledger.job(admission.job.id) == admission.job
    record = ledger.order(order.order.id)
    assert (record.digest, record.id, record.envelope) == (order.digest, order.order.id, order.envelope)
    assert (record.signer, record.sender) == (order.signer, ORCHESTRATOR)
    assert (record.expires, record.received_at) == (order.order.expires, NOW)
    assert record.payload_type == order.order.payload_type
    assert ledger.digest_of_order(order.order.id) == order.digest
    assert event_names(ledger) == ["job.received"]


def test_the_same_order_again_is_a_repeat_that_shows_the_job_as_it_is_now(ledger: Ledger) -> None:
    job = queued(ledger)

    again = ledger.admit(arrival(order_named("order")), at(5), max_attempts=3, queue_limit=1)

    assert again.is_repeat
    assert again.job == job
    assert ledger.jobs(JobQuery()) == (job,)


def test_orders_that_are_recorded_together_have_each_what_it_would_have_had_alone(ledger: Ledger) -> None:
    received(ledger)
    kept = Nonce(keyid=ORCHESTRATOR, text="k" * 20, keep_until=at(60))
    arrivals = [
        replace(arrival(order_named("first")), nonce=kept),
        replace(arrival(order_named("order", rank=1)), nonce=replace(kept, text="r" * 20)),
        arrival(order_named("order")),
        replace(arrival(order_named("second")), nonce=kept),
        arrival(order_named("last")),
    ]

    first, other, repeat, replay, last = ledger.admit_all(
        [Candidate(each, max_attempts=3, queue_limit=3) for each in arrivals], NOW
    )

    assert isinstance(first, Admission)
    assert (first.job.order_id, first.is_repeat, first.keeps_nonce) == (
        order_named("first").order.id,
        False,
        True,
    )
    assert isinstance(other, OrderConflict)
    assert isinstance(repeat, Admission)
    assert repeat.is_repeat
    assert isinstance(replay, ReplayedRequest)
    assert isinstance(last, Admission)
    assert {job.order_id for job in ledger.jobs(JobQuery())} == {
        order_named(name).order.id for name in ("order", "first", "last")
    }
    assert ledger.knows_nonce(ORCHESTRATOR, kept.text, NOW)
    assert not ledger.knows_nonce(ORCHESTRATOR, "r" * 20, NOW)


def test_the_limit_of_the_queue_counts_what_was_recorded_a_moment_ago(ledger: Ledger) -> None:
    names = ("one", "two", "three")

    one, two, three = ledger.admit_all(
        [Candidate(arrival(order_named(name)), max_attempts=3, queue_limit=2) for name in names], NOW
    )

    assert isinstance(one, Admission)
    assert isinstance(two, Admission)
    assert isinstance(three, QueueFull)
    assert ledger.admit_all([], NOW) in ([], ())


def test_an_order_id_with_other_content_is_a_conflict(ledger: Ledger) -> None:
    received(ledger)

    with pytest.raises(OrderConflict):
        ledger.admit(arrival(order_named("order", rank=1)), NOW, max_attempts=3, queue_limit=10)

    assert ledger.digest_of_order(order_named("order").order.id) == order_named("order").digest


def test_a_hand_off_brings_its_receipts(ledger: Ledger) -> None:
    order = order_named("order")
    receipts = chain_of(order, 2)

    job = ledger.admit(arrival(order, receipts, sender=PEER), NOW, max_attempts=3, queue_limit=10).job

    assert job.id == job_id(order.order.id, 2)
    assert ledger.receipts(order.digest) == receipts
    assert ledger.recorded_last_receipt(order.digest, 2) == (job.id, receipts[-1].digest)
    assert ledger.recorded_last_receipt(order.digest, 1) is None


def test_what_storage_placed_here_already_is_queued_at_once_and_both_moves_are_told(ledger: Ledger) -> None:
    order = order_named("order")
    placed = replace(arrival(order, chain_of(order, 1), sender=PEER), is_placed=True)

    job = ledger.admit(placed, NOW, max_attempts=3, queue_limit=10).job
    again = ledger.admit(placed, at(1), max_attempts=3, queue_limit=10)

    assert (job.state, job.position) == (JobState.QUEUED, 1)
    assert ledger.job(job.id) == job
    assert (again.job, again.is_repeat) == (job, True)
    assert event_names(ledger) == ["job.received", "job.queued"]


def test_a_later_hand_off_of_the_same_order_adds_what_is_new(ledger: Ledger) -> None:
    order = order_named("order")
    received(ledger, position=1)

    second = ledger.admit(arrival(order, chain_of(order, 3)), at(1), max_attempts=3, queue_limit=10)

    assert not second.is_repeat
    assert ledger.receipts(order.digest) == chain_of(order, 3)
    assert ledger.order(order.order.id).received_at == NOW


def test_the_same_place_after_another_last_receipt_is_a_conflict(ledger: Ledger) -> None:
    order = order_named("order")
    received(ledger, position=2)
    others = (chain_of(order, 1)[0], other_receipt(order, 1))

    with pytest.raises(HandoffConflict):
        ledger.admit(arrival(order, others), NOW, max_attempts=3, queue_limit=10)


def test_a_place_deeper_in_the_chain_after_another_receipt_is_a_conflict_and_leaves_nothing(
    ledger: Ledger,
) -> None:
    order = order_named("order")
    received(ledger, position=1)
    other = other_receipt(order, 0)
    chain = (other, WORLD.receipt(order, [other]))

    with pytest.raises(HandoffConflict):
        ledger.admit(arrival(order, chain), NOW, max_attempts=3, queue_limit=10)

    assert ledger.receipts(order.digest) == chain_of(order, 1)
    assert len(ledger.jobs(JobQuery())) == 1


def test_a_place_whose_receipt_came_already_does_not_run_again(ledger: Ledger) -> None:
    order = order_named("order")
    received(ledger, position=2)

    with pytest.raises(HandoffConflict):
        ledger.admit(arrival(order, chain_of(order, 1)), NOW, max_attempts=3, queue_limit=10)


def test_a_full_queue_refuses_new_orders_and_answers_repeats(ledger: Ledger) -> None:
    received(ledger, "first")
    queued(ledger, "second")

    with pytest.raises(QueueFull):
        ledger.admit(arrival(order_named("third")), NOW, max_attempts=3, queue_limit=2)

    assert ledger.admit(arrival(order_named("first")), NOW, max_attempts=3, queue_limit=2).is_repeat
    assert ledger.digest_of_order(order_named("third").order.id) is None


def test_running_and_ended_jobs_take_no_room_in_the_queue(ledger: Ledger) -> None:
    running(ledger, "first")
    ledger.move(received(ledger, "second"), JobEvent.FAIL, NOW, reason="order-error")
    held = ledger.move(received(ledger, "third"), JobEvent.HOLD, NOW)

    assert held.state is JobState.HELD
    with pytest.raises(QueueFull):
        ledger.admit(arrival(order_named("fourth")), NOW, max_attempts=3, queue_limit=1)
    ledger.admit(arrival(order_named("fourth")), NOW, max_attempts=3, queue_limit=2)


def test_a_nonce_is_new_once_until_its_time_is_over(ledger: Ledger) -> None:
    assert ledger.remember_nonce(PEER, "n1", at(100), NOW)
    assert not ledger.remember_nonce(PEER, "n1", at(200), at(1))
    assert not ledger.remember_nonce(PEER, "n1", at(200), at(100))
    assert not ledger.remember_nonce(PEER, "n1", at(100), at(100.000001))  # the same request, late
    assert ledger.remember_nonce(PEER, "n1", at(300), at(100.000001))
    assert not ledger.remember_nonce(PEER, "n1", at(300), at(200))


def test_the_nonce_of_a_request_is_kept_with_the_order_it_brought(ledger: Ledger) -> None:
    nonce = Nonce(keyid=PEER, text="n1", keep_until=at(100))
    came = replace(arrival(order_named("order")), nonce=nonce)
    assert not ledger.knows_nonce(PEER, "n1", NOW)

    admission = ledger.admit(came, NOW, max_attempts=3, queue_limit=10)

    assert admission.keeps_nonce
    assert ledger.knows_nonce(PEER, "n1", at(100))
    assert not ledger.knows_nonce(PEER, "n1", at(100.000001))
    assert not ledger.remember_nonce(PEER, "n1", at(200), at(1))


def test_an_order_with_a_nonce_that_was_used_leaves_nothing(ledger: Ledger) -> None:
    ledger.remember_nonce(PEER, "n1", at(100), NOW)
    came = replace(arrival(order_named("order")), nonce=Nonce(keyid=PEER, text="n1", keep_until=at(100)))

    with pytest.raises(ReplayedRequest):
        ledger.admit(came, at(1), max_attempts=3, queue_limit=10)

    assert ledger.digest_of_order(order_named("order").order.id) is None
    assert ledger.events() == ()


def test_an_order_that_is_refused_leaves_its_nonce_unused(ledger: Ledger) -> None:
    received(ledger, "first")
    came = replace(arrival(order_named("second")), nonce=Nonce(keyid=PEER, text="n1", keep_until=at(100)))

    with pytest.raises(QueueFull):
        ledger.admit(came, NOW, max_attempts=3, queue_limit=1)

    assert not ledger.knows_nonce(PEER, "n1", NOW)


def test_nonces_of_two_keys_do_not_meet(ledger: Ledger) -> None:
    assert ledger.remember_nonce(PEER, "n1", at(100), NOW)
    assert ledger.remember_nonce(OTHER_PEER, "n1", at(100), NOW)


def test_forgetting_nonces_drops_those_whose_time_is_over(ledger: Ledger) -> None:
    ledger.remember_nonce(PEER, "early", at(10), NOW)
    ledger.remember_nonce(PEER, "edge", at(50), NOW)
    ledger.remember_nonce(PEER, "late", at(90), NOW)

    assert ledger.forget_nonces(at(50)) == 1
    assert ledger.forget_nonces(at(50)) == 0
    assert not ledger.remember_nonce(PEER, "edge", at(99), at(50))


# ------------------------------------------------------------------ reading


def test_what_is_not_recorded_is_not_found(ledger: Ledger) -> None:
    order_id = OrderId(uuid_of("nothing"))

    with pytest.raises(NotFound):
        ledger.job(job_id(order_id, 0))
    with pytest.raises(NotFound):
        ledger.order(order_id)
    with pytest.raises(NotFound):
        ledger.jobs(JobQuery(after=JobId("nothing")))
    with pytest.raises(NotFound):
        ledger.acknowledge(DeliveryId("nothing"), NOW)
    with pytest.raises(NotFound):
        ledger.postpone(DeliveryId("nothing"), NOW, "?")
    with pytest.raises(NotFound):
        ledger.bury(DeliveryId("nothing"), NOW, "?")
    assert ledger.digest_of_order(order_id) is None
    assert ledger.receipts(digest_of(b"nothing")) == ()
    assert ledger.lease_delivery(DeliveryId("nothing"), NOW, at(60)) is None
    assert ledger.logs(order_id) == ()


def test_jobs_come_newest_first_page_by_page(ledger: Ledger) -> None:
    jobs = [received(ledger, f"order {n}") for n in range(7)]

    first = ledger.jobs(JobQuery(limit=3))
    second = ledger.jobs(JobQuery(limit=3, after=first[-1].id))
    third = ledger.jobs(JobQuery(limit=3, after=second[-1].id))

    assert (*first, *second, *third) == tuple(reversed(jobs))
    assert ledger.jobs(JobQuery(after=third[-1].id)) == ()


def test_jobs_are_found_by_state_order_and_signer(ledger: Ledger) -> None:
    one = received(ledger, "one")
    two = queued(ledger, "two")
    three = running(ledger, "three")
    later = received(ledger, "two", position=3)
    other = WORLD.order(id=OrderId(uuid_of("other")), key=WORLD.other_orchestrator)
    theirs = ledger.admit(arrival(other), NOW, max_attempts=3, queue_limit=10).job

    def found(query: JobQuery) -> tuple[Job, ...]:
        return ledger.jobs(query)

    open_states = frozenset({JobState.RECEIVED, JobState.QUEUED})
    assert found(JobQuery(states=frozenset({JobState.RUNNING}))) == (three,)
    assert found(JobQuery(states=open_states)) == (theirs, later, two, one)
    assert found(JobQuery(states=open_states, limit=2)) == (theirs, later)
    assert found(JobQuery(states=open_states, after=later.id)) == (two, one)
    assert found(JobQuery(order_id=two.order_id)) == (later, two)
    assert found(JobQuery(order_id=two.order_id, states=frozenset({JobState.QUEUED}))) == (two,)
    assert found(JobQuery(signer=other.signer)) == (theirs,)
    assert found(JobQuery(signer=ORCHESTRATOR, states=open_states)) == (later, two, one)
    assert found(JobQuery(signer=ORCHESTRATOR, limit=2)) == (later, three)
    assert found(JobQuery(signer=ORCHESTRATOR, order_id=theirs.order_id)) == ()


def test_jobs_are_counted_by_state(ledger: Ledger) -> None:
    received(ledger, "one")
    received(ledger, "two")
    running(ledger, "three")

    counts = ledger.counts()

    assert set(counts) == set(JobState)
    assert {state: count for state, count in counts.items() if count} == {
        JobState.RECEIVED: 2,
        JobState.RUNNING: 1,
    }


def test_events_are_numbered_and_read_from_where_one_stopped(ledger: Ledger) -> None:
    job = running(ledger)
    ledger.record_event("roster.changed", at(1), values={"entries": 3, "score": 0.5, "by": "me", "was": None})
    ledger.record_event("attempt.failed", at(2), order_id=job.order_id, position=0, values={"code": "oom"})

    everything = ledger.events()
    of_order = ledger.events(order_id=job.order_id)

    assert [event.name for event in everything] == [
        "job.received",
        "job.queued",
        "job.running",
        "roster.changed",
        "attempt.failed",
    ]
    assert [event.seq for event in everything] == sorted({event.seq for event in everything})
    assert everything[3].values == {"entries": 3, "score": 0.5, "by": "me", "was": None}
    assert (everything[3].at, everything[3].order_id, everything[3].position) == (at(1), None, None)
    assert [event.name for event in of_order] == [
        "job.received",
        "job.queued",
        "job.running",
        "attempt.failed",
    ]
    assert ledger.events(after=everything[1].seq, limit=2) == everything[2:4]
    assert ledger.events(order_id=job.order_id, after=of_order[-1].seq) == ()


def test_moments_come_back_exactly_and_in_utc(ledger: Ledger) -> None:
    moment = NOW + timedelta(microseconds=123_457)

    job = received(ledger, now=moment)

    assert ledger.job(job.id).received_at == moment
    assert ledger.job(job.id).received_at.utcoffset() == timedelta(0)


# ------------------------------------------------------------------ moving


def test_a_job_walks_to_running_with_an_attempt_a_worker_and_a_lease(ledger: Ledger) -> None:
    job = running(ledger, worker="w1", now=at(5))

    assert (job.state, job.attempt, job.worker) == (JobState.RUNNING, 1, "w1")
    assert (job.lease_until, job.changed_at, job.received_at) == (at(5) + LEASE, at(5), at(5))
    assert ledger.job(job.id) == job
    assert ledger.events()[-1].values == {"attempt": 1, "max_attempts": 3, "worker": "w1"}


@pytest.mark.parametrize("event", [e for e in JobEvent if (JobState.RECEIVED, e) not in TRANSITIONS])
def test_a_move_that_the_table_lacks_is_illegal(ledger: Ledger, event: JobEvent) -> None:
    job = received(ledger)

    with pytest.raises(IllegalMove):
        ledger.move(job, event, NOW)

    assert ledger.job(job.id) == job


def test_starting_and_settling_are_not_the_callers(ledger: Ledger) -> None:
    with pytest.raises(IllegalMove):
        ledger.move(queued(ledger, "one"), JobEvent.START, NOW)
    with pytest.raises(IllegalMove):
        ledger.move(attested(ledger, report(), name="two"), JobEvent.SETTLE, NOW)


def test_who_saw_an_older_state_loses_the_race(ledger: Ledger) -> None:
    seen = received(ledger)
    ledger.move(seen, JobEvent.ENQUEUE, NOW)

    with pytest.raises(LostRace):
        ledger.move(seen, JobEvent.ENQUEUE, NOW)
    with pytest.raises(LostRace):
        ledger.move(seen, JobEvent.FAIL, NOW, deliveries=[report()])

    assert ledger.job(seen.id).state is JobState.QUEUED
    assert ledger.deliveries() == ()


def test_who_holds_an_older_attempt_moves_nothing(ledger: Ledger) -> None:
    first = running(ledger, worker="w1")
    again = ledger.move(first, JobEvent.RETRY, at(1), reason="storage-unavailable")
    second = ledger.start(again, at(2), worker="w2", lease_until=at(62))

    with pytest.raises(LostRace):
        ledger.move(first, JobEvent.ATTEST, at(3), receipt=chain_of(order_named("order"), 1)[0])

    assert ledger.job(first.id) == second
    assert ledger.receipts(first.order) == ()


def test_a_queued_job_is_started_once(ledger: Ledger) -> None:
    job = queued(ledger)
    ledger.start(job, NOW, worker="w1", lease_until=at(60))

    with pytest.raises(LostRace):
        ledger.start(job, NOW, worker="w2", lease_until=at(60))
    with pytest.raises(LostRace):
        ledger.start(ledger.job(job.id), NOW, worker="w2", lease_until=at(60))

    assert ledger.job(job.id).worker == "w1"


def test_a_retried_job_rests_and_keeps_why(ledger: Ledger) -> None:
    job = ledger.move(running(ledger), JobEvent.RETRY, at(1), reason="storage-unavailable", not_before=at(30))

    assert (job.state, job.attempt, job.worker, job.lease_until) == (JobState.QUEUED, 1, None, None)
    assert (job.not_before, job.reason) == (at(30), "storage-unavailable")
    with pytest.raises(LostRace):
        ledger.start(job, at(29), worker="w2", lease_until=at(90))
    started = ledger.start(job, at(30), worker="w2", lease_until=at(90))
    assert (started.attempt, started.not_before, started.reason) == (2, None, "storage-unavailable")


def test_an_attested_job_records_everything_in_one_step(ledger: Ledger) -> None:
    order = order_named("order")
    (receipt,) = chain_of(order, 1)

    job = ledger.move(
        running(ledger),
        JobEvent.ATTEST,
        at(1),
        receipt=receipt,
        score="0.75",
        next_agent=PEER,
        deliveries=[report(b"1"), handoff(PEER)],
    )

    assert (job.state, job.next_agent, job.score) == (JobState.ATTESTED, PEER, "0.75")
    assert (job.worker, job.lease_until) == (None, None)
    assert ledger.receipts(order.digest) == (receipt,)
    first, second = ledger.deliveries(order_id=order.order.id)
    assert first.id == f"{job.id}.report.1"
    assert second.id == f"{job.id}.handoff.1"
    assert (second.kind, second.n, second.target) == (DeliveryKind.HANDOFF, 1, PEER)
    assert (second.job, second.order, second.order_id, second.position) == (
        job.id,
        job.order,
        job.order_id,
        0,
    )
    assert (second.body, second.expires_at) == (handoff(PEER).body, handoff(PEER).expires_at)
    assert (second.state, second.attempts) == (DeliveryState.PENDING, 0)
    assert (second.next_try_at, second.created_at) == (at(1), at(1))
    assert (second.acknowledged_at, second.lease_until, second.last_error) == (None, None, None)
    assert ledger.events()[-1].values == {
        "attempt": 1,
        "max_attempts": 3,
        "next_agent": PEER,
        "score": "0.75",
    }


def test_an_attested_job_that_has_nobody_to_tell_is_done_at_once(ledger: Ledger) -> None:
    receipt = chain_of(order_named("order"), 1)[0]

    job = ledger.move(running(ledger), JobEvent.ATTEST, at(1), receipt=receipt)

    assert job.state is JobState.DONE
    assert event_names(ledger)[-2:] == ["job.attested", "job.done"]


def test_an_attested_job_waits_for_the_report_of_its_start_too(ledger: Ledger) -> None:
    started = ledger.start(
        queued(ledger), NOW, worker="w1", lease_until=at(60), deliveries=[report(b"started")]
    )

    job = ledger.move(started, JobEvent.ATTEST, at(1), receipt=chain_of(order_named("order"), 1)[0])

    assert job.state is JobState.ATTESTED
    assert ledger.acknowledge(pending(ledger)[0], at(2)).state is JobState.DONE


def test_the_next_task_on_this_host_is_queued_with_the_receipt(ledger: Ledger) -> None:
    order = order_named("order")
    receipt = chain_of(order, 1)[0]

    ledger.move(
        running(ledger), JobEvent.ATTEST, at(1), receipt=receipt, successor=Successor(1, TaskKind.LEARN)
    )

    successor = ledger.job(job_id(order.order.id, 1))
    assert (successor.state, successor.attempt, successor.max_attempts) == (JobState.QUEUED, 0, 3)
    assert (successor.received_at, successor.kind) == (at(1), TaskKind.LEARN)
    assert ledger.recorded_last_receipt(order.digest, 1) == (successor.id, receipt.digest)
    assert "job.queued" in event_names(ledger)[-2:]


def test_a_successor_without_a_receipt_or_out_of_order_is_illegal(ledger: Ledger) -> None:
    job = running(ledger)
    receipt = chain_of(order_named("order"), 1)[0]

    with pytest.raises(IllegalMove):
        ledger.move(job, JobEvent.ATTEST, at(1), successor=Successor(1, TaskKind.LEARN))
    with pytest.raises(IllegalMove):
        ledger.move(job, JobEvent.ATTEST, at(1), receipt=receipt, successor=Successor(2, TaskKind.LEARN))

    assert ledger.job(job.id) == job
    assert ledger.receipts(job.order) == ()


def test_a_receipt_of_another_place_is_illegal(ledger: Ledger) -> None:
    job = running(ledger)

    with pytest.raises(IllegalMove):
        ledger.move(job, JobEvent.ATTEST, at(1), receipt=chain_of(order_named("order"), 2)[1])
    with pytest.raises(IllegalMove):
        ledger.move(job, JobEvent.ATTEST, at(1), receipt=chain_of(order_named("else"), 1)[0])


def test_a_receipt_that_came_meanwhile_with_a_later_hand_off_stops_ours(ledger: Ledger) -> None:
    order = order_named("order")
    job = running(ledger)
    theirs = chain_of(order, 1)
    ledger.admit(arrival(order, theirs, sender=PEER), at(1), max_attempts=3, queue_limit=10)

    with pytest.raises(HandoffConflict):
        ledger.move(
            job, JobEvent.ATTEST, at(2), receipt=other_receipt(order, 0), deliveries=[handoff(OTHER_PEER)]
        )

    assert ledger.job(job.id) == job
    assert ledger.deliveries() == ()


def test_our_own_receipt_that_came_back_with_a_later_hand_off_is_fine(ledger: Ledger) -> None:
    order = order_named("order")
    job = running(ledger)
    ledger.admit(arrival(order, chain_of(order, 2), sender=PEER), at(1), max_attempts=3, queue_limit=10)

    done = ledger.move(job, JobEvent.ATTEST, at(2), receipt=chain_of(order, 1)[0])

    assert done.state is JobState.DONE
    assert ledger.receipts(order.digest) == chain_of(order, 2)


def test_a_failed_job_records_its_receipt(ledger: Ledger) -> None:
    order = order_named("order")
    told = failed(receipt_for(order, [], WORLD.agent("a").keyid))
    receipt = WORLD.receipt(order, [], outcome=told.outcome, outputs=(), model_out=None, reason="oom")

    job = ledger.move(
        running(ledger), JobEvent.FAIL, at(1), reason="oom", receipt=receipt, deliveries=[report()]
    )

    assert (job.state, job.reason, job.is_final) == (JobState.FAILED, "oom", True)
    assert ledger.receipts(order.digest) == (receipt,)


def test_a_job_can_fail_even_when_another_receipt_took_its_place(ledger: Ledger) -> None:
    order = order_named("order")
    job = running(ledger)
    ledger.admit(arrival(order, chain_of(order, 1), sender=PEER), at(1), max_attempts=3, queue_limit=10)

    failed_job = ledger.move(
        job, JobEvent.FAIL, at(2), reason="handoff-conflict", receipt=other_receipt(order, 0)
    )

    assert failed_job.state is JobState.FAILED
    assert ledger.receipts(order.digest) == chain_of(order, 1)
    assert event_names(ledger)[-1] == "receipt.dropped"


def test_final_jobs_never_move(ledger: Ledger) -> None:
    job = ledger.move(received(ledger), JobEvent.CANCEL, NOW)

    assert job.state in FINAL
    for event in JobEvent:
        with pytest.raises(IllegalMove):
            ledger.move(job, event, NOW)


def test_a_lease_is_lengthened_for_everything_its_worker_runs(ledger: Ledger) -> None:
    mine = running(ledger, "one", worker="w1")
    also_mine = running(ledger, "two", worker="w1")
    theirs = running(ledger, "three", worker="w2")

    ledger.renew("w1", at(500))

    assert ledger.job(mine.id).lease_until == at(500)
    assert ledger.job(also_mine.id).lease_until == at(500)
    assert ledger.job(theirs.id).lease_until == NOW + LEASE


def test_a_renewed_lease_does_not_fence_its_own_worker(ledger: Ledger) -> None:
    job = running(ledger)
    ledger.renew("w1", at(500))

    assert ledger.move(job, JobEvent.RETRY, at(1)).state is JobState.QUEUED


# ------------------------------------------------------------------ attempts that outlive their worker


def test_every_time_a_worker_takes_a_job_in_hand_is_a_claim_of_its_own(ledger: Ledger) -> None:
    job = running(ledger)
    adopted = ledger.adopt(job, at(60), worker="w2", lease_until=at(120))
    again = ledger.start(
        ledger.move(adopted, JobEvent.RETRY, at(61)), at(62), worker="w3", lease_until=at(99)
    )

    assert (job.attempt, job.claim) == (1, 1)
    assert (adopted.attempt, adopted.claim, adopted.worker) == (1, 2, "w2")
    assert (again.attempt, again.claim) == (2, 3)
    assert adopted.changed_at == job.changed_at
    assert event_names(ledger).count("job.adopted") == 1


def test_a_job_under_a_lease_is_nobody_elses(ledger: Ledger) -> None:
    job = running(ledger)
    with pytest.raises(LostRace):
        ledger.adopt(job, at(59), worker="w2", lease_until=at(120))

    ledger.renew("w1", at(100))
    with pytest.raises(LostRace):
        ledger.adopt(job, at(60), worker="w2", lease_until=at(120))


def test_only_one_adopts(ledger: Ledger) -> None:
    job = running(ledger)
    ledger.adopt(job, at(60), worker="w2", lease_until=at(120))

    with pytest.raises(LostRace):
        ledger.adopt(job, at(200), worker="w3", lease_until=at(260))


def test_a_queued_job_is_not_adopted(ledger: Ledger) -> None:
    job = queued(ledger)

    with pytest.raises(LostRace):
        ledger.adopt(job, at(60), worker="w2", lease_until=at(120))
    with pytest.raises(LostRace):
        ledger.park(job, at(60), until=at(70), reason="storage-unavailable")


@pytest.mark.parametrize("event", [JobEvent.ATTEST, JobEvent.RETRY, JobEvent.FAIL, JobEvent.CANCEL])
def test_a_worker_whose_job_was_adopted_moves_nothing_any_more(ledger: Ledger, event: JobEvent) -> None:
    job = running(ledger)
    adopted = ledger.adopt(job, at(60), worker="w2", lease_until=at(120))
    receipt = chain_of(order_named("order"), 1)[0]

    with pytest.raises(LostRace):
        ledger.move(job, event, at(61), receipt=receipt if event is JobEvent.ATTEST else None)
    with pytest.raises(LostRace):
        ledger.park(job, at(61), until=at(70), reason="storage-unavailable")
    with pytest.raises(LostRace):
        ledger.begin_step(job, "run.train", at(61))
    with pytest.raises(LostRace):
        ledger.end_step(job, "run.train", at(61), b"{}", log=("train", b"sealed"))
    ledger.renew("w1", at(1000))

    assert ledger.job(job.id) == adopted
    assert ledger.steps(job) == ()
    assert ledger.logs(job.order_id) == ()


def test_a_parked_job_is_nobodys_until_its_time(ledger: Ledger) -> None:
    parked = ledger.park(running(ledger), at(1), until=at(200), reason="storage-unavailable")

    assert (parked.state, parked.attempt, parked.worker) == (JobState.RUNNING, 1, None)
    assert parked.reason == "storage-unavailable"
    assert ledger.unrung(at(199), 10).orphans == ()
    assert ledger.unrung(at(200), 10).orphans == (parked,)
    with pytest.raises(LostRace):
        ledger.adopt(parked, at(199), worker="w2", lease_until=at(260))
    assert ledger.adopt(parked, at(200), worker="w2", lease_until=at(260)).reason is None


def test_who_parked_a_job_has_let_go_of_it(ledger: Ledger) -> None:
    job = running(ledger)
    ledger.park(job, at(1), until=at(200), reason="storage-unavailable")

    with pytest.raises(LostRace):
        ledger.move(job, JobEvent.RETRY, at(2))


def test_a_process_that_leaves_ends_the_leases_of_its_workers_alone(ledger: Ledger) -> None:
    mine = running(ledger, "one", worker="host-7-ab-1")
    also_mine = running(ledger, "two", worker="host-7-ab-2")
    theirs = running(ledger, "three", worker="host-7-abc-1")

    assert ledger.release("host-7-ab", at(5)) == 2
    assert ledger.release("host-7-ab", at(5)) == 0
    assert {job.id for job in ledger.unrung(at(5), 10).orphans} == {mine.id, also_mine.id}
    assert ledger.job(theirs.id).lease_until == NOW + LEASE


def test_a_step_is_there_before_its_effect_and_with_its_outcome_after(ledger: Ledger) -> None:
    job = running(ledger)
    begun = ledger.begin_step(job, "run.train", at(1))
    seen = ledger.steps(job)
    ledger.end_step(job, "run.train", at(9), b'{"cause":null}', log=("train", b"sealed"))
    ledger.end_step(job, "output", at(10), b"{}")
    run, output = ledger.steps(job)

    assert seen == (begun,)
    assert (begun.tries, begun.begun_at, begun.ended_at, begun.outcome) == (1, at(1), None, None)
    assert (run.name, run.begun_at, run.ended_at, run.outcome) == (
        "run.train",
        at(1),
        at(9),
        b'{"cause":null}',
    )
    assert (output.name, output.tries, output.outcome) == ("output", 1, b"{}")
    assert ledger.logs(job.order_id) == ((job.id, 1, "train", b"sealed"),)


def test_a_step_that_is_begun_again_is_counted_until_the_job_is_parked(ledger: Ledger) -> None:
    job = running(ledger)
    ledger.begin_step(job, "output", at(1))
    ledger.end_step(job, "output", at(2), b"{}")
    again = ledger.begin_step(job, "output", at(3))
    parked = ledger.park(job, at(4), until=at(5), reason="storage-unavailable")
    adopted = ledger.adopt(parked, at(5), worker="w2", lease_until=at(65))

    assert (again.tries, again.outcome) == (2, None)
    assert ledger.begin_step(adopted, "output", at(6)).tries == 1


def test_each_attempt_has_steps_of_its_own(ledger: Ledger) -> None:
    first = running(ledger)
    ledger.begin_step(first, "run.train", at(1))
    second = ledger.start(ledger.move(first, JobEvent.RETRY, at(2)), at(3), worker="w1", lease_until=at(63))

    assert ledger.steps(second) == ()
    assert [step.name for step in ledger.steps(first)] == ["run.train"]


# ------------------------------------------------------------------ what the host does


def test_a_new_ledger_lets_tasks_start(ledger: Ledger) -> None:
    assert ledger.control() == Control()
    assert ledger.control().may_start


@pytest.mark.parametrize("mode", [Mode.PAUSED, Mode.DRAINING, Mode.RESTORED])
def test_the_last_word_on_what_the_host_does_counts(ledger: Ledger, mode: Mode) -> None:
    said = Control(mode=mode, since=at(1), until=at(9), reason="a new disk", uid=1000)
    ledger.set_control(said, at(1))
    heard = ledger.control()
    ledger.set_control(Control(since=at(2)), at(2))

    assert heard == said
    assert not heard.may_start
    assert ledger.control() == Control(since=at(2))
    assert event_names(ledger) == [f"host.{mode}", "host.running"]


# ------------------------------------------------------------------ handing on at once


def test_a_received_job_goes_to_the_host_that_holds_its_dataset(ledger: Ledger) -> None:
    job = ledger.redirect(received(ledger), at(1), next_agent=PEER, delivery=handoff(PEER))

    assert (job.state, job.next_agent) == (JobState.RECEIVED, PEER)
    assert pending(ledger) == [f"{job.id}.handoff.1"]
    assert event_names(ledger)[-1] == "job.redirected"
    assert ledger.acknowledge(pending(ledger)[0], at(2)).state is JobState.DONE


def test_a_job_is_redirected_once(ledger: Ledger) -> None:
    seen = received(ledger)
    redirected = ledger.redirect(seen, NOW, next_agent=PEER, delivery=handoff(PEER))

    with pytest.raises(LostRace):
        ledger.redirect(seen, NOW, next_agent=OTHER_PEER, delivery=handoff(OTHER_PEER))
    with pytest.raises(LostRace):
        ledger.redirect(redirected, NOW, next_agent=OTHER_PEER, delivery=handoff(OTHER_PEER))

    assert len(ledger.deliveries()) == 1


def test_a_job_on_its_way_to_another_host_is_not_queued_here(ledger: Ledger) -> None:
    seen = received(ledger)
    redirected = ledger.redirect(seen, NOW, next_agent=PEER, delivery=handoff(PEER))

    with pytest.raises(LostRace):
        ledger.move(seen, JobEvent.ENQUEUE, NOW)
    with pytest.raises(IllegalMove):
        ledger.move(redirected, JobEvent.ENQUEUE, NOW)


def test_a_queued_job_is_not_redirected(ledger: Ledger) -> None:
    with pytest.raises(IllegalMove):
        ledger.redirect(queued(ledger), NOW, next_agent=PEER, delivery=handoff(PEER))


# ------------------------------------------------------------------ outbox


def test_a_delivery_is_leased_to_one_caller(ledger: Ledger) -> None:
    attested(ledger, report())
    (delivery,) = pending(ledger)

    leased = ledger.lease_delivery(delivery, at(2), at(62))

    assert leased is not None
    assert (leased.id, leased.lease_until, leased.body) == (delivery, at(62), report().body)
    assert ledger.lease_delivery(delivery, at(61), at(121)) is None
    assert ledger.lease_delivery(delivery, at(62), at(122)) is not None


def test_a_postponed_delivery_is_counted_and_rests(ledger: Ledger) -> None:
    attested(ledger, report())
    (delivery,) = pending(ledger)
    ledger.lease_delivery(delivery, at(2), at(62))

    ledger.postpone(delivery, at(30), "peer-unavailable: no answer")

    assert ledger.lease_delivery(delivery, at(29), at(89)) is None
    again = ledger.lease_delivery(delivery, at(30), at(90))
    assert again is not None
    assert (again.attempts, again.last_error) == (1, "peer-unavailable: no answer")


def test_a_job_is_done_with_its_last_delivery(ledger: Ledger) -> None:
    job = attested(ledger, report(b"1"), handoff(), report(b"2"))
    first, second, third = pending(ledger)

    assert ledger.acknowledge(second, at(2)).state is JobState.ATTESTED
    assert ledger.acknowledge(first, at(3)).state is JobState.ATTESTED
    assert ledger.acknowledge(third, at(4)).state is JobState.DONE
    assert ledger.job(job.id).changed_at == at(4)
    assert [d.acknowledged_at for d in ledger.deliveries()] == [at(3), at(2), at(4)]


def test_acknowledging_twice_is_fine(ledger: Ledger) -> None:
    attested(ledger, report())
    (delivery,) = pending(ledger)

    first = ledger.acknowledge(delivery, at(2))
    second = ledger.acknowledge(delivery, at(3))

    assert first == second
    assert ledger.deliveries()[0].acknowledged_at == at(2)
    assert event_names(ledger).count("job.done") == 1


def test_an_acknowledged_delivery_is_neither_postponed_nor_buried(ledger: Ledger) -> None:
    attested(ledger, report())
    (delivery,) = pending(ledger)
    ledger.acknowledge(delivery, at(2))

    ledger.postpone(delivery, at(30), "late news")
    ledger.bury(delivery, at(30), "late news", deliveries=[report()])

    (kept,) = ledger.deliveries()
    assert (kept.state, kept.attempts, kept.last_error) == (DeliveryState.ACKNOWLEDGED, 0, None)


def test_a_failed_job_goes_on_telling_and_stays_failed(ledger: Ledger) -> None:
    ledger.move(running(ledger), JobEvent.FAIL, at(1), reason="oom", deliveries=[report()])
    (delivery,) = pending(ledger)

    assert ledger.lease_delivery(delivery, at(2), at(62)) is not None
    assert ledger.acknowledge(delivery, at(3)).state is JobState.FAILED
    assert pending(ledger) == []


def test_reports_of_a_place_are_numbered_through_all_its_moves(ledger: Ledger) -> None:
    started = ledger.start(queued(ledger), NOW, worker="w1", lease_until=at(60), deliveries=[report()])
    ledger.move(started, JobEvent.RETRY, at(1), deliveries=[report(), report()])
    ledger.start(
        ledger.job(started.id), at(2), worker="w1", lease_until=at(60), deliveries=[report(), handoff()]
    )
    received(ledger, position=3)

    reports = [d.n for d in ledger.deliveries() if d.kind is DeliveryKind.REPORT]

    assert reports == [1, 2, 3, 4]
    assert ledger.deliveries()[-1].id == f"{started.id}.handoff.1"


def test_a_received_job_fails_when_its_hand_off_dies(ledger: Ledger) -> None:
    job = ledger.redirect(received(ledger), NOW, next_agent=PEER, delivery=handoff(PEER))
    (delivery,) = pending(ledger)

    ledger.bury(delivery, at(5), "policy-refused: not here", deliveries=[report()])

    assert ledger.job(job.id).state is JobState.FAILED
    assert ledger.job(job.id).reason == "policy-refused: not here"
    assert [(d.kind, d.state) for d in ledger.deliveries()] == [
        (DeliveryKind.HANDOFF, DeliveryState.DEAD),
        (DeliveryKind.REPORT, DeliveryState.PENDING),
    ]
    assert ledger.deliveries(state=DeliveryState.DEAD)[0].last_error == "policy-refused: not here"


def test_an_attested_job_did_its_task_well_whatever_happens_to_its_hand_off(ledger: Ledger) -> None:
    job = attested(ledger, handoff())
    (delivery,) = pending(ledger)

    ledger.bury(delivery, at(5), "refused", deliveries=[report()])

    assert ledger.job(job.id).state is JobState.ATTESTED
    assert ledger.acknowledge(pending(ledger)[0], at(6)).state is JobState.DONE


def test_a_dead_delivery_holds_no_job_open(ledger: Ledger) -> None:
    job = attested(ledger, report(), handoff())
    told, handed = pending(ledger)
    ledger.acknowledge(told, at(2))

    ledger.bury(handed, at(5), "refused")

    assert ledger.job(job.id).state is JobState.DONE


def test_a_refused_hand_off_may_go_to_another_host(ledger: Ledger) -> None:
    job = ledger.redirect(received(ledger), NOW, next_agent=PEER, delivery=handoff(PEER))

    ledger.bury(pending(ledger)[0], at(5), "dataset-not-here", deliveries=[handoff(OTHER_PEER)])

    moved = ledger.job(job.id)
    assert (moved.state, moved.next_agent) == (JobState.RECEIVED, OTHER_PEER)
    assert pending(ledger) == [f"{job.id}.handoff.2"]
    assert ledger.acknowledge(pending(ledger)[0], at(6)).state is JobState.DONE


def test_a_delivery_is_buried_once(ledger: Ledger) -> None:
    attested(ledger, handoff())
    (delivery,) = pending(ledger)
    ledger.bury(delivery, at(5), "refused", deliveries=[report()])

    ledger.bury(delivery, at(6), "refused again", deliveries=[report()])

    assert len(ledger.deliveries()) == 2


def test_a_dead_report_stops_no_running_job(ledger: Ledger) -> None:
    job = ledger.start(queued(ledger), NOW, worker="w1", lease_until=at(60), deliveries=[report()])

    ledger.bury(pending(ledger)[0], at(1), "refused")

    assert ledger.job(job.id) == job


def test_a_dead_delivery_that_arrived_after_all_is_acknowledged(ledger: Ledger) -> None:
    attested(ledger, handoff())
    (delivery,) = pending(ledger)
    ledger.bury(delivery, at(5), "expired")

    ledger.acknowledge(delivery, at(6))

    assert ledger.deliveries()[0].state is DeliveryState.ACKNOWLEDGED


# ------------------------------------------------------------------ logs of jobs


def test_the_log_of_a_run_is_kept_by_attempt_and_run(ledger: Ledger) -> None:
    first = running(ledger)
    ledger.keep_log(first, "train", b"one")
    second = ledger.start(ledger.move(first, JobEvent.RETRY, at(1)), at(2), worker="w1", lease_until=at(60))
    ledger.keep_log(second, "train", b"\x00\xfftwo")
    ledger.keep_log(first, "train", b"one again")
    ledger.keep_log(running(ledger, "other"), "train", b"not ours")

    assert ledger.logs(first.order_id) == (
        (first.id, 1, "train", b"one again"),
        (first.id, 2, "train", b"\x00\xfftwo"),
    )


# ------------------------------------------------------------------ the sweep


def test_the_sweep_finds_what_should_be_ringing(ledger: Ledger) -> None:
    new = received(ledger, "received")
    ready = queued(ledger, "queued")
    resting = ledger.move(running(ledger, "resting"), JobEvent.RETRY, NOW, not_before=at(30))
    held = ledger.move(received(ledger, "held"), JobEvent.HOLD, NOW)
    ledger.redirect(received(ledger, "redirected"), NOW, next_agent=PEER, delivery=handoff(PEER))
    busy = running(ledger, "running")

    early, later = ledger.unrung(at(29), 10), ledger.unrung(at(60), 10)

    assert waiting(ledger, at(29)) == [new.id, ready.id, held.id]
    assert early.orphans == ()
    assert early.deliveries == (DeliveryId(f"{job_id(order_named('redirected').order.id, 0)}.handoff.1"),)
    assert waiting(ledger, at(60)) == [new.id, ready.id, resting.id, held.id]
    assert later.orphans == (busy,)


def test_a_clock_that_was_set_back_ends_leases_and_rests_that_nobody_gave(ledger: Ledger) -> None:
    resting = ledger.move(running(ledger, "resting"), JobEvent.RETRY, NOW, not_before=at(1000))
    busy = running(ledger, "running")  # under a lease until at(60)
    lease, rest = timedelta(seconds=60), timedelta(seconds=300)

    in_order = ledger.correct_clock(at(700), lease=lease, rest=rest)
    corrected = ledger.correct_clock(at(-1), lease=lease, rest=rest)

    assert in_order == 0
    assert corrected == 2
    assert waiting(ledger, at(0)) == [resting.id]
    assert {job.id for job in ledger.unrung(at(0), 10).orphans} == {busy.id}


def test_a_parked_job_rests_longer_than_a_lease_and_no_clock_is_to_blame(ledger: Ledger) -> None:
    parked = ledger.park(running(ledger), NOW, until=at(300), reason="storage-unavailable")
    lease, rest = timedelta(seconds=60), timedelta(seconds=300)

    assert ledger.correct_clock(NOW, lease=lease, rest=rest) == 0
    assert ledger.correct_clock(at(-1), lease=lease, rest=rest) == 1
    assert [job.id for job in ledger.unrung(at(-1), 10).orphans] == [parked.id]


def test_the_sweep_leaves_leased_and_resting_deliveries_alone(ledger: Ledger) -> None:
    attested(ledger, report(b"1"), report(b"2"), report(b"3"), report(b"4"))
    leased, resting, dead, due = pending(ledger)
    ledger.lease_delivery(leased, at(2), at(62))
    ledger.postpone(resting, at(40), "no answer")
    ledger.bury(dead, at(2), "refused")

    assert ledger.unrung(at(39), 10).deliveries == (due,)
    assert ledger.unrung(at(62), 10).deliveries == (leased, due, resting)


def test_the_sweep_takes_the_oldest_up_to_its_limit(ledger: Ledger) -> None:
    jobs = [received(ledger, f"order {n}", now=at(n)) for n in range(5)]

    first = ledger.waiting(at(10), limit=3)
    assert [job.id for job in first.jobs] == [job.id for job in jobs[:3]]
    assert first.next is not None
    rest = ledger.waiting(at(10), after=first.next, limit=3)
    assert ([job.id for job in rest.jobs], rest.next) == ([job.id for job in jobs[3:]], None)


def test_the_images_of_orders_that_are_to_run_are_known(ledger: Ledger) -> None:
    assert (ledger.needed_images(), ledger.needed_images(is_held=True)) == (frozenset(), frozenset())
    images = set(order_named("one").order.images)
    one = ledger.move(received(ledger, "one"), JobEvent.HOLD, at(1))
    two = running(ledger, "two")

    assert ledger.needed_images() == images
    assert ledger.needed_images(is_held=True) == images

    one = ledger.move(one, JobEvent.APPROVE, at(2))
    assert ledger.needed_images(is_held=True) == frozenset()
    two = ledger.move(two, JobEvent.FAIL, at(3), reason="oom")
    assert ledger.needed_images() == images
    ledger.move(one, JobEvent.FAIL, at(4), reason="image-denied")
    assert ledger.needed_images() == frozenset()


def test_an_order_is_being_placed_for_as_long_as_was_said(ledger: Ledger) -> None:
    queued(ledger, "placed", now=at(10))
    ledger.redirect(received(ledger, "elsewhere", now=at(10)), at(10), next_agent=PEER, delivery=handoff())
    minute = timedelta(seconds=60)
    assert not ledger.is_placing(at(11), minute)

    received(ledger, "new", now=at(10))

    moments = {-51: False, -49: True, 11: True, 69: True, 71: False}
    assert {second: ledger.is_placing(at(second), minute) for second in moments} == moments


def test_what_is_to_be_sent_comes_in_pages_by_target(ledger: Ledger) -> None:
    for n in range(2):
        attested(ledger, report(b"1"), handoff(PEER), handoff(OTHER_PEER), name=f"order {n}")
    leased, *_ = pending(ledger)
    ledger.lease_delivery(leased, at(2), at(62))
    ledger.rest_target(PEER, 1, at(300))

    found, after = list[DeliveryId](), None
    while True:
        page = ledger.unsent(at(10), after=after, limit=1)
        found += page.deliveries
        after = page.next
        if after is None:
            break

    to_others = {each.id for each in ledger.deliveries() if each.target != PEER} - {leased}
    assert (set(found), len(found)) == (to_others, 3)


def test_a_ledger_can_prove_that_it_writes(ledger: Ledger) -> None:
    ledger.check()
    ledger.check()


# ------------------------------------------------------------------ rulings on images, and what archives hold

IMAGE, OTHER_IMAGE = digest_of(b"image"), digest_of(b"another image")


def ruling(verdict: Verdict, seconds: int = 0, image: Digest = IMAGE, **more: Any) -> Ruling:
    return Ruling(image=image, verdict=verdict, at=at(seconds), **more)


def test_nobody_ruled_on_an_image_at_first(ledger: Ledger) -> None:
    assert (ledger.ruling(IMAGE), ledger.verdict_on(IMAGE), ledger.rulings()) == (None, None, ())


def test_the_last_word_on_an_image_counts_and_all_are_kept(ledger: Ledger) -> None:
    approved = ruling(Verdict.APPROVED, 1, uid=1000, reason="read it")
    denied = ruling(Verdict.DENIED, 2)
    another = ruling(Verdict.APPROVED, 3, OTHER_IMAGE, uid=0)

    assert [ledger.rule(word) for word in (approved, denied, another)] == [True, True, True]

    assert ledger.ruling(IMAGE) == denied
    assert ledger.verdict_on(IMAGE) is Verdict.DENIED
    assert ledger.verdict_on(OTHER_IMAGE) is Verdict.APPROVED
    assert ledger.rulings() == (another, denied, approved)
    assert ledger.rulings(image=IMAGE) == (denied, approved)
    assert ledger.rulings(limit=1) == (another,)


def test_the_same_word_again_is_not_recorded_again(ledger: Ledger) -> None:
    ledger.rule(ruling(Verdict.APPROVED, 1, uid=1))

    assert not ledger.rule(ruling(Verdict.APPROVED, 2, uid=2))

    assert ledger.ruling(IMAGE) == ruling(Verdict.APPROVED, 1, uid=1)
    assert ledger.rule(ruling(Verdict.DENIED, 3))
    assert ledger.rule(ruling(Verdict.APPROVED, 4))
    assert event_names(ledger) == ["image.approved", "image.denied", "image.approved"]


def test_a_ruling_is_an_event_with_who_and_why(ledger: Ledger) -> None:
    ledger.rule(ruling(Verdict.DENIED, 1, uid=7, reason="opens sockets"))

    (event,) = ledger.events()

    assert (event.name, event.at) == ("image.denied", at(1))
    assert event.values == {"image": IMAGE, "uid": 7, "reason": "opens sockets"}


ABOUT = ImageAbout(
    image_id=digest_of(b"config"),
    platform="linux/amd64",
    entrypoint=("/bin/run", "\x1b[2J"),
    env=(("PATH", "/bin"),),
    labels=(("by", "a stranger"),),
    size_bytes=1 << 40,
    layers=(ImageLayer(digest=digest_of(b"layer"), size_bytes=10, entries=3),),
    entries=3,
    set_ids=1,
    is_cut=False,
)


def entry(number: int) -> ImageEntry:
    return ImageEntry(
        layer=0, path=f"bin/{number}", kind="file", size_bytes=number, mode=0o4755, link="\u202e"
    )


def test_what_was_read_of_an_archive_comes_back_page_by_page(ledger: Ledger) -> None:
    described = ImageDescription(image=IMAGE, read_at=NOW, archive_bytes=5, about=ABOUT)
    listing = [entry(number) for number in range(PAGE_ENTRIES + 1)]

    ledger.describe(described, listing)

    assert ledger.description(IMAGE) == described
    assert ledger.listing(IMAGE, 0) == tuple(listing[:PAGE_ENTRIES])
    assert ledger.listing(IMAGE, 1) == tuple(listing[PAGE_ENTRIES:])
    assert ledger.listing(IMAGE, 2) == ledger.listing(OTHER_IMAGE, 0) == ()
    assert ledger.description(OTHER_IMAGE) is None


def test_the_first_description_of_an_archive_stays(ledger: Ledger) -> None:
    refused = ImageDescription(image=IMAGE, read_at=NOW, archive_bytes=5, problem="a device")
    ledger.describe(refused)

    ledger.describe(ImageDescription(image=IMAGE, read_at=at(9), archive_bytes=5, about=ABOUT), [entry(1)])

    assert ledger.description(IMAGE) == refused
    assert ledger.listing(IMAGE, 0) == ()


def test_descriptions_are_dropped_but_those_to_keep(ledger: Ledger) -> None:
    for image in (IMAGE, OTHER_IMAGE):
        ledger.describe(ImageDescription(image=image, read_at=NOW, archive_bytes=5, about=ABOUT), [entry(1)])

    assert ledger.forget_descriptions({IMAGE}) == 1

    assert ledger.description(IMAGE) is not None
    assert ledger.description(OTHER_IMAGE) is None
    assert ledger.listing(OTHER_IMAGE, 0) == ()
    assert ledger.forget_descriptions({IMAGE}) == 0


def test_held_jobs_are_rung_apart_from_those_that_wait_for_a_worker(ledger: Ledger) -> None:
    held = ledger.move(received(ledger, "held"), JobEvent.HOLD, NOW)
    other = received(ledger, "waiting")

    found = ledger.waiting(at(1), limit=10).jobs

    assert {(job.id, job.state) for job in found} == {
        (held.id, JobState.HELD),
        (other.id, JobState.RECEIVED),
    }
    again = ledger.move(held, JobEvent.APPROVE, at(2))
    assert {job.id: job.state for job in ledger.waiting(at(3), limit=10).jobs}[again.id] is JobState.RECEIVED


# ------------------------------------------------------------------ put back from a backup


def test_a_ledger_that_was_put_back_has_nothing_in_hand_and_starts_nothing(ledger: Ledger) -> None:
    ran, waits, done = (
        running(ledger, "runs"),
        queued(ledger, "waits"),
        attested(ledger, report(), name="done"),
    )
    (delivery,) = pending(ledger)
    ledger.lease_delivery(delivery, at(2), at(600))

    restore = ledger.mark_restored(at(100), backup_made_at=at(50), skew=timedelta(seconds=30), uid=7)

    assert (restore.at, restore.backup_made_at, restore.signed_after) == (at(100), at(50), at(130))
    assert (restore.generation, restore.uid) == (1, 7)
    control = ledger.control()
    assert (control.mode, control.since, control.uid, control.may_start) == (Mode.RESTORED, at(100), 7, False)
    assert [orphan.id for orphan in ledger.unrung(at(100), 10).orphans] == [ran.id]
    assert ledger.lease_delivery(delivery, at(100), at(600)) is not None
    for seen in (ran, waits, done):
        now = ledger.job(seen.id)
        assert (now.state, now.attempt, now.claim - seen.claim > 1000) == (seen.state, seen.attempt, True)
    with pytest.raises(LostRace):
        ledger.move(ran, JobEvent.RETRY, at(101))
    assert [name for name in event_names(ledger) if "restored" in name] == [
        "ledger.restored",
        "host.restored",
    ]


def test_claims_and_numbers_of_reports_go_on_beyond_those_of_every_ledger_before(ledger: Ledger) -> None:
    job = running(ledger)
    seen = [(job.claim, 0)]

    for generation in (0, 0, 7):
        made = ledger.mark_restored(at(1), backup_made_at=NOW, skew=LEASE, generation=generation)
        now = ledger.job(job.id)
        job = ledger.adopt(now, at(1), worker="w", lease_until=at(1))
        job = ledger.move(job, JobEvent.RETRY, at(2), deliveries=[report()])
        ledger.set_control(Control(), at(3))
        job = ledger.start(job, at(3), worker="w", lease_until=at(3))
        seen.append((now.claim, max(delivery.n for delivery in ledger.deliveries())))

    assert [made.generation for made in ledger.restores()] == [8, 2, 1]
    assert ledger.restores()[0] == made
    assert all(later[0] > before[0] + 1000 for before, later in pairwise(seen))
    assert [n for _, n in seen] == [0, 1001, 2001, 8001]
    assert len({delivery.id for delivery in ledger.deliveries()}) == 3


def test_the_clock_of_the_backup_counts_when_it_was_ahead(ledger: Ledger) -> None:
    restore = ledger.mark_restored(at(100), backup_made_at=at(120), skew=timedelta(seconds=30))

    assert restore.signed_after == at(150)


def test_a_ledger_that_was_never_put_back_says_so(ledger: Ledger) -> None:
    received(ledger)

    assert ledger.restores() == ()
