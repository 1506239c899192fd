"""An order is cancelled: who may, what ends, how it follows the chain, and every race that it wins or loses."""

import threading
from dataclasses import replace as with_changes
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from agent.devkit.waiting import wait_for
from agent.domain.cancellations import (
    BY_OPERATOR,
    CANCELLED,
    KEPT_WITHOUT_ORDER,
    MOST_WITHOUT_ORDER,
    Cancellation,
)
from agent.domain.control import Control, Mode
from agent.domain.ids import OrderId, wire_time
from agent.domain.jobs import JobState
from agent.domain.orders import SignedOrder
from agent.domain.reports import ReportState
from agent.errors import (
    AgentError,
    BadEnvelope,
    BadSignature,
    CancellationNotYetValid,
    KeyNotValid,
    LedgerUnavailable,
    LostRace,
    NotYours,
    QueueFull,
    UnknownPayloadType,
    WrongRole,
)
from agent.pipeline import cancel as module
from agent.pipeline.advance import advance
from agent.pipeline.cancel import cancel_here, remove_guests, take_cancellation
from agent.pipeline.deliver import deliver
from agent.pipeline.host import Host
from agent.ports.broker import Queue
from agent.ports.ledger import DeliveryKind, DeliveryState
from agent.trust.signed import sign_cancellation
from tests.builders import DAY, SKEW, changed, digest_named, key_of, policy_text, tamper, uuid_of
from tests.fakes.runtime import Guest
from tests.pipeline.world import SMALL, Hospital, Tapped, World, append_what_it_sees, once

CHAIN: dict[str, Any] = {"train": ("a1", "b1", "c1"), "test": ()}
HOLDS = policy_text(orchestrators=[key_of("o1").keyid], images=[], rest=f"hold_unknown = true\n{SMALL}")


def cancelled_in_the_run(world: World, order: SignedOrder, at: Hospital) -> None:
    """From now on the order is cancelled at that hospital while its algorithm runs there, and then the bells are answered."""

    def algorithm(guest: Guest) -> None:
        world.algo = append_what_it_sees
        world.cancel(order, at)
        append_what_it_sees(guest)

    world.algo = algorithm


def waits_at_a(world: World, state: JobState) -> SignedOrder:
    """An order whose first job stands so at a, and nobody was told anything."""
    order = world.order(**CHAIN)
    if state is JobState.HELD:
        world.a.allows(HOLDS)
    world.post(order, world.a)
    if state is not JobState.RECEIVED:
        world.a.work(Queue.LEARNUPLETS)
    assert world.a.job(order, 0).state is state
    return order


# ------------------------------------------------------------------ what ends


@pytest.mark.parametrize("state", [JobState.RECEIVED, JobState.HELD, JobState.QUEUED])
def test_an_order_that_waits_ends_and_its_orchestrator_is_told(world: World, state: JobState) -> None:
    order = waits_at_a(world, state)

    taken = world.cancel(order, world.a)
    world.settle()

    assert not taken.is_repeat
    assert world.a.job(order, 0).state is JobState.CANCELLED
    assert world.a.runs() == []
    (told,) = world.told(order, ReportState.CANCELLED)
    assert (told.position, told.reason, told.receipt) == (0, CANCELLED, None)
    assert "order.cancelled" in world.a.events()


def test_a_task_that_runs_leaves_nothing_and_its_chain_ends(world: World) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)
    cancelled_in_the_run(world, order, world.a)

    world.settle()

    assert world.a.job(order, 0).state is JobState.CANCELLED
    assert world.story(order) == [(0, "started"), (0, "cancelled")]
    assert world.a.leftovers() == []
    assert world.a.ledger.receipts(order.digest) == ()
    assert world.b.jobs() == ()
    assert "attempt.failed" not in world.a.events()


def test_the_containers_of_a_cancelled_job_are_killed_by_a_bell_of_their_own(world: World) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)
    world.algo = lambda guest: guest.sleep(60)
    world.a.work(Queue.LEARNUPLETS)
    working = threading.Thread(target=world.a.work, args=(Queue.LEARN_TASKS,))
    working.start()
    wait_for(
        lambda: any(left.is_running for left in world.a.runtime.leftovers()), "a container", timeout_s=30
    )

    world.cancel(order, world.a)
    world.a.work(Queue.CANCELLATIONS)  # as another thread of the worker does
    killed = world.a.runtime.leftovers()
    working.join(30)

    assert killed == ()
    assert not working.is_alive()
    assert world.a.leftovers() == []
    assert world.a.job(order, 0).state is JobState.CANCELLED


