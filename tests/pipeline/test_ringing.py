"""Every order that waits has its bell again after a crash, however many there are, and a sweep goes through a part of them."""

from collections.abc import Sequence

import pytest

from agent.domain.control import Control, Mode
from agent.domain.ids import JobId, OrderId
from agent.domain.orders import SignedOrder
from agent.errors import OutsideError
from agent.pipeline import ringing
from agent.pipeline.control import say
from agent.pipeline.resume import sweep
from agent.pipeline.ringing import Ringing, ring_first
from agent.ports.broker import Queue
from tests.builders import uuid_of
from tests.pipeline.world import World

COUNT = 9


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ringing, "PAGE", 2)
    monkeypatch.setattr(ringing, "AT_ONCE", 4)


def order_number(n: int, world: World) -> SignedOrder:
    return world.order(id=OrderId(uuid_of(f"order {n}")), train=("a1", "b1"), test=())


def posted(world: World) -> list[JobId]:
    """So many orders that wait to be placed at a; their bells are lost."""
    jobs = [world.post(order_number(n, world), world.a).job.id for n in range(COUNT)]
    world.a.forget_bells()
    return jobs


def rung(world: World, before: int) -> list[str]:
    return [ring.item for ring in world.a.broker.rings[before:]]


def test_the_first_sweep_of_a_process_rings_for_everything(world: World) -> None:
    jobs = posted(world)
    before = len(world.a.broker.rings)

    sweep(world.a.host, Ringing())

    assert rung(world, before) == jobs


def test_later_sweeps_go_on_where_the_one_before_ended_and_leave_nobody_out(world: World) -> None:
    jobs = posted(world)
    progress = Ringing()
    sweep(world.a.host, progress)
    parts = []

    for _ in range(4):
        world.a.forget_bells()
        before = len(world.a.broker.rings)
        sweep(world.a.host, progress)
        parts.append(rung(world, before))

    assert parts == [jobs[:4], jobs[4:8], jobs[8:], jobs[:4]]  # those in front keep nobody from his turn


def test_a_sweep_that_begins_anew_rings_for_everything_again(world: World) -> None:
    jobs = posted(world)
    progress = Ringing()
    sweep(world.a.host, progress)
    sweep(world.a.host, progress)
    world.a.forget_bells()
    before = len(world.a.broker.rings)

    progress.begin_anew()
    sweep(world.a.host, progress)

    assert rung(world, before) == jobs


def test_what_resumes_rings_for_the_first(world: World) -> None:
    jobs = posted(world)
    before = len(world.a.broker.rings)

    ring_first(world.a.host)

    assert rung(world, before) == jobs[:4]


def test_where_the_host_runs_again_the_next_sweep_rings_for_everything(world: World) -> None:
    jobs = posted(world)
    progress = Ringing()
    sweep(world.a.host, progress)
    sweep(world.a.host, progress)

    say(Control(mode=Mode.PAUSED, since=world.clock()), world.a.host)
    world.a.forget_bells()  # they were heard, and nothing might start
    before = len(world.a.broker.rings)
    sweep(world.a.host, progress)
    while_paused = rung(world, before)
    world.pass_time(1)
    say(Control(mode=Mode.RUNNING, since=world.clock()), world.a.host)
    world.a.forget_bells()
    before = len(world.a.broker.rings)
    sweep(world.a.host, progress)

    assert while_paused == jobs[4:8]
    assert rung(world, before) == jobs


def test_every_delivery_that_was_to_be_sent_is_rung_for(world: World) -> None:
    for n in range(3):
        world.post(order_number(n, world), world.a)
    world.a.work(Queue.LEARNUPLETS, Queue.LEARN_TASKS)
    world.a.forget_bells()
    before = len(world.a.broker.rings)

    sweep(world.a.host, Ringing())

    assert set(rung(world, before)) == {delivery.id for delivery in world.a.deliveries()}


def test_bells_that_cannot_be_rung_are_rung_by_a_later_sweep(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = posted(world)
    progress = Ringing()

    def refuse(queue: Queue, items: Sequence[str]) -> None:
        raise OutsideError("the file of the queues cannot be written")

    with monkeypatch.context() as broken:
        broken.setattr(world.a.broker, "ring_all", refuse)
        sweep(world.a.host, progress)
    before = len(world.a.broker.rings)
    for _ in range(3):
        sweep(world.a.host, progress)

    assert sorted(rung(world, before)) == sorted(jobs)
