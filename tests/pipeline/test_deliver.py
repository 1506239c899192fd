"""What must reach others is sent until they acknowledge it, or buried with its orchestrator told. Nobody waits for ever."""

from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise

import pytest
from msgspec import json

from agent.domain.control import Control, Mode
from agent.domain.ids import KeyId, OrderId, job_id
from agent.domain.jobs import JobState
from agent.domain.orders import SignedOrder
from agent.domain.reports import ReportState, SignedRefusal
from agent.errors import (
    AgentError,
    BadAnswer,
    DatasetNotHere,
    OrchestratorUnavailable,
    PeerRefused,
    PeerUnavailable,
    RecordConflict,
    UnknownKey,
)
from agent.pipeline.deliver import deliver
from agent.pipeline.host import context_of
from agent.pipeline.report import report
from agent.ports.broker import Queue
from agent.ports.ledger import Delivery, DeliveryId, DeliveryKind, DeliveryState
from agent.ports.orchestrators import Orchestrators
from tests.builders import DAY, SKEW, dataset, uuid_of
from tests.fakes.broker import Ring
from tests.pipeline.world import LEASE, Tapped, World, once

EVIDENCE = SignedRefusal(
    status=403,
    content_digest="sha-256=:x:",
    signature_input="dc=()",
    signature="dc=:x:",
    request_signature="dc=:y:",
    body='{"code": "policy-refused"}',
)


def attested_at_a(world: World) -> SignedOrder:
    """An order that a has done its part of, and that b goes on with; nothing is delivered yet."""
    order = world.order(train=("a1", "b1"), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS, Queue.LEARN_TASKS)
    return order