def test_a_bell_for_a_job_that_is_not_cancelled_kills_nothing(world: World) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)
    may_end = threading.Event()

    def algorithm(guest: Guest) -> None:
        may_end.wait(30)
        append_what_it_sees(guest)

    world.algo = algorithm
    world.a.work(Queue.LEARNUPLETS)
    working = threading.Thread(target=world.a.work, args=(Queue.LEARN_TASKS,))
    working.start()
    wait_for(
        lambda: any(left.is_running for left in world.a.runtime.leftovers()), "a container", timeout_s=30
    )

    threading.Timer(0.2, may_end.set).start()  # a removal waits for the guest
    remove_guests(world.a.job(order, 0).id, world.a.host)
    working.join(30)

    assert world.a.job(order, 0).state is JobState.ATTESTED


def test_what_waits_for_storage_is_given_up_and_gone_at_once(world: World) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)

    def cancelled_and_away() -> None:
        world.cancel(order, world.a)
        world.storages.down.add(world.a.storage)

    storage = world.a.host.ports.storage
    world.a.ports(storage=Tapped(storage, before=once("put_blob", cancelled_and_away)))
    world.a.work(Queue.LEARNUPLETS, Queue.LEARN_TASKS)

    assert world.a.job(order, 0).state is JobState.CANCELLED
    assert world.a.leftovers() == []
    assert "attempt.failed" not in world.a.events()


def test_an_attempt_that_was_put_off_ends_and_the_sweep_removes_what_it_kept(world: World) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)
    storage = world.a.host.ports.storage
    tap = once("put_blob", lambda: world.storages.down.add(world.a.storage))
    world.a.ports(storage=Tapped(storage, before=tap))
    world.a.work(Queue.LEARNUPLETS, Queue.LEARN_TASKS)
    kept = world.a.leftovers()

    world.cancel(order, world.a)
    world.a.sweep()
    world.storages.down.clear()
    world.settle()

    assert kept != []
    assert world.a.job(order, 0).state is JobState.CANCELLED
    assert world.a.leftovers() == []
    assert world.a.ledger.receipts(order.digest) == ()


def test_the_bell_rings_again_while_the_attempt_may_be_about_to_start_a_container(world: World) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)
    cancelled_in_the_run(world, order, world.a)
    world.a.work(Queue.LEARNUPLETS, Queue.LEARN_TASKS)
    job = world.a.job(order, 0)
    folder = world.a.workspaces / f"{job.id}.{job.attempt}"
    folder.mkdir()

    remove_guests(job.id, world.a.host)
    again = world.a.rung(Queue.CANCELLATIONS)[-1]
    world.pass_time(module.LOOKED_AFTER.total_seconds())
    rung = len(world.a.rung(Queue.CANCELLATIONS))
    remove_guests(job.id, world.a.host)

    assert again.delay_s == module.LOOK_AGAIN_S
    assert len(world.a.rung(Queue.CANCELLATIONS)) == rung


def test_a_container_whose_worker_died_is_not_adopted_but_removed(world: World) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)

    spec = []

    def killed(name: str) -> None:
        if name == "run":
            spec.append(world.a.runtime.specs[-1])
            raise KeyboardInterrupt

    world.a.ports(runtime=Tapped(world.a.runtime, after=killed))
    with pytest.raises(KeyboardInterrupt):
        world.a.work(Queue.LEARNUPLETS, Queue.LEARN_TASKS)
    world.a.ports(runtime=world.a.runtime)
    world.a.runtime.leave_behind(spec[0])
    assert world.a.job(order, 0).state is JobState.RUNNING

    world.cancel(order, world.a)
    world.a.forget_bells()
    world.pass_time(1)
    world.a.sweep()

    assert world.a.job(order, 0).state is JobState.CANCELLED
    assert world.a.leftovers() == []


def test_a_paused_host_cancels_all_the_same(world: World) -> None:
    order = waits_at_a(world, JobState.QUEUED)
    world.a.ledger.set_control(Control(mode=Mode.PAUSED), world.clock())

    world.cancel(order, world.a)
    world.settle()

    assert world.a.job(order, 0).state is JobState.CANCELLED


# ------------------------------------------------------------------ along the chain


