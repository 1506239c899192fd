"""Garbage goes in its order, when it is its time or room is short, and one step that fails holds up no other."""

import os
from datetime import timedelta

import pytest

from agent.domain.control import Control, Mode
from agent.domain.jobs import JobState
from agent.domain.orders import SignedOrder
from agent.domain.reports import ReportState
from agent.domain.retries import dice
from agent.errors import LedgerFull, NotFound, OrderExpired, RuntimeUnavailable
from agent.pipeline.garbage import BUILD_PREFIX, BUILDS, Gone, Kind, building
from agent.pipeline.resume import tidy
from agent.ports.broker import Queue
from tests.pipeline.world import POLICY, Hospital, Tapped, World

DAY = timedelta(days=1)


def done(world: World) -> SignedOrder:
    """An order that is done, told and a day older than it needs to be."""
    order = world.order(train=("a1",), test=("a2",))
    world.post(order, world.a)
    world.work()
    assert world.a.job(order, 1).state is JobState.DONE
    return order


def its_minute(world: World) -> None:
    """The minute of the hour in which this host looks for what is over."""
    world.clock.moment = world.clock.moment.replace(minute=int(60 * dice(world.a.keyid)))


def counts(gone: tuple[Gone, ...]) -> dict[Kind, int]:
    return {one.kind: one.count for one in gone}


def logs_of(hospital: Hospital, order: SignedOrder) -> int:
    return len(hospital.ledger.logs(order.order.id))


# ------------------------------------------------------------------ by age


def test_about_hourly_logs_and_bodies_go_that_are_old_enough(world: World) -> None:
    order = done(world)
    world.clock.moment += 31 * DAY

    world.clock.moment = world.clock.moment.replace(minute=(int(60 * dice(world.a.keyid)) + 1) % 60)
    world.a.sweep()
    assert logs_of(world.a, order) == 4

    its_minute(world)
    world.a.sweep()
    assert logs_of(world.a, order) == 0
    assert {d.body for d in world.a.deliveries()} == {b""}
    assert world.a.events()[-1] == "garbage.collected"


def test_an_order_goes_a_year_after_its_end_and_is_then_refused_as_expired(world: World) -> None:
    order = done(world)
    world.clock.moment += 364 * DAY
    its_minute(world)
    world.a.sweep()
    assert world.a.job(order, 0).state is JobState.DONE

    world.clock.moment += 2 * DAY
    world.a.sweep()

    with pytest.raises(NotFound):
        world.a.job(order, 0)
    with pytest.raises(OrderExpired):
        world.post(order, world.a)
    world.clock.moment -= 366 * DAY  # a clock that was set back is no way round
    with pytest.raises(OrderExpired):
        world.post(order, world.a)
    with pytest.raises(OrderExpired):
        world.hand_over(order, 1, to=world.a)
    assert world.a.jobs() == ()


def test_nothing_that_is_open_goes_however_old_it_is_and_however_full_the_disk(world: World) -> None:
    order = world.order(train=("a1",), test=("b1",))
    world.orchestrators.down.add(world.o1)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    world.a.rules(low_disk_bytes=1 << 60, log_age=timedelta(0), order_age=timedelta(0))
    world.clock.moment += 400 * DAY

    tidy(world.a.host, is_asked=True)

    assert world.a.job(order, 0).state is JobState.QUEUED
    assert world.a.ledger.order(order.order.id).digest == order.digest


def test_of_a_restored_ledger_nothing_goes_not_even_when_asked(world: World) -> None:
    order = done(world)
    world.clock.moment += 400 * DAY
    world.a.ledger.set_control(Control(mode=Mode.RESTORED), world.clock())

    gone = tidy(world.a.host, is_asked=True)

    assert [one.failed is not None for one in gone] == [True]
    assert world.a.job(order, 0).state is JobState.DONE
    assert logs_of(world.a, order) == 4


# ------------------------------------------------------------------ below the low mark