def received_at_a(world: World) -> SignedOrder:
    """An order that a has placed with b; nothing is delivered yet."""
    order = world.order(train=("b1",), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    return order


def handoff_of(world: World) -> Delivery:
    """The last hand-off that a recorded."""
    return world.a.deliveries(DeliveryKind.HANDOFF)[-1]


def refuse(world: World, error: AgentError) -> None:
    """From now on b answers every hand-off of a with this."""
    real = world.a.host.ports.peers

    class Refused:
        """Peers of a, of whom b refuses."""

        def hand_off(self, agent: KeyId, body: bytes) -> None:
            if agent == world.b.keyid:
                raise error
            real.hand_off(agent, body)

    world.a.ports(peers=Refused())


# ------------------------------------------------------------------ acknowledged


def test_a_job_is_done_with_its_last_acknowledgement(world: World) -> None:
    order = attested_at_a(world)
    *first, last = world.a.deliveries()

    for delivery in first:
        deliver(delivery.id, world.a.host)
    before = world.a.job(order, 0).state
    deliver(last.id, world.a.host)

    assert before is JobState.ATTESTED
    assert world.a.job(order, 0).state is JobState.DONE
    assert {delivery.state for delivery in world.a.deliveries()} == {DeliveryState.ACKNOWLEDGED}


def test_a_doubled_bell_sends_once(world: World) -> None:
    attested_at_a(world)

    for _ in range(3):
        deliver(handoff_of(world).id, world.a.host)

    assert len(world.peers.received) == 1


def test_a_bell_for_an_unknown_delivery_does_nothing(world: World) -> None:
    deliver(DeliveryId("nothing"), world.a.host)

    assert world.peers.received == []


def test_two_workers_send_a_delivery_once(world: World) -> None:
    attested_at_a(world)
    before = world.a.host

    def by_another_worker() -> None:
        deliver(handoff_of(world).id, before)

    world.a.ports(peers=Tapped(before.ports.peers, before=once("hand_off", by_another_worker)))
    deliver(handoff_of(world).id, world.a.host)

    assert len(world.peers.received) == 1


def test_a_worker_that_died_after_sending_lets_another_send_the_same_again(world: World) -> None:
    order = attested_at_a(world)
    body = handoff_of(world).body
    before = world.a.host

    class DiedError(BaseException):
        pass

    def die() -> None:
        raise DiedError

    world.a.ports(peers=Tapped(before.ports.peers, after=once("hand_off", die)))
    with pytest.raises(DiedError):
        deliver(handoff_of(world).id, world.a.host)
    world.a.host = before
    deliver(handoff_of(world).id, world.a.host)
    sent_while_leased = len(world.peers.received)
    world.pass_time(LEASE.total_seconds() + 1)
    deliver(handoff_of(world).id, world.a.host)

    assert sent_while_leased == 1
    assert world.peers.received == [(world.b.keyid, world.a.keyid, body)] * 2
    assert len(world.b.jobs()) == 1
    world.settle()
    assert world.b.runs() == ["train"]
    assert world.a.job(order, 0).state is JobState.DONE


# ------------------------------------------------------------------ for now not


@pytest.mark.parametrize(
    "error",
    [
        PeerUnavailable("no connection"),
        BadAnswer("the answer is not signed"),
        UnknownKey("not in the roster"),
        OrchestratorUnavailable("half an answer"),
    ],
    ids=lambda error: error.code,
)
def test_what_failed_for_now_is_sent_again_after_a_rest(error: AgentError, world: World) -> None:
    attested_at_a(world)
    body, before = handoff_of(world).body, world.a.host
    refuse(world, error)

    deliver(handoff_of(world).id, world.a.host)
    postponed = handoff_of(world)
    deliver(postponed.id, before)
    sent_too_early = list(world.peers.received)
    world.a.host = before
    rest_s = (postponed.next_try_at - world.clock()).total_seconds()
    world.pass_time(rest_s)
    deliver(postponed.id, world.a.host)

    assert (postponed.state, postponed.attempts) == (DeliveryState.PENDING, 1)
    assert error.code in (postponed.last_error or "")
    assert 1 <= rest_s <= 2
    assert world.a.rung(Queue.DELIVERIES)[-1] == Ring(Queue.DELIVERIES, postponed.id, rest_s)
    assert sent_too_early == []
    assert world.peers.received == [(world.b.keyid, world.a.keyid, body)]


def test_it_rests_longer_each_time_and_five_minutes_at_most(world: World) -> None:
    attested_at_a(world)
    world.peers.down.add(world.b.keyid)

    rests = []
    for _ in range(14):
        deliver(handoff_of(world).id, world.a.host)
        rests.append((handoff_of(world).next_try_at - world.clock()).total_seconds())
        world.pass_time(rests[-1])

    ceilings = [min(300.0, 2.0**number) for number in range(1, 15)]
    assert all(ceiling / 2 <= rest <= ceiling for rest, ceiling in zip(rests, ceilings, strict=True))
    assert not all(later == rest for rest, later in pairwise(rests[-4:]))  # not all peers at once


def test_reports_and_results_are_sent_however_long_it_takes(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS, Queue.LEARN_TASKS)
    world.orchestrators.down.add(world.o1)
    world.work()
    world.pass_time(30 * DAY.total_seconds())
    world.a.sweep()
    world.work()
    still = {delivery.state for delivery in world.a.deliveries()}

    world.orchestrators.down.clear()
    world.settle()

    assert still == {DeliveryState.PENDING}
    assert sorted(world.story(order)) == [(0, "done"), (0, "started")]
    assert world.has_result(order)


def test_an_order_does_not_train_again_because_its_reports_do_not_arrive(world: World) -> None:
    order = world.order(train=("a1", "a2"), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    real = world.a.host.ports.orchestrators

    class Deaf:
        """Orchestrators that give shares and take nothing."""

        def share(self, orchestrator: KeyId, request: bytes) -> bytes:
            return real.share(orchestrator, request)

        def report(self, *_: object) -> None:
            raise OrchestratorUnavailable("answers 500")

        result = report

    before = world.a.host
    world.a.ports(orchestrators=Deaf())
    for _ in range(20):
        world.work()
        world.pass_time(61)
        world.sweep()
    unheard = [job.state for job in world.a.jobs()]
    world.a.host = before
    world.settle()

    assert unheard == [JobState.ATTESTED, JobState.ATTESTED]
    assert world.a.runs() == ["train", "train"]
    assert len(world.told(order, ReportState.DONE)) == 2


# ------------------------------------------------------------------ refused for good


def test_a_refused_hand_off_is_reported_with_the_peers_own_words(world: World) -> None:
    order = attested_at_a(world)
    refuse(world, PeerRefused("b refuses (policy-refused)", "policy-refused", json.encode(EVIDENCE)))

    world.work()  # at once, without a sweep

    (told,) = world.told(order, ReportState.HANDOFF_REFUSED)
    assert handoff_of(world).state is DeliveryState.DEAD
    assert (told.position, told.next_agent, told.refusal) == (0, world.b.keyid, EVIDENCE)
    assert "policy-refused" in (told.reason or "")
    assert world.a.job(order, 0).state is JobState.DONE  # its own task was done well
    assert len(world.a.deliveries(DeliveryKind.HANDOFF)) == 1


def test_a_placed_order_that_is_refused_fails_and_is_reported(world: World) -> None:
    order = received_at_a(world)
    refuse(world, PeerRefused("b refuses (policy-refused)", "policy-refused", json.encode(EVIDENCE)))

    world.settle()

    (told,) = world.told(order)
    assert (told.state, told.refusal) == (ReportState.HANDOFF_REFUSED, EVIDENCE)
    assert world.a.job(order, 0).state is JobState.FAILED


@pytest.mark.parametrize(
    "evidence",
    [b"", b"not json", b"{}", json.encode(EVIDENCE)[:-1], b"[" * 10_000, b'"' + b"x" * (1 << 20) + b'"'],
)
def test_evidence_that_nobody_can_read_keeps_no_report_back(evidence: bytes, world: World) -> None:
    order = attested_at_a(world)
    refuse(world, PeerRefused("b refuses", "policy-refused", evidence))

    world.settle()

    (told,) = world.told(order, ReportState.HANDOFF_REFUSED)
    assert told.refusal is None


def test_a_long_refusal_is_cut_to_what_a_report_takes(world: World) -> None:
    order = attested_at_a(world)
    refuse(world, PeerRefused("é" * 5000, "policy-refused"))

    world.settle()

    (told,) = world.told(order, ReportState.HANDOFF_REFUSED)
    assert told.reason == "é" * 200


def test_a_real_refusal_of_a_real_peer_reaches_the_orchestrator(world: World) -> None:
    order = attested_at_a(world)
    world.b.allows("")

    world.settle()

    (told,) = world.told(order, ReportState.HANDOFF_REFUSED)
    assert "policy-refused" in (told.reason or "")
    assert world.b.jobs() == ()


def test_a_report_that_is_refused_for_good_is_dead_and_holds_nothing_open(world: World) -> None:
    order = world.order(train=("a1",), test=())

    def refuse_it() -> None:
        raise PeerRefused("something else is recorded here", RecordConflict.code)

    real = world.a.host.ports.orchestrators
    world.a.ports(orchestrators=Tapped(real, before=once("report", refuse_it)))
    world.post(order, world.a)

    world.settle()

    states = [delivery.state for delivery in world.a.deliveries()]
    assert states == [DeliveryState.DEAD, DeliveryState.ACKNOWLEDGED, DeliveryState.ACKNOWLEDGED]
    assert world.a.job(order, 0).state is JobState.DONE
    assert world.has_result(order)


# ------------------------------------------------------------------ the dataset moved meanwhile


@pytest.mark.parametrize("stage", [attested_at_a, received_at_a], ids=["the next task", "a placed order"])
def test_a_dataset_that_moved_is_followed(stage: Callable[[World], SignedOrder], world: World) -> None:
    order = stage(world)
    body = handoff_of(world).body
    world.move("b1", to="c")

    world.work()  # at once, without a sweep

    first, second = world.a.deliveries(DeliveryKind.HANDOFF)
    assert (first.target, first.state) == (world.b.keyid, DeliveryState.DEAD)
    assert (second.target, second.state) == (world.c.keyid, DeliveryState.ACKNOWLEDGED)
    assert (second.body, second.expires_at) == (body, order.order.expires)
    assert world.a.job(order, 0).next_agent == world.c.keyid
    assert world.a.job(order, 0).state is JobState.DONE
    assert world.c.runs() == ["train"]
    assert world.told(order, ReportState.HANDOFF_REFUSED) == []
    assert world.has_result(order)


def test_a_refusal_for_another_reason_is_final_though_the_dataset_moved(world: World) -> None:
    order = attested_at_a(world)
    world.move("b1", to="c")
    refuse(world, PeerRefused("b refuses (policy-refused)", "policy-refused"))

    world.settle()

    assert len(world.a.deliveries(DeliveryKind.HANDOFF)) == 1
    assert len(world.told(order, ReportState.HANDOFF_REFUSED)) == 1
    assert world.c.jobs() == ()


def test_a_peer_that_storage_still_names_has_refused_for_good(world: World) -> None:
    order = attested_at_a(world)
    refuse(world, PeerRefused("not here", DatasetNotHere.code))

    world.settle()

    assert len(world.a.deliveries(DeliveryKind.HANDOFF)) == 1
    assert len(world.told(order, ReportState.HANDOFF_REFUSED)) == 1


@pytest.mark.parametrize("stage", [attested_at_a, received_at_a], ids=["the next task", "a placed order"])
def test_storage_that_is_down_just_then_costs_time_and_no_order(
    stage: Callable[[World], SignedOrder], world: World
) -> None:
    order = stage(world)
    world.move("b1", to="c")
    world.storages.down.add(world.a.storage)

    deliver(handoff_of(world).id, world.a.host)
    postponed = handoff_of(world)
    world.storages.down.clear()
    world.settle()

    assert (postponed.state, postponed.attempts) == (DeliveryState.PENDING, 1)
    assert world.c.runs() == ["train"]
    assert world.has_result(order)


def test_a_dataset_that_lies_nowhere_now_is_waited_for_until_the_order_ends(world: World) -> None:
    order = attested_at_a(world)
    sealed = world.storages.datasets.pop(dataset("b1"))
    refuse(world, PeerRefused("not here", DatasetNotHere.code))
    world.work()
    waiting = handoff_of(world)

    world.pass_time(DAY.total_seconds() + 31)
    world.settle()

    assert sealed.id == dataset("b1").id
    assert waiting.state is DeliveryState.PENDING
    assert len(world.told(order, ReportState.HANDOFF_EXPIRED)) == 1


# ------------------------------------------------------------------ the order ended first


@pytest.mark.parametrize(
    ("stage", "state"),
    [(attested_at_a, JobState.DONE), (received_at_a, JobState.FAILED)],
    ids=["the next task", "a placed order"],
)
def test_a_hand_off_ends_with_its_order_and_the_orchestrator_is_told(
    stage: Callable[[World], SignedOrder], state: JobState, world: World
) -> None:
    order = stage(world)
    world.peers.down.add(world.b.keyid)
    world.work()

    world.pass_time(DAY.total_seconds() + 31)
    world.peers.down.clear()
    world.settle()

    (told,) = world.told(order, ReportState.HANDOFF_EXPIRED)
    assert (told.position, told.next_agent) == (0, world.b.keyid)
    assert handoff_of(world).state is DeliveryState.DEAD
    assert world.a.job(order, 0).state is state
    assert world.b.jobs() == ()


def test_within_the_skew_after_the_end_it_is_still_sent(world: World) -> None:
    order = attested_at_a(world)
    world.clock.moment = order.order.expires + SKEW - timedelta(seconds=1)

    deliver(handoff_of(world).id, world.a.host)

    assert handoff_of(world).state is DeliveryState.ACKNOWLEDGED


def test_with_the_end_of_the_skew_it_is_over(world: World) -> None:
    order = attested_at_a(world)
    world.clock.moment = order.order.expires + SKEW

    deliver(handoff_of(world).id, world.a.host)
    world.work()

    assert handoff_of(world).state is DeliveryState.DEAD
    assert len(world.told(order, ReportState.HANDOFF_EXPIRED)) == 1


# ------------------------------------------------------------------ a target that is away, as a whole


class Away:
    """Orchestrators that give shares and take nothing; how often they were asked to."""

    def __init__(self, real: Orchestrators, rest_s: float | None = None) -> None:
        self.calls = 0
        self.rest_s = rest_s
        self.share = real.share

    def report(self, *_: object) -> None:
        self.calls += 1
        error = OrchestratorUnavailable("answers 503")
        error.rest_s = self.rest_s
        raise error

    result = report


def many_reports(world: World, count: int) -> None:
    """So many orders that a has placed with b, each with a report that did not leave yet."""
    for number in range(count):
        order = world.order(id=OrderId(uuid_of(f"one of many {number}")), train=("b1",), test=())
        world.post(order, world.a)
        job = world.a.ledger.job(job_id(order.order.id, 0))
        told = report(context_of(job, world.a.host), ReportState.HELD, world.a.host)
        world.a.ledger.redirect(job, world.clock(), next_agent=world.b.keyid, delivery=told)


def test_an_orchestrator_that_is_away_is_asked_seldom_however_much_waits_for_it(world: World) -> None:
    world.a.rules(queue_limit=1000)
    many_reports(world, 300)
    away, before = Away(world.a.host.ports.orchestrators), world.a.host
    world.a.ports(orchestrators=away)

    for _ in range(60):  # an hour
        world.a.sweep()
        world.a.work(Queue.DELIVERIES)
        world.pass_time(60)
    asked = away.calls
    world.a.host = before
    world.pass_time(300)
    for _ in range(8):  # each as soon as its own rest is over
        world.a.sweep()
        world.a.work(Queue.DELIVERIES)
        world.pass_time(60)

    assert asked <= 40  # 2, 4, 8 … 300 s apart
    assert world.a.ledger.outbox_counts()[DeliveryState.PENDING] == 0


def test_what_waits_for_others_is_not_held_up_by_one_who_is_away(world: World) -> None:
    many_reports(world, 30)
    world.a.ports(orchestrators=Away(world.a.host.ports.orchestrators))
    world.a.sweep()
    world.a.work(Queue.DELIVERIES)

    attested_at_a(world)
    world.a.work(Queue.DELIVERIES)

    assert handoff_of(world).state is DeliveryState.ACKNOWLEDGED


@pytest.mark.parametrize(("asked_s", "rest_s"), [(120.0, 120.0), (86400.0, 300.0), (0.0, 2.0)])
def test_the_rest_that_a_receiver_asks_for_is_kept_within_bounds(
    asked_s: float, rest_s: float, world: World
) -> None:
    many_reports(world, 1)
    world.a.ports(orchestrators=Away(world.a.host.ports.orchestrators, asked_s))
    (delivery,) = world.a.deliveries()

    deliver(delivery.id, world.a.host)

    rest = (world.a.ledger.delivery(delivery.id).next_try_at - world.clock()).total_seconds()
    assert rest_s / 2 <= rest <= rest_s


def test_nothing_leaves_a_host_whose_ledger_was_restored(world: World) -> None:
    attested_at_a(world)
    world.a.ledger.set_control(Control(mode=Mode.RESTORED), world.clock())

    world.a.work(Queue.DELIVERIES)

    assert world.peers.received == []
    assert handoff_of(world).attempts == 0
