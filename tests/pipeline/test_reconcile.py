"""What a lost message hid is found by asking, and a restored ledger runs nothing that others know to be done. Never twice."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from agent.domain.control import Control, Mode
from agent.domain.ids import KeyId, OrderId
from agent.domain.jobs import JobState
from agent.domain.orders import SignedOrder
from agent.domain.reports import ReportState, envelope_object
from agent.domain.standings import WholeStanding
from agent.pipeline.lost import Known
from agent.pipeline.recall import SUPERSEDED
from agent.pipeline.reconcile import Reconciler, Round, force, reconcile
from agent.ports.broker import Queue
from agent.ports.ledger import DeliveryKind, DeliveryState
from agent.trust.signed import sign_receipt
from tests.builders import DAY, key_of, uuid_of
from tests.fakes.ledger import MemoryLedger
from tests.pipeline.world import Hospital, Tapped, World, once

ONE_HOP: dict[str, Any] = {"train": ("a1", "b1"), "test": ()}


def ask(hospital: Hospital) -> Round:
    """One round of questions."""
    return reconcile(hospital.host, Known())


def books(hospital: Hospital) -> MemoryLedger:
    assert isinstance(hospital.ledger, MemoryLedger)
    return hospital.ledger


def backup(hospital: Hospital) -> Any:
    """The ledger as it is now."""
    return books(hospital)._books


def restore(hospital: Hospital, backup: Any) -> None:
    """As `dc-compute restore` leaves it: the old ledger, which says so; bells are not kept."""
    books(hospital)._books = backup
    hospital.forget_bells()
    now = hospital.world.clock()
    hospital.ledger.set_control(Control(mode=Mode.RESTORED, since=now, reason="restored"), now)


def live_on(world: World, hospital: Hospital) -> None:
    """Rounds, sweeps and bells until nothing is left to do."""
    for _ in range(6):
        ask(hospital)
        world.sweep()
        world.work()
        world.pass_time(20)
    world.settle()


def is_restored(hospital: Hospital) -> bool:
    return hospital.ledger.control().mode is Mode.RESTORED


def numbers(world: World, order: SignedOrder) -> list[tuple[int, KeyId, int]]:
    """(position, reporter, n) of every report that was taken."""
    taken = world.orchestrators.reports.get(order.signer, {})
    return [(position, reporter, n) for (of, position, reporter, n) in taken if of == order.order.id]


def dead(world: World) -> list[str]:
    """What was refused for good anywhere: a second story is, and is an alarm there."""
    return [d.id for h in world for d in h.ledger.deliveries(state=DeliveryState.DEAD)]


# ------------------------------------------------------------------ an order that never arrived


def test_an_order_that_never_arrived_is_found_and_runs_once(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.issue(order, world.a)

    found = [ask(world.a).found for _ in range(3)]
    world.settle()
    world.post(order, world.a)  # and late, it arrives after all
    world.settle()

    assert found == [1, 0, 0]
    assert world.a.runs() == ["train"]
    assert world.has_result(order)
    assert "order.found" in world.a.events()


def test_a_hand_off_that_was_lost_behind_its_acknowledgement_is_found_by_the_agent_it_was_for(
    world: World,
) -> None:
    order = world.order(**ONE_HOP)
    real = world.peers.doors[world.b.keyid]
    world.peers.doors[world.b.keyid] = lambda body, sender: None
    world.post(order, world.a)
    world.settle()
    world.peers.doors[world.b.keyid] = real

    done = ask(world.b)
    world.settle()

    assert done.found == 1
    assert (world.a.runs(), world.b.runs()) == (["train"], ["train"])
    assert world.b.job(order, 1).state is JobState.DONE
    assert world.has_result(order)


def test_a_found_order_is_judged_like_any_other(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.issue(order, world.a)
    world.a.allows("")

    assert ask(world.a).found == 0
    assert world.a.jobs() == ()


def test_an_order_that_is_over_is_not_taken_again(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.issue(order, world.a)
    world.pass_time(DAY.total_seconds() + 31)

    assert ask(world.a).found == 0
    assert world.a.jobs() == ()


def test_many_open_orders_are_asked_for_page_by_page(world: World) -> None:
    orders = [world.order(id=OrderId(uuid_of(f"order {n}")), train=("a1",), test=()) for n in range(5)]
    for order in orders:
        world.issue(order, world.a)

    assert ask(world.a).found == 5


def test_an_order_that_went_on_already_is_not_taken_again_by_an_agent_that_forgot_it(world: World) -> None:
    order = world.order(**ONE_HOP)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS, Queue.LEARN_TASKS)
    handoff = world.a.delivery(DeliveryKind.HANDOFF)
    world.a.handlers()[Queue.DELIVERIES](handoff.id)  # b has it; no report arrived
    books(world.a)._books = MemoryLedger()._books

    assert ask(world.a).found == 0
    world.settle()

    assert world.a.runs() == ["train"]


# ------------------------------------------------------------------ what an orchestrator lost


def test_a_report_that_its_orchestrator_lost_is_told_again_as_it_was(world: World) -> None:
    order = world.order(**ONE_HOP)
    world.peers.down.add(world.b.keyid)
    world.post(order, world.a)
    world.work()
    taken = world.orchestrators.reports[world.o1]
    place = next(p for p, body in taken.items() if b'"state":"done"' in body)
    body = taken.pop(place)

    done = ask(world.a)
    world.work()

    assert done.sent_again == 1
    assert taken[place] == body
    assert world.a.runs() == ["train"]
    assert "delivery.sent_again" in world.a.events()


def test_a_result_that_its_orchestrator_lost_is_brought_again(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    world.settle()
    result = world.orchestrators.results[world.o1].pop(order.order.id)

    ask(world.a)
    world.settle()

    assert world.orchestrators.results[world.o1][order.order.id] == result
    assert world.a.runs() == ["train"]


def test_what_a_person_dropped_is_not_told_again(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS, Queue.LEARN_TASKS)
    for delivery in world.a.deliveries():
        world.a.ledger.drop_delivery(delivery, world.clock(), uid=0, reason="dropped")

    assert ask(world.a).sent_again == 0
    assert world.told(order) == []


def test_another_receipt_of_a_place_is_told_once_and_moves_nothing(world: World) -> None:
    order = world.order(**ONE_HOP)
    world.peers.down.add(world.b.keyid)
    world.post(order, world.a)
    world.work()
    told = world.orchestrators.standing(order.order.id, world.a.keyid)
    other = replace(told.standing.receipts[0], digest=order.digest)
    lying = replace(told, standing=replace(told.standing, receipts=(other,), holder=world.a.keyid))
    world.orchestrators.standing = lambda *_: lying  # type: ignore[method-assign]
    known = Known()

    for _ in range(3):
        reconcile(world.a.host, known)

    assert world.a.events().count("receipt.contradicted") == 1
    assert world.a.job(order, 0).state is JobState.ATTESTED


# ------------------------------------------------------------------ what a peer lost


def handed_to_b(world: World) -> SignedOrder:
    """An order that b acknowledged, and that a told everybody about."""
    order = world.order(**ONE_HOP)
    world.post(order, world.a)
    world.a.work()
    return order


def test_a_peer_that_forgot_a_hand_off_gets_it_again_and_runs_it_once(world: World) -> None:
    order = handed_to_b(world)
    books(world.b)._books = MemoryLedger()._books
    world.b.forget_bells()

    done = ask(world.a)
    again = ask(world.a)
    world.settle()

    assert (done.sent_again, again.sent_again) == (1, 0)
    assert world.b.runs() == ["train"]
    assert world.has_result(order)
    assert world.a.job(order, 0).state is JobState.DONE


def test_a_peer_that_has_it_gets_nothing(world: World) -> None:
    handed_to_b(world)

    assert ask(world.a).sent_again == 0
    assert len(world.peers.received) == 1


def test_a_peer_that_forgot_what_it_had_done_gets_nothing_to_do_again(world: World) -> None:
    handed_to_b(world)
    world.settle()
    books(world.b)._books = MemoryLedger()._books

    assert ask(world.a).sent_again == 0
    assert world.b.runs() == ["train"]


def test_who_does_not_answer_holds_up_nobody_else(world: World) -> None:
    handed_to_b(world)
    world.peers.down.add(world.b.keyid)
    order = world.order(id=OrderId(uuid_of("another")), train=("a2",), test=())
    world.issue(order, world.a)
    world.orchestrators.down.add(world.o2)

    done = ask(world.a)

    assert set(done.silent) == {world.o2}
    assert done.found == 1


# ------------------------------------------------------------------ an old ledger is restored


def before_it_ran(world: World, order: SignedOrder) -> None:
    """The job of a waits in the queue."""
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    assert world.a.job(order, 0).state is JobState.QUEUED


def before_it_was_placed(world: World, order: SignedOrder) -> None:
    world.post(order, world.a)


def while_it_ran(world: World, order: SignedOrder) -> None:
    """A worker has the job in hand."""
    before_it_ran(world, order)
    now = world.clock()
    world.a.ledger.start(world.a.job(order, 0), now, worker="w", lease_until=now + world.a.host.rules.lease)


def before_it_was_told(world: World, order: SignedOrder) -> None:
    """The task is attested, and nothing left."""
    before_it_ran(world, order)
    world.a.work(Queue.LEARN_TASKS)


MOMENTS = [before_it_was_placed, before_it_ran, while_it_ran, before_it_was_told]


@pytest.mark.parametrize("moment", MOMENTS)
def test_what_was_acknowledged_does_not_run_again(
    moment: Callable[[World, SignedOrder], None], world: World
) -> None:
    order = world.order(**ONE_HOP)
    moment(world, order)
    old = backup(world.a)
    world.pass_time(61)
    world.sweep()
    world.settle()
    told, reports = world.story(order), numbers(world, order)
    runs = world.a.runs()

    restore(world.a, old)
    world.sweep()
    world.work()
    silent_before = numbers(world, order) == reports
    live_on(world, world.a)

    assert silent_before
    assert not is_restored(world.a)
    assert world.a.runs() == runs
    assert world.b.runs() == ["train"]
    assert world.a.job(order, 0).state is JobState.DONE
    assert (world.story(order), numbers(world, order)) == (told, reports)
    assert dead(world) == []


def test_a_chain_that_went_on_here_is_closed_place_by_place(world: World) -> None:
    order = world.order(train=("a1", "a2"), test=())
    before_it_ran(world, order)
    old = backup(world.a)
    world.settle()

    restore(world.a, old)
    live_on(world, world.a)

    assert world.a.runs() == ["train", "train"]
    assert [job.state for job in world.a.jobs()] == [JobState.DONE, JobState.DONE]
    assert dead(world) == []


def test_an_order_that_came_after_the_backup_is_found_again_and_its_reports_are_counted_on(
    world: World,
) -> None:
    old = backup(world.a)
    order = world.order(train=("a1",), test=())
    while_it_ran_and_was_told(world, order)

    restore(world.a, old)
    live_on(world, world.a)

    assert world.has_result(order)
    assert numbers(world, order) == [(0, world.a.keyid, n) for n in (1, 2, 3)]
    assert [state for _, state in world.story(order)] == ["started", "started", "done"]
    assert dead(world) == []


def while_it_ran_and_was_told(world: World, order: SignedOrder) -> None:
    """The first attempt began, its orchestrator knows, and the host is gone."""

    class DiedError(BaseException):
        pass

    def die() -> None:
        raise DiedError

    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    before = world.a.host
    world.a.ports(runtime=Tapped(before.ports.runtime, before=once("run", die)))
    with pytest.raises(DiedError):
        world.a.work(Queue.LEARN_TASKS)
    world.a.host = before
    world.a.work(Queue.DELIVERIES)


def test_reports_of_a_job_in_the_backup_are_counted_on_too(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    old = backup(world.a)
    while_it_ran_and_was_told(world, order)

    restore(world.a, old)
    live_on(world, world.a)

    assert world.has_result(order)
    assert numbers(world, order) == [(0, world.a.keyid, n) for n in (1, 2, 3)]
    assert dead(world) == []


def test_nothing_moves_before_every_orchestrator_answered(world: World) -> None:
    order = world.order(**ONE_HOP)
    before_it_ran(world, order)
    old = backup(world.a)
    world.orchestrators.down.add(world.o2)

    restore(world.a, old)
    for _ in range(5):
        ask(world.a)
        world.sweep()
        world.work()
        world.pass_time(61)
    before = (world.a.runs(), world.told(order), is_restored(world.a))
    world.orchestrators.down.clear()
    live_on(world, world.a)

    assert before == ([], [], True)
    assert world.a.runs() == ["train"]
    assert world.has_result(order)
    assert "host.running" in world.a.events()


def test_an_order_that_comes_meanwhile_is_asked_about_too(world: World) -> None:
    order = world.order(**ONE_HOP)
    before_it_ran(world, order)
    world.settle()

    restore(world.a, MemoryLedger()._books)
    world.post(order, world.a)  # its orchestrator's own repeat of it
    world.work()
    live_on(world, world.a)

    assert world.a.runs() == ["train"]
    assert world.b.runs() == ["train"]
    assert world.a.job(order, 0).state is JobState.DONE
    assert dead(world) == []


def test_a_task_whose_report_was_lost_with_the_ledger_is_known_by_the_peer_that_goes_on(world: World) -> None:
    order = world.order(**ONE_HOP)
    before_it_ran(world, order)
    old = backup(world.a)
    world.a.work(Queue.LEARN_TASKS)
    handoff = world.a.delivery(DeliveryKind.HANDOFF)
    world.a.handlers()[Queue.DELIVERIES](handoff.id)  # b has it; no report arrived
    receipt = world.a.ledger.receipts(order.digest)[0]

    restore(world.a, old)
    live_on(world, world.a)

    assert (world.a.runs(), world.b.runs()) == (["train"], ["train"])
    assert world.a.ledger.receipts(order.digest)[0].digest == receipt.digest
    assert [told.receipt for told in world.told(order, ReportState.DONE) if told.position == 0] == [
        envelope_object(receipt.envelope)
    ]
    assert world.has_result(order)
    assert dead(world) == []


def test_a_hand_off_that_never_left_is_made_anew_from_the_acknowledged_receipt(world: World) -> None:
    order = world.order(**ONE_HOP)
    before_it_ran(world, order)
    old = backup(world.a)
    world.peers.down.add(world.b.keyid)
    world.a.work()
    world.peers.down.clear()

    restore(world.a, old)
    live_on(world, world.a)

    assert (world.a.runs(), world.b.runs()) == (["train"], ["train"])
    assert world.has_result(order)


def test_a_failed_task_stays_failed(world: World) -> None:
    order = world.order(train=("a1",), test=())
    before_it_ran(world, order)
    old = backup(world.a)
    algo, world.algo = world.algo, lambda guest: 1
    world.settle()
    told, world.algo = world.story(order), algo

    restore(world.a, old)
    live_on(world, world.a)

    assert world.a.job(order, 0).state is JobState.FAILED
    assert world.a.runs() == ["train"]
    assert world.story(order) == told


def test_a_place_that_another_agent_did_is_superseded_without_a_word(world: World) -> None:
    order = world.order(train=("a1",), test=())
    before_it_ran(world, order)
    old = backup(world.a)
    restore(world.a, MemoryLedger()._books)
    world.move("a1", to="b")
    world.hand_over(order, 0, to=world.b, sender=world.a)
    world.settle()
    told = world.story(order)

    restore(world.a, old)
    live_on(world, world.a)

    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, SUPERSEDED)
    assert world.a.runs() == []
    assert world.story(order) == told


@pytest.mark.parametrize("forge", ["another key", "another place", "another link"])
def test_a_receipt_that_does_not_hold_closes_nothing_as_done_and_lets_nothing_run(
    forge: str, world: World
) -> None:
    order = world.order(train=("a1", "b1"), test=())
    before_it_ran(world, order)
    old = backup(world.a)
    world.a.work()
    real = world.orchestrators.standing(order.order.id, world.a.keyid)
    receipt = world.a.ledger.receipts(order.digest)[0].receipt
    if forge == "another key":
        signed = sign_receipt(receipt, key_of("agent-b"))
    elif forge == "another place":
        signed = sign_receipt(replace(receipt, position=1), key_of("agent-a"))
    else:
        signed = sign_receipt(replace(receipt, previous=receipt.policy), key_of("agent-a"))
    forged = replace(real, receipts=(envelope_object(signed.envelope),))

    class Lying:
        """o1 shows another receipt than it acknowledged."""

        def __call__(self, order_id: OrderId, asker: KeyId) -> WholeStanding:
            return forged

    world.orchestrators.standing = Lying()  # type: ignore[method-assign]
    restore(world.a, old)
    ask(world.a)
    world.sweep()
    world.a.work()

    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, SUPERSEDED)
    assert world.a.runs() == ["train"]


def test_an_operator_may_end_it_by_force(world: World) -> None:
    order = world.order(train=("a1",), test=())
    before_it_ran(world, order)
    restore(world.a, backup(world.a))
    world.orchestrators.down.add(world.o2)
    ask(world.a)

    was_in_force = (force(world.a.host, 1000), force(world.a.host, 1000))
    world.orchestrators.down.clear()
    world.sweep()
    world.settle()

    assert was_in_force == (True, False)
    control = world.a.ledger.control()
    assert (control.mode, control.reason, control.uid) == (Mode.RUNNING, "forced", 1000)
    assert world.has_result(order)


def test_a_restored_host_asks_at_once_and_soon_again_and_others_slowly(world: World) -> None:
    reconciler = Reconciler(world.a.host)
    usual = reconciler.rest().total_seconds()
    restore(world.a, backup(world.a))
    first = reconciler.rest().total_seconds()
    world.orchestrators.down.add(world.o1)
    reconciler.run()
    again = reconciler.rest().total_seconds()
    world.orchestrators.down.clear()
    reconciler.run()
    after = reconciler.rest().total_seconds()

    assert 30 <= usual <= 90
    assert first == 0
    assert 2.5 <= again <= 5
    assert 600 <= after <= 1200


def test_one_process_of_a_host_asks_at_a_time(world: World) -> None:
    one, other = Reconciler(world.a.host), Reconciler(world.a.host)
    seen: list[object] = []
    real = world.orchestrators.ask

    def meanwhile(orchestrator: KeyId) -> KeyId:
        seen.append(other.run())
        return real(orchestrator)

    world.orchestrators.ask = meanwhile  # type: ignore[method-assign]

    assert one.run() is not None
    assert seen
    assert set(seen) == {None}


def test_a_usual_round_closes_what_is_known_to_be_done(world: World) -> None:
    """A ledger that was put back by hand, without a word that it is an old one."""
    order = world.order(**ONE_HOP)
    before_it_ran(world, order)
    old = backup(world.a)
    world.settle()
    books(world.a)._books = old
    world.a.forget_bells()

    done = ask(world.a)
    world.settle()

    assert done.closed == 1
    assert world.a.runs() == ["train"]


def test_a_sweep_of_a_restored_host_takes_nothing_away_and_rings_nothing(world: World) -> None:
    order = world.order(train=("a1",), test=())
    while_it_ran(world, order)
    world.pass_time(61)
    restore(world.a, backup(world.a))
    left = world.a.workspaces / "nobody's.1"
    left.mkdir()
    rung = len(world.a.broker.rings)

    world.a.sweep()

    assert left.is_dir()
    assert len(world.a.broker.rings) == rung
    assert world.a.job(order, 0).state is JobState.RUNNING


def test_a_peer_that_forgot_a_place_that_was_acknowledged_gets_nothing_though_the_order_is_open(
    world: World,
) -> None:
    order = world.order(train=("a1", "b1", "c1"), test=())
    world.peers.down.add(world.c.keyid)
    world.post(order, world.a)
    world.work()
    books(world.b)._books = MemoryLedger()._books

    assert ask(world.a).sent_again == 0
    assert world.b.runs() == ["train"]


def test_a_host_that_forgot_everything_without_saying_so_counts_its_reports_on(world: World) -> None:
    order = world.order(train=("a1",), test=())
    while_it_ran_and_was_told(world, order)
    books(world.a)._books = MemoryLedger()._books
    world.a.forget_bells()

    ask(world.a)
    world.settle()

    assert world.has_result(order)
    assert numbers(world, order) == [(0, world.a.keyid, n) for n in (1, 2, 3)]
    assert dead(world) == []


def test_an_order_that_comes_during_a_round_is_asked_about_before_anything_runs(world: World) -> None:
    order = world.order(**ONE_HOP)
    before_it_ran(world, order)
    world.settle()
    restore(world.a, MemoryLedger()._books)
    real = world.orchestrators.ask

    def meanwhile(orchestrator: KeyId) -> KeyId:
        if orchestrator == world.o2 and not world.a.jobs():  # o1 was asked already
            world.post(order, world.a)
        return real(orchestrator)

    world.orchestrators.ask = meanwhile  # type: ignore[method-assign]
    ask(world.a)
    is_waiting = is_restored(world.a)
    live_on(world, world.a)

    assert is_waiting
    assert world.a.runs() == ["train"]
    assert dead(world) == []