def test_it_follows_the_chain_to_where_the_order_went(world: World) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)

    def algorithm(guest: Guest) -> None:
        if world.b.runtime.specs:
            world.algo = append_what_it_sees
            world.cancel(order, world.a)  # the orchestrator asks who had it first
            world.a.work()
        append_what_it_sees(guest)

    world.algo = algorithm
    world.settle()

    assert world.peers.cancelled == [(world.b.keyid, world.a.keyid)]
    assert world.a.job(order, 0).state is JobState.DONE
    assert world.b.job(order, 1).state is JobState.CANCELLED
    assert world.c.jobs() == ()
    assert world.b.leftovers() == []
    assert [(r.position, r.reason) for r in world.told(order, ReportState.CANCELLED)] == [(1, CANCELLED)]


def test_a_hand_off_that_was_not_sent_is_withdrawn_and_the_cancellation_goes_after_it(world: World) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS, Queue.LEARN_TASKS)
    assert world.a.job(order, 0).state is JobState.ATTESTED

    world.cancel(order, world.a)
    world.settle()

    assert world.a.delivery(DeliveryKind.HANDOFF).state is DeliveryState.WITHDRAWN
    assert world.a.delivery(DeliveryKind.CANCELLATION).state is DeliveryState.ACKNOWLEDGED
    assert world.a.job(order, 0).state is JobState.DONE
    assert world.b.jobs() == ()
    assert [c.source for c in world.b.ledger.cancellations(order.digest)] == [order.signer]
    assert world.story(order) == [(0, "started"), (0, "done"), (0, "cancelled")]


def test_a_hand_off_in_flight_when_it_is_withdrawn_ends_where_it_arrives(world: World) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS, Queue.LEARN_TASKS)
    peers = world.a.host.ports.peers
    tap = once("hand_off", lambda: world.cancel(order, world.a))
    world.a.ports(peers=Tapped(peers, before=tap))

    deliver(world.a.delivery(DeliveryKind.HANDOFF).id, world.a.host)
    world.settle()

    assert (
        world.a.delivery(DeliveryKind.HANDOFF).state is DeliveryState.ACKNOWLEDGED
    )  # that it arrived is a fact
    assert world.b.job(order, 1).state is JobState.CANCELLED
    assert world.b.runs() == []
    assert world.c.jobs() == ()
    assert {r.position for r in world.told(order, ReportState.CANCELLED)} == {0, 1}


def test_a_cancellation_after_the_peer_has_it_and_before_we_know_goes_after_the_hand_off(
    world: World,
) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS, Queue.LEARN_TASKS)
    peers = world.a.host.ports.peers
    tap = once("hand_off", lambda: world.cancel(order, world.a))
    world.a.ports(peers=Tapped(peers, after=tap))

    deliver(world.a.delivery(DeliveryKind.HANDOFF).id, world.a.host)
    world.settle()

    assert world.b.job(order, 1).state is JobState.CANCELLED
    assert world.a.job(order, 0).state is JobState.DONE
    assert world.c.jobs() == ()


def test_an_order_placed_with_a_peer_is_withdrawn_or_followed(world: World) -> None:
    order = world.order(train=("b1",), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    assert world.a.job(order, 0).next_agent == world.b.keyid

    world.cancel(order, world.a)
    world.settle()

    assert world.a.job(order, 0).state is JobState.CANCELLED
    assert world.a.delivery(DeliveryKind.HANDOFF).state is DeliveryState.WITHDRAWN
    assert world.peers.cancelled == [(world.b.keyid, world.a.keyid)]
    assert world.b.jobs() == ()


def test_an_order_that_comes_back_is_forwarded_from_its_last_place_alone(world: World) -> None:
    order = world.order(train=("a1", "b1", "a2", "c1"), test=())
    world.post(order, world.a)
    world.settle()

    world.cancel(order, world.a)
    world.settle()

    assert world.peers.cancelled == [(world.c.keyid, world.a.keyid)]


def test_a_peer_that_is_away_is_told_until_the_order_ends(world: World) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)
    world.a.work()
    world.peers.down.add(world.b.keyid)

    world.cancel(order, world.a)
    world.a.work()
    tried = world.a.delivery(DeliveryKind.CANCELLATION)
    world.pass_time((DAY + SKEW).total_seconds() + 1)
    deliver(tried.id, world.a.host)

    assert (tried.state, tried.attempts) == (DeliveryState.PENDING, 1)
    assert tried.expires_at == order.order.expires
    assert world.a.delivery(DeliveryKind.CANCELLATION).state is DeliveryState.DEAD
    assert world.told(order, ReportState.HANDOFF_EXPIRED) == []


