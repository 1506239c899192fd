"""Pause, drain, resume: whether tasks start and orders are taken, and that what runs ends by itself."""

import pytest

from agent.domain.control import Control, Mode
from agent.domain.ids import OrderId
from agent.domain.jobs import JobState
from agent.errors import Draining, HostRestored, LostRace
from agent.pipeline.control import say, standing
from agent.ports.broker import Queue
from tests.builders import NOW, uuid_of
from tests.fakes.runtime import Guest
from tests.pipeline.world import Hospital, World, append_what_it_sees


def told(mode: Mode, at: Hospital) -> bool:
    return say(Control(mode=mode, since=NOW, reason="a new disk", uid=1000), at.host)


def test_a_paused_host_takes_orders_and_starts_no_task_until_it_is_resumed(world: World) -> None:
    order = world.order(train=("a1",), test=())
    told(Mode.PAUSED, world.a)

    world.post(order, world.a)
    world.work()
    world.pass_time(61)
    world.a.sweep()
    world.work()
    waiting = world.a.job(order, 0).state
    told(Mode.RUNNING, world.a)
    world.a.work()  # no sweep was needed

    assert waiting is JobState.QUEUED
    assert world.a.job(order, 0).state is JobState.DONE
    assert [name for name in world.a.events() if name.startswith("host.")] == ["host.paused", "host.running"]


@pytest.mark.parametrize("mode", [Mode.PAUSED, Mode.DRAINING])
def test_what_runs_ends_by_itself_and_is_delivered(world: World, mode: Mode) -> None:
    order = world.order(train=("a1", "a2"), test=())
    world.post(order, world.a)

    def algorithm(guest: Guest) -> None:
        told(mode, world.a)
        append_what_it_sees(guest)

    world.algo = algorithm
    world.work()

    assert world.a.job(order, 0).state is JobState.DONE
    assert world.a.job(order, 1).state is JobState.QUEUED
    assert world.story(order) == [(0, "started"), (0, "done")]


def test_a_draining_host_takes_nothing_new_and_knows_what_it_took(world: World) -> None:
    order = world.order(train=("a1",), test=())
    other = world.order(train=("b1", "a1"), test=(), id=OrderId(uuid_of("other")))
    world.post(order, world.a)
    told(Mode.DRAINING, world.a)

    again = world.post(order, world.a)
    with pytest.raises(Draining):
        world.post(other, world.a)
    with pytest.raises(Draining):
        world.hand_over(other, 1, to=world.a)

    assert again.is_repeat
    assert len(world.a.jobs()) == 1


def test_a_hand_off_to_a_draining_host_waits_and_arrives_after_it(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=())
    told(Mode.DRAINING, world.b)
    world.post(order, world.a)
    world.work()
    before = world.b.jobs()

    told(Mode.RUNNING, world.b)
    world.settle()

    assert before == ()
    assert world.b.job(order, 1).state is JobState.DONE


def test_a_start_that_was_decided_before_the_pause_and_comes_after_it_loses(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    job = world.a.job(order, 0)
    told(Mode.PAUSED, world.a)

    with pytest.raises(LostRace):
        world.a.ledger.start(job, world.clock(), worker="w", lease_until=world.clock())

    assert world.a.job(order, 0) == job


def test_the_same_word_again_is_no_news(world: World) -> None:
    first, again = told(Mode.PAUSED, world.a), told(Mode.PAUSED, world.a)

    assert (first, again) == (True, False)
    assert world.a.events() == ["host.paused"]
    assert standing(world.a.host).control.reason == "a new disk"


@pytest.mark.parametrize("mode", [Mode.PAUSED, Mode.DRAINING, Mode.RUNNING])
def test_a_restored_host_changes_by_force_alone(world: World, mode: Mode) -> None:
    world.a.ledger.set_control(Control(mode=Mode.RESTORED), NOW)

    with pytest.raises(HostRestored):
        told(mode, world.a)
    say(Control(mode=mode), world.a.host, is_forced=True)

    assert world.a.ledger.control().mode is mode
