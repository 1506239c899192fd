"""An order or a hand-off arrives: it is recorded and rung, or refused and leaves no trace. The same again is the same."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from agent.domain.chain import TaskKind
from agent.domain.ids import job_id
from agent.domain.jobs import JobState
from agent.domain.orders import LEARNUPLET_TYPE, PREDUPLET_TYPE
from agent.domain.receipts import SignedReceipt
from agent.errors import (
    AgentError,
    BadSignature,
    DatasetMissing,
    DatasetNotHere,
    HandoffConflict,
    HandoffSender,
    KeyNotValid,
    LedgerFull,
    NoSpace,
    NotYours,
    OrderConflict,
    OrderExpired,
    OrderNotYetValid,
    PolicyRefused,
    QueueFull,
    StorageUnavailable,
    UnknownKey,
    UnknownPayloadType,
)
from agent.pipeline.intake import take_handoff, take_order
from agent.ports.broker import Queue
from agent.ports.ledger import Arrival
from agent.trust.handoff import build_handoff
from tests.builders import DAY, HOUR, NOW, changed, dataset, key_of, preduplet, tamper
from tests.fakes.broker import Ring
from tests.pipeline.world import POLICY, Hospital, Tapped, World, once


def nothing_happened(hospital: Hospital) -> bool:
    return not (hospital.jobs() or hospital.deliveries() or hospital.ledger.events() or hospital.broker.rings)


# ------------------------------------------------------------------ orders


def test_an_order_is_recorded_and_rung(world: World) -> None:
    order = world.order()

    admission = world.post(order, world.a)

    job = admission.job
    assert not admission.is_repeat
    assert (job.state, job.kind, job.position, job.attempt, job.max_attempts) == (
        JobState.RECEIVED,
        TaskKind.LEARN,
        0,
        0,
        3,
    )
    assert world.a.ledger.job(job.id) == job
    assert world.a.ledger.order(order.order.id).envelope == order.envelope
    assert world.a.broker.rings == [Ring(Queue.LEARNUPLETS, job.id, 0.0)]


def test_a_preduplet_rings_the_queue_of_preduplets(world: World) -> None:
    order = world.preduplet("a1", model=b"w")

    job = world.post(order, world.a).job

    assert job.kind is TaskKind.PREDICT
    assert world.a.broker.rings == [Ring(Queue.PREDUPLETS, job.id, 0.0)]


def test_an_order_that_only_tests_is_placed_with_the_learnuplets(world: World) -> None:
    job = world.post(world.order(train=(), test=("a1",)), world.a).job

    assert job.kind is TaskKind.TEST
    assert world.a.broker.rings == [Ring(Queue.LEARNUPLETS, job.id, 0.0)]


def test_the_order_says_how_many_attempts_there_are(world: World) -> None:
    assert world.post(world.order(max_attempts=7), world.a).job.max_attempts == 7


def test_the_same_order_again_is_the_same_resource(world: World) -> None:
    order = world.order()
    first = world.post(order, world.a)
    world.work()

    again = world.post(order, world.a)

    assert again.is_repeat
    assert again.job == world.a.job(order, 0)
    assert again.job.id == first.job.id
    assert world.a.runs() == ["train", "train"]  # a1 and a2, once each
    world.work()
    assert world.a.runs() == ["train", "train"]


def test_a_repeat_is_answered_though_the_order_is_over_the_disk_low_and_the_queue_full(world: World) -> None:
    order = world.order()
    world.post(order, world.a)
    world.pass_time(2 * DAY.total_seconds())
    world.a.rules(low_disk_bytes=1 << 60, queue_limit=0)

    assert world.post(order, world.a).is_repeat


def test_an_order_that_a_peer_handed_over_first_is_a_repeat_of_that(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=())
    handed = world.hand_over(order, 1, to=world.b)

    again = world.post(order, world.b)

    assert again.is_repeat
    assert again.job.id == handed.job.id


def test_a_repeat_finds_its_place_among_more_jobs_than_a_page_holds(world: World) -> None:
    names = [f"a{number}" for number in range(1, 110)]
    order = world.order(train=names, test=())
    receipts: list[SignedReceipt] = []
    first = world.post(order, world.a).job
    for _ in names[1:]:
        receipts.append(world.people.receipt(order, receipts, key=world.a.key))
        arrival = Arrival(order=order, receipts=tuple(receipts), kind=TaskKind.LEARN, sender=world.a.keyid)
        world.a.ledger.admit(arrival, NOW, max_attempts=3, queue_limit=1000)

    assert world.post(order, world.a).job == first


def test_the_same_id_with_other_content_is_refused(world: World) -> None:
    world.post(world.order(), world.a)
    rung = list(world.a.broker.rings)

    with pytest.raises(OrderConflict):
        world.post(world.order(rank=1), world.a)

    assert len(world.a.jobs()) == 1
    assert world.a.broker.rings == rung


Refused = Callable[[World], object]


def not_the_senders_own(world: World) -> object:
    order = world.order()
    return take_order(order.envelope, LEARNUPLET_TYPE, world.o2, world.a.host)


def by_another_route(world: World) -> object:
    order = world.order()
    return take_order(order.envelope, PREDUPLET_TYPE, order.signer, world.a.host)


def altered(world: World) -> object:
    order = world.order()
    envelope = tamper(order.envelope, max_attempts=100)
    return take_order(envelope, LEARNUPLET_TYPE, order.signer, world.a.host)


def of_a_stranger(world: World) -> object:
    return world.post(world.order(key=key_of("stranger")), world.a)


def of_a_revoked_orchestrator(world: World) -> object:
    world.a.trusts(changed(world.people.roster, world.o1, revoked_at=NOW))
    return world.post(world.order(), world.a)


def expired(world: World) -> object:
    return world.post(world.order(not_before=NOW - 2 * DAY, expires=NOW - DAY), world.a)


def too_early(world: World) -> object:
    return world.post(world.order(not_before=NOW + HOUR), world.a)


def without_a_policy(world: World) -> object:
    world.a.allows("")
    return world.post(world.order(), world.a)


def of_a_kind_the_policy_lacks(world: World) -> object:
    world.a.allows(POLICY.replace('"learn", ', ""))
    return world.post(world.order(), world.a)


def while_the_disk_is_low(world: World) -> object:
    world.a.rules(low_disk_bytes=1 << 60)
    return world.post(world.order(), world.a)


def while_the_ledgers_disk_is_low(world: World) -> object:
    world.a.rules(
        low_disk_bytes=1 << 60, spool=Path("/proc"), records=(world.a.spool,)
    )  # /proc has no size of its own
    return world.post(world.order(), world.a)


def while_the_ledger_takes_no_write(world: World) -> object:
    def refuse() -> None:
        raise LedgerFull("the test filled its disk")

    world.a.ports(ledger=Tapped(world.a.ledger, before=once("admit", refuse)))
    return world.post(world.order(), world.a)


def while_the_queue_is_full(world: World) -> object:
    world.a.rules(queue_limit=0)
    return world.post(world.order(), world.a)


REFUSED_ORDERS: dict[Refused, type[AgentError]] = {
    not_the_senders_own: NotYours,
    by_another_route: UnknownPayloadType,
    altered: BadSignature,
    of_a_stranger: UnknownKey,
    of_a_revoked_orchestrator: KeyNotValid,
    expired: OrderExpired,
    too_early: OrderNotYetValid,
    without_a_policy: PolicyRefused,
    of_a_kind_the_policy_lacks: PolicyRefused,
    while_the_disk_is_low: NoSpace,
    while_the_ledgers_disk_is_low: NoSpace,
    while_the_ledger_takes_no_write: LedgerFull,
    while_the_queue_is_full: QueueFull,
}


@pytest.mark.parametrize(
    ("sending", "error"), REFUSED_ORDERS.items(), ids=[sending.__name__ for sending in REFUSED_ORDERS]
)
def test_a_refused_order_leaves_no_trace(sending: Refused, error: type[AgentError], world: World) -> None:
    with pytest.raises(error):
        sending(world)

    assert nothing_happened(world.a)


def test_a_host_accepts_again_once_its_queue_has_room(world: World) -> None:
    world.a.rules(queue_limit=1)
    world.post(world.order(), world.a)
    other = world.order(id="11111111-2222-3333-4444-555555555555")
    with pytest.raises(QueueFull):
        world.post(other, world.a)

    world.work()

    assert not world.post(other, world.a).is_repeat


# ------------------------------------------------------------------ hand-offs


def test_a_hand_off_is_recorded_with_its_receipts_and_rung(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=())

    job = world.hand_over(order, 1, to=world.b).job

    assert (job.id, job.state, job.kind) == (job_id(order.order.id, 1), JobState.QUEUED, TaskKind.LEARN)
    assert [r.receipt.position for r in world.b.ledger.receipts(order.digest)] == [0]
    assert world.b.broker.rings == [Ring(Queue.LEARN_TASKS, job.id, 0.0)]


def test_a_hand_off_before_the_first_task_is_placed_apart_for_it_may_be_passed_on(world: World) -> None:
    order = world.order(train=("b1",), test=())

    job = world.hand_over(order, 0, to=world.b, sender=world.a).job

    assert job.state is JobState.RECEIVED
    assert world.b.broker.rings == [Ring(Queue.LEARNUPLETS, job.id, 0.0)]


def test_a_hand_off_for_a_test_task_is_recorded_as_one(world: World) -> None:
    order = world.order(train=("a1",), test=("c2",))

    assert world.hand_over(order, 1, to=world.c).job.kind is TaskKind.TEST


def test_the_same_hand_off_again_is_the_same_job_whatever_storage_and_the_clock_say_now(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=())
    first = world.hand_over(order, 1, to=world.b)
    world.storages.down.add(world.b.storage)
    world.pass_time(2 * DAY.total_seconds())
    world.b.rules(low_disk_bytes=1 << 60, queue_limit=0)

    again = world.hand_over(order, 1, to=world.b)

    assert again.is_repeat
    assert again.job == first.job


def test_a_hand_off_at_another_place_of_a_known_order_is_a_new_job(world: World) -> None:
    order = world.order(train=("a1", "b1", "a2"), test=())
    world.post(order, world.a)

    later = world.hand_over(order, 2, to=world.a)

    assert not later.is_repeat
    assert later.job.position == 2
    assert len(world.a.jobs()) == 2


def test_another_receipt_for_a_place_that_was_taken_is_refused(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=())
    world.hand_over(order, 1, to=world.b)
    other = world.people.receipt(order, [], attempt=2)

    with pytest.raises(HandoffConflict):
        take_handoff(build_handoff(order, [other]), world.a.keyid, world.b.host)

    assert len(world.b.jobs()) == 1
    assert len(world.b.ledger.receipts(order.digest)) == 1


def from_another_than_the_last_agent(world: World) -> object:
    return world.hand_over(world.order(), 1, to=world.b, sender=world.c)


def for_a_dataset_that_lies_elsewhere(world: World) -> object:
    return world.hand_over(world.order(), 1, to=world.c)


def while_storage_is_down(world: World) -> object:
    world.storages.down.add(world.b.storage)
    return world.hand_over(world.order(), 1, to=world.b)


def for_a_dataset_that_storage_does_not_know(world: World) -> object:
    del world.storages.datasets[dataset("b1")]
    return world.hand_over(world.order(), 1, to=world.b)


def handed_over_without_a_policy(world: World) -> object:
    world.b.allows("")
    return world.hand_over(world.order(), 1, to=world.b)


def handed_over_too_late(world: World) -> object:
    world.pass_time(DAY.total_seconds() + 31)
    return world.hand_over(world.order(), 1, to=world.b)


def handed_over_to_a_full_disk(world: World) -> object:
    world.b.rules(low_disk_bytes=1 << 60)
    return world.hand_over(world.order(), 1, to=world.b)


def handed_over_to_a_workspace_that_is_too_small(world: World) -> object:
    world.b.allows(POLICY.replace("8388608", str(1 << 53)))
    return world.hand_over(world.order(), 1, to=world.b)


REFUSED_HANDOFFS: dict[Refused, type[AgentError]] = {
    from_another_than_the_last_agent: HandoffSender,
    for_a_dataset_that_lies_elsewhere: DatasetNotHere,
    while_storage_is_down: StorageUnavailable,
    for_a_dataset_that_storage_does_not_know: DatasetMissing,
    handed_over_without_a_policy: PolicyRefused,
    handed_over_too_late: OrderExpired,
    handed_over_to_a_full_disk: NoSpace,
    handed_over_to_a_workspace_that_is_too_small: NoSpace,
}


@pytest.mark.parametrize(
    ("sending", "error"), REFUSED_HANDOFFS.items(), ids=[sending.__name__ for sending in REFUSED_HANDOFFS]
)
def test_a_refused_hand_off_leaves_no_trace(sending: Refused, error: type[AgentError], world: World) -> None:
    with pytest.raises(error):
        sending(world)

    assert all(nothing_happened(hospital) for hospital in world)


def test_a_hand_off_within_the_skew_after_the_end_is_still_taken(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=())
    world.clock.moment = order.order.expires + timedelta(seconds=29)

    assert not world.hand_over(order, 1, to=world.b).is_repeat


def test_a_preduplet_is_handed_over_too(world: World) -> None:
    order = world.people.order(preduplet(data=("a1", "b1")))

    assert world.hand_over(order, 1, to=world.b).job.kind is TaskKind.PREDICT