def test_below_the_low_mark_logs_of_what_ended_go_at_once_and_orders_stay(world: World) -> None:
    order = done(world)
    world.clock.moment = world.clock.moment.replace(minute=(int(60 * dice(world.a.keyid)) + 1) % 60)
    world.clock.moment += timedelta(hours=1)
    world.a.sweep()
    assert logs_of(world.a, order) == 4

    world.a.rules(low_disk_bytes=1 << 60)
    world.a.sweep()

    assert logs_of(world.a, order) == 0
    assert world.a.job(order, 0).state is JobState.DONE


# ------------------------------------------------------------------ each step by itself


def test_an_engine_that_is_away_keeps_the_ledger_from_nothing(world: World) -> None:
    order = done(world)
    world.clock.moment += 31 * DAY
    its_minute(world)
    world.a.runtime.is_down = True

    with pytest.raises(RuntimeUnavailable):
        world.a.sweep()

    assert logs_of(world.a, order) == 0


def test_the_operator_is_told_what_stays(world: World) -> None:
    done(world)
    world.a.runtime.is_down = True

    gone = tidy(world.a.host, is_asked=True)

    assert {one.kind for one in gone if one.failed} == {Kind.WORKSPACES, Kind.IMAGES}


def test_a_ledger_that_takes_no_write_keeps_no_folder_from_going(world: World) -> None:
    left = world.a.workspaces / "e7aa231d-09a6-509c-9aa2-ea51b3c030fe.0.1"
    left.mkdir()

    def refuse(call: str) -> None:
        if call in {"correct_clock", "record_event", "forget_nonces", "collect"}:
            raise LedgerFull("the test filled it")

    world.a.ports(ledger=Tapped(world.a.ledger, before=refuse))
    with pytest.raises(LedgerFull):
        world.a.sweep()

    assert not left.exists()


def test_a_rehearsal_changes_nothing_and_tells_what_would_go(world: World) -> None:
    order = done(world)
    world.clock.moment += 400 * DAY
    left = world.a.spool / "e7aa231d-09a6-509c-9aa2-ea51b3c030fe.9.1"
    left.mkdir()
    (left / "image").write_bytes(bytes(10_000))
    before = (world.a.ledger.events(), world.a.jobs())

    would = tidy(world.a.host, is_asked=True, is_rehearsal=True)

    assert (world.a.ledger.events(), world.a.jobs()) == before
    assert left.exists()
    assert logs_of(world.a, order) == 4
    told = counts(would)
    assert (told[Kind.LOGS], told[Kind.ORDERS], told[Kind.WORKSPACES]) == (4, 1, 1)
    did = counts(tidy(world.a.host, is_asked=True))
    assert {kind: did[kind] for kind in told} == told


def test_a_build_that_was_killed_goes_and_one_that_goes_on_stays(world: World) -> None:
    with building(world.a.spool, is_made=True) as work:
        assert work is not None
        folder = work / f"{BUILD_PREFIX}x"
        folder.mkdir()
        world.a.sweep()
        assert folder.exists()

    world.a.sweep()

    assert not folder.exists()
    assert os.listdir(world.a.spool / BUILDS) == ["lock"]


# ------------------------------------------------------------------ a task that found the disk full


def test_a_task_that_finds_the_disk_full_is_tried_once_more_after_garbage_went(
    world: World,
) -> None:
    order = world.order(train=("a1",), test=(), max_attempts=5)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    world.a.allows(POLICY.replace("8388608", str(1 << 53)))
    world.a.work(Queue.LEARN_TASKS)
    job = world.a.job(order, 0)
    assert (job.state, job.attempt, job.reason) == (JobState.QUEUED, 1, "no-space")
    left = world.a.workspaces / "e7aa231d-09a6-509c-9aa2-ea51b3c030fe.9.1"
    left.mkdir()

    world.pass_time(61)
    world.a.work(Queue.LEARN_TASKS)

    assert not left.exists()
    job = world.a.job(order, 0)
    assert (job.state, job.attempt, job.reason) == (JobState.FAILED, 2, "no-space")
    world.work()
    assert [told.reason for told in world.told(order, ReportState.FAILED)] == ["no-space"]