def test_a_chain_that_is_done_stays_done(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    world.settle()

    world.cancel(order, world.a)
    world.settle()

    assert world.a.job(order, 0).state is JobState.DONE
    assert world.has_result(order)
    assert world.told(order, ReportState.CANCELLED) == []
    assert world.peers.cancelled == []


def test_the_next_task_on_the_same_host_ends_with_it(world: World) -> None:
    order = world.order(train=("a1", "a2", "b1"), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    advance(world.a.job(order, 0).id, world.a.host, "worker")
    assert world.a.job(order, 1).state is JobState.QUEUED

    world.cancel(order, world.a)
    world.settle()

    assert world.a.job(order, 0).state is JobState.DONE
    assert world.a.job(order, 1).state is JobState.CANCELLED
    assert world.b.jobs() == ()


# ------------------------------------------------------------------ races in the ledger


def test_a_receipt_that_was_recorded_first_wins_and_the_cancellation_goes_after_the_hand_off(
    world: World,
) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)
    ledger = world.a.ledger
    world.a.work(Queue.LEARNUPLETS)

    def attested_meanwhile(name: str) -> None:
        if name == "cancel" and world.a.job(order, 0).state is JobState.QUEUED:
            advance(world.a.job(order, 0).id, untapped(world.a), "worker")

    world.a.ports(ledger=Tapped(ledger, before=attested_meanwhile))

    world.cancel(order, world.a)
    world.settle()

    assert world.a.job(order, 0).state is JobState.DONE
    assert len(ledger.receipts(order.digest)) == 1
    assert world.peers.cancelled == [(world.b.keyid, world.a.keyid)]
    assert world.b.jobs() == ()


def untapped(hospital: Hospital) -> Host:
    """The hospital's host with its own ledger, for what happens inside a tap."""
    return with_changes(hospital.host, ports=with_changes(hospital.host.ports, ledger=hospital.ledger))


def test_a_start_that_lost_runs_nothing(world: World) -> None:
    order = waits_at_a(world, JobState.QUEUED)
    world.a.ports(ledger=Tapped(world.a.ledger, before=once("start", lambda: cancel_directly(world, order))))

    world.a.work(Queue.LEARN_TASKS)

    assert world.a.job(order, 0).state is JobState.CANCELLED
    assert world.a.runs() == []


def cancel_directly(world: World, order: SignedOrder) -> None:
    take_cancellation(world.cancellation(order), order.signer, untapped(world.a))


def test_an_attest_that_lost_records_neither_receipt_nor_hand_off(world: World) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)

    def lost(name: str) -> None:
        if name == "move" and world.a.job(order, 0).state is JobState.RUNNING:
            cancel_directly(world, order)

    world.a.ports(ledger=Tapped(world.a.ledger, before=lost))
    world.settle()

    assert world.a.job(order, 0).state is JobState.CANCELLED
    assert world.a.ledger.receipts(order.digest) == ()
    assert world.a.deliveries(DeliveryKind.HANDOFF) == ()


def test_an_order_placed_while_it_is_cancelled_is_not_missed(world: World) -> None:
    order = world.order(train=("b1",), test=())
    ledger = world.a.ledger
    world.post(order, world.a)

    def redirected_meanwhile(name: str) -> None:
        if name == "cancel" and world.a.job(order, 0).next_agent is None:
            advance(world.a.job(order, 0).id, untapped(world.a), "worker")

    world.a.ports(ledger=Tapped(ledger, before=redirected_meanwhile))
    world.cancel(order, world.a)
    world.settle()

    assert world.a.job(order, 0).state is JobState.CANCELLED
    assert world.peers.cancelled == [(world.b.keyid, world.a.keyid)]


def test_an_order_that_arrives_while_it_is_cancelled_is_not_missed(world: World) -> None:
    order = world.order(**CHAIN)
    tap = once("cancel", lambda: world.post(order, world.a))
    host = world.a.host
    world.a.ports(ledger=Tapped(world.a.ledger, before=tap))

    taken = take_cancellation(world.cancellation(order), order.signer, world.a.host)
    world.a.host = host
    world.settle()

    assert [job.state for job in taken.jobs] == [JobState.CANCELLED]
    assert world.a.job(order, 0).state is JobState.CANCELLED


