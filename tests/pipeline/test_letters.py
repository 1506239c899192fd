"""A person decides on what died or does not arrive: sent again or dropped, and nobody who waits for it is left waiting."""

import pytest
from msgspec import json

from agent.domain.jobs import JobState
from agent.domain.orders import SignedOrder
from agent.domain.reports import ReportState
from agent.errors import DeliveryOver, NotFound, PeerRefused, RecordConflict
from agent.pipeline.letters import DROPPED, drop, retry
from agent.ports.broker import Queue
from agent.ports.ledger import DeliveryId, DeliveryKind, DeliveryState
from tests.builders import DAY
from tests.pipeline.test_deliver import attested_at_a, handoff_of, received_at_a, refuse
from tests.pipeline.world import POLICY, Tapped, World, once

OPERATOR = 1000


def refused_at_b(world: World) -> SignedOrder:
    """An order that a did its part of, and that b refused because of its policy."""
    order = attested_at_a(world)
    world.b.allows("")
    world.settle()
    assert handoff_of(world).state is DeliveryState.DEAD
    return order


def test_a_refused_hand_off_is_sent_again_once_the_peer_would_take_it(world: World) -> None:
    order = refused_at_b(world)
    world.b.allows(POLICY)

    after = retry(handoff_of(world).id, OPERATOR, world.a.host)
    world.settle()

    assert after.state is DeliveryState.PENDING
    assert handoff_of(world).state is DeliveryState.ACKNOWLEDGED
    assert [r.next_agent for r in world.told(order, ReportState.HANDOFF_RETRIED)] == [world.b.keyid]
    assert (world.a.runs(), world.b.runs()) == (["train"], ["train"])
    assert world.a.job(order, 0).state is JobState.DONE
    assert world.has_result(order)


def test_a_hand_off_ended_with_its_order_and_is_not_sent_again(world: World) -> None:
    refused_at_b(world)
    world.pass_time(DAY.total_seconds() + 31)

    with pytest.raises(DeliveryOver, match="ended with its order"):
        retry(handoff_of(world).id, OPERATOR, world.a.host)

    assert handoff_of(world).state is DeliveryState.DEAD


def test_the_hand_off_of_a_job_that_failed_with_it_is_not_sent_again(world: World) -> None:
    order = received_at_a(world)
    refuse(world, PeerRefused("b refuses (policy-refused)", "policy-refused"))
    world.settle()

    with pytest.raises(DeliveryOver, match="a job that is failed"):
        retry(handoff_of(world).id, OPERATOR, world.a.host)

    assert world.told(order, ReportState.HANDOFF_RETRIED) == []


def test_a_hand_off_that_another_host_took_meanwhile_is_not_sent_again(world: World) -> None:
    attested_at_a(world)
    first = handoff_of(world).id
    world.move("b1", to="c")
    world.settle()

    with pytest.raises(DeliveryOver, match="goes on at"):
        retry(first, OPERATOR, world.a.host)

    assert world.c.runs() == ["train"]


def test_a_refused_report_is_sent_again_as_it_was(world: World) -> None:
    order = world.order(train=("a1",), test=())

    def refuse_it() -> None:
        raise PeerRefused("something else is recorded here", RecordConflict.code)

    before = world.a.host
    world.a.ports(orchestrators=Tapped(before.ports.orchestrators, before=once("report", refuse_it)))
    world.post(order, world.a)
    world.settle()
    (dead,) = world.a.ledger.outbox({DeliveryState.DEAD}, 10)

    retry(dead.id, OPERATOR, world.a.host)
    world.work()

    assert world.a.ledger.delivery(dead.id).state is DeliveryState.ACKNOWLEDGED
    assert sorted(world.story(order)) == [(0, "done"), (0, "started")]
    assert world.a.runs() == ["train"]


def test_a_pending_delivery_does_not_rest_any_longer(world: World) -> None:
    attested_at_a(world)
    world.peers.down.add(world.b.keyid)
    world.work()
    world.peers.down.clear()

    retry(handoff_of(world).id, OPERATOR, world.a.host)
    world.work()

    assert handoff_of(world).state is DeliveryState.ACKNOWLEDGED


def test_a_dropped_hand_off_ends_the_order_and_the_orchestrator_is_told(world: World) -> None:
    order = attested_at_a(world)
    world.peers.down.add(world.b.keyid)
    world.a.work(Queue.DELIVERIES)

    drop(handoff_of(world).id, OPERATOR, world.a.host)
    world.peers.down.clear()
    world.settle()

    (told,) = world.told(order, ReportState.HANDOFF_REFUSED)
    assert (told.reason, told.next_agent, told.refusal) == (DROPPED, world.b.keyid, None)
    assert world.a.job(order, 0).state is JobState.DONE
    assert world.b.jobs() == ()


def test_a_dropped_hand_off_of_a_placed_order_fails_it(world: World) -> None:
    order = received_at_a(world)

    drop(handoff_of(world).id, OPERATOR, world.a.host)
    world.settle()

    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, DROPPED)
    assert [told.state for told in world.told(order)] == [ReportState.HANDOFF_REFUSED]
    assert world.b.jobs() == ()


def test_a_dead_hand_off_was_told_already_and_is_only_put_away(world: World) -> None:
    order = refused_at_b(world)

    drop(handoff_of(world).id, OPERATOR, world.a.host)
    drop(handoff_of(world).id, OPERATOR, world.a.host)
    world.settle()

    assert handoff_of(world).state is DeliveryState.DROPPED
    assert len(world.told(order, ReportState.HANDOFF_REFUSED)) == 1
    (event,) = [event for event in world.a.ledger.events() if event.name == "delivery.dropped"]
    assert event.values["uid"] == OPERATOR


def test_what_arrived_or_was_dropped_stays_so(world: World) -> None:
    attested_at_a(world)
    world.settle()
    (result,) = world.b.deliveries(DeliveryKind.RESULT)

    with pytest.raises(DeliveryOver):
        retry(result.id, OPERATOR, world.b.host)
    with pytest.raises(DeliveryOver):
        drop(result.id, OPERATOR, world.b.host)
    with pytest.raises(NotFound):
        drop(DeliveryId("nothing"), OPERATOR, world.b.host)
    assert json.encode(world.b.ledger.delivery(result.id)) == json.encode(result)


def test_a_dropped_delivery_is_not_sent_again(world: World) -> None:
    attested_at_a(world)
    drop(handoff_of(world).id, OPERATOR, world.a.host)

    with pytest.raises(DeliveryOver):
        retry(handoff_of(world).id, OPERATOR, world.a.host)


def test_what_is_being_sent_is_not_dropped_under_its_senders_hands(world: World) -> None:
    attested_at_a(world)
    refusals = []

    def meanwhile() -> None:
        with pytest.raises(DeliveryOver) as refusal:
            drop(handoff_of(world).id, OPERATOR, world.a.host)
        refusals.append(refusal)

    real = world.a.host.ports.peers
    world.a.ports(peers=Tapped(real, before=once("hand_off", meanwhile)))
    world.a.work(Queue.DELIVERIES)

    assert len(refusals) == 1
    assert handoff_of(world).state is DeliveryState.ACKNOWLEDGED