def test_jobs_that_never_stop_moving_are_told_to_be_tried_again(world: World) -> None:
    order = waits_at_a(world, JobState.QUEUED)

    def lost(name: str) -> None:
        if name == "cancel":
            raise LostRace("always")

    world.a.ports(ledger=Tapped(world.a.ledger, before=lost))

    with pytest.raises(LedgerUnavailable, match="20 times"):
        world.cancel(order, world.a)


# ------------------------------------------------------------------ before the order, twice, never


def test_an_order_that_comes_after_its_cancellation_ends_at_once_and_is_told(world: World) -> None:
    order = world.order(**CHAIN)
    world.cancel(order, world.a)

    admission = world.post(order, world.a)
    world.settle()

    assert admission.job.state is JobState.CANCELLED
    assert world.a.runs() == []
    assert world.story(order) == [(0, "cancelled")]
    (kept,) = world.a.ledger.cancellations(order.digest)
    assert kept.keep_until >= order.order.expires


def test_a_hand_off_that_comes_after_its_cancellation_ends_at_once_and_is_told(world: World) -> None:
    order = world.order(**CHAIN)
    world.cancel(order, world.b, sender=world.a.keyid)

    world.hand_over(order, 1, to=world.b)
    world.settle()

    assert world.b.job(order, 1).state is JobState.CANCELLED
    assert world.b.runs() == []
    assert world.c.jobs() == ()
    assert world.story(order) == [(1, "cancelled")]


def test_an_order_recorded_before_its_end_was_seen_ends_when_its_bell_rings(world: World) -> None:
    order = world.order(**CHAIN)
    world.cancel(order, world.a)

    def killed(name: str) -> None:
        if name == "cancellations":
            raise KeyboardInterrupt

    world.a.ports(ledger=Tapped(world.a.ledger, before=killed))
    with pytest.raises(KeyboardInterrupt):
        world.post(order, world.a)
    world.a.ports(ledger=world.a.ledger)
    assert world.a.job(order, 0).state is JobState.RECEIVED

    world.settle()

    assert world.a.job(order, 0).state is JobState.CANCELLED
    assert world.a.runs() == []


def test_the_same_again_changes_nothing_and_says_so(world: World) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)
    world.a.work()

    first = world.cancel(order, world.a)
    world.settle()
    told, forwarded = world.story(order), list(world.peers.cancelled)
    again = world.cancel(order, world.a)
    world.settle()

    assert (first.is_repeat, again.is_repeat) == (False, True)
    assert world.story(order) == told
    assert world.peers.cancelled == forwarded
    assert world.a.events().count("order.cancelled") == 1


def test_one_that_never_had_the_order_keeps_it_for_a_while_and_longer_when_it_is_said_again(
    world: World,
) -> None:
    order = world.order(**CHAIN)
    world.cancel(order, world.c, sender=world.b.keyid)

    world.pass_time((KEPT_WITHOUT_ORDER / 2).total_seconds())
    world.c.sweep()
    half = world.c.ledger.cancellations(order.digest)
    again = world.cancel(order, world.c)
    world.pass_time((KEPT_WITHOUT_ORDER * 0.75).total_seconds())
    world.c.sweep()
    longer = world.c.ledger.cancellations(order.digest)
    world.pass_time(KEPT_WITHOUT_ORDER.total_seconds())
    world.c.sweep()

    assert len(half) == len(longer) == 1
    assert again.is_repeat
    assert world.c.ledger.cancellations(order.digest) == ()


def test_one_orchestrator_fills_its_own_places_and_no_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WITHOUT_ORDER", 2)
    orders = [world.order(**CHAIN, id=OrderId(uuid_of(f"order {n}"))) for n in range(4)]
    for order in orders[:2]:
        world.cancel(order, world.a)

    with pytest.raises(QueueFull):
        world.cancel(orders[2], world.a)
    world.cancel(orders[2], world.a, by=world.people.other_orchestrator)
    world.post(orders[0], world.a)  # one of them came: there is room again
    world.cancel(orders[3], world.a)

    assert MOST_WITHOUT_ORDER == 1000


# ------------------------------------------------------------------ who may


def test_another_orchestrator_cancels_nothing(world: World) -> None:
    order = waits_at_a(world, JobState.QUEUED)

    with pytest.raises(NotYours):
        world.cancel(order, world.a, by=world.people.other_orchestrator)

    assert world.a.job(order, 0).state is JobState.QUEUED


def test_another_orchestrators_word_before_the_order_counts_for_nothing(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.cancel(order, world.a, by=world.people.other_orchestrator)

    world.post(order, world.a)
    world.settle()

    assert world.a.job(order, 0).state is JobState.DONE
    assert world.has_result(order)


def test_an_orchestrator_forwards_nobodys_cancellation(world: World) -> None:
    order = waits_at_a(world, JobState.QUEUED)

    with pytest.raises(WrongRole):
        world.cancel(order, world.a, sender=world.o2)

    assert world.a.job(order, 0).state is JobState.QUEUED


def test_what_is_no_cancellation_of_an_orchestrator_is_refused(world: World) -> None:
    order = waits_at_a(world, JobState.QUEUED)
    good = world.cancellation(order)
    said = Cancellation(order.digest, wire_time(world.clock()))
    later = replace(said, issued=wire_time(world.clock() + SKEW + timedelta(seconds=1)))
    wrong: list[tuple[bytes, type[AgentError]]] = [
        (tamper(good, order=digest_named("other")), BadSignature),
        (sign_cancellation(said, world.a.key).envelope, WrongRole),
        (order.envelope, UnknownPayloadType),
        (sign_cancellation(later, world.people.orchestrator).envelope, CancellationNotYetValid),
        (b'{"payloadType": "x"}', BadEnvelope),
    ]

    for envelope, error in wrong:
        with pytest.raises(error):
            take_cancellation(envelope, world.a.keyid, world.a.host)

    assert world.a.job(order, 0).state is JobState.QUEUED
    assert world.a.ledger.cancellations(order.digest) == ()


def test_a_revoked_orchestrator_cancels_nothing(world: World) -> None:
    order = waits_at_a(world, JobState.QUEUED)
    world.a.trusts(changed(world.people.roster, world.o1, revoked_at=world.clock()))

    with pytest.raises(KeyNotValid):
        world.cancel(order, world.a)


# ------------------------------------------------------------------ the operator


def test_the_operator_ends_an_order_here_and_the_orchestrator_is_told_no_more_than_that(world: World) -> None:
    order = waits_at_a(world, JobState.QUEUED)

    cancel_here(order.order.id, world.a.host, uid=1000, reason="the disk makes noises")
    world.settle()

    assert world.a.job(order, 0).state is JobState.CANCELLED
    (told,) = world.told(order)
    assert (told.state, told.reason) == (ReportState.CANCELLED, BY_OPERATOR)
    (event,) = [e for e in world.a.ledger.events() if e.name == "order.cancelled"]
    assert (event.values["uid"], event.values["reason"]) == (1000, "the disk makes noises")
    assert world.a.deliveries(DeliveryKind.CANCELLATION) == ()


def test_the_operator_leaves_what_went_on_and_ends_what_comes_back(world: World) -> None:
    order = world.order(train=("a1", "b1", "a2"), test=())
    world.post(order, world.a)
    world.a.work()
    assert world.a.job(order, 0).state is JobState.DONE

    cancel_here(order.order.id, world.a.host, uid=None, reason=None)
    world.settle()

    assert world.a.deliveries(DeliveryKind.CANCELLATION) == ()
    assert world.b.job(order, 1).state is JobState.DONE
    assert world.a.job(order, 2).state is JobState.CANCELLED
    assert [(r.position, r.reason) for r in world.told(order, ReportState.CANCELLED)] == [(2, BY_OPERATOR)]


def test_the_operator_leaves_a_hand_off_that_is_under_way(world: World) -> None:
    order = world.order(train=("b1",), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)

    cancel_here(order.order.id, world.a.host, uid=None, reason=None)
    world.settle()

    assert world.b.job(order, 0).state is JobState.DONE
    assert world.has_result(order)


def test_an_orchestrator_cancels_what_the_operator_ended_too(world: World) -> None:
    order = world.order(**CHAIN)
    world.post(order, world.a)
    world.a.work()
    cancel_here(order.order.id, world.a.host, uid=None, reason=None)

    taken = world.cancel(order, world.a)
    world.settle()

    assert not taken.is_repeat
    assert world.peers.cancelled == [(world.b.keyid, world.a.keyid)]
