"""A bell asks for whatever the ledger says is next, and a bell for nothing is harmless."""

import pytest

from agent.domain.ids import job_id
from agent.domain.jobs import JobEvent, JobState
from agent.errors import LostRace, NotFound, OutsideError
from agent.pipeline.advance import advance
from agent.ports.broker import Queue
from tests.builders import NOW
from tests.pipeline.world import Tapped, World, once


def test_one_bell_places_and_the_next_one_runs(world: World) -> None:
    order = world.order(train=("a1",), test=())
    job = world.post(order, world.a).job

    advance(job.id, world.a.host, "worker")
    placed = world.a.job(order, 0)
    advance(job.id, world.a.host, "worker")

    assert placed.state is JobState.QUEUED
    assert world.a.job(order, 0).state is JobState.ATTESTED


@pytest.mark.parametrize("bells", [1, 5])
def test_a_bell_for_a_job_that_is_over_does_nothing(bells: int, world: World) -> None:
    order = world.order(train=("a1",), test=())
    job = world.post(order, world.a).job
    world.settle()
    told = world.a.ledger.events()

    for _ in range(bells):
        advance(job.id, world.a.host, "worker")

    assert world.a.runs() == ["train"]
    assert world.a.ledger.events() == told


@pytest.mark.parametrize("event", [JobEvent.FAIL, JobEvent.CANCEL, JobEvent.EXPIRE])
def test_what_was_ended_while_its_bell_rang_does_not_go_on(event: JobEvent, world: World) -> None:
    order = world.order(train=("a1",), test=())
    job = world.post(order, world.a).job
    ended = world.a.ledger.move(job, event, NOW)

    world.settle()

    assert world.a.job(order, 0) == ended
    assert world.a.runs() == []


def test_a_bell_does_not_wake_a_task_that_rests(world: World) -> None:
    order = world.order(train=("a1",), test=())
    job = world.post(order, world.a).job
    world.a.work(Queue.LEARNUPLETS)
    world.a.runtime.is_down = True
    world.a.work(Queue.LEARN_TASKS)
    world.a.runtime.is_down = False

    advance(job.id, world.a.host, "worker")

    assert world.a.job(order, 0).state is JobState.QUEUED
    assert world.a.runs() == []


@pytest.mark.parametrize("to", ["a", "c"])
def test_a_bell_for_a_job_that_goes_elsewhere_does_not_place_it_again(to: str, world: World) -> None:
    order = world.order(train=("b1",), test=())
    job = world.post(order, world.a).job
    advance(job.id, world.a.host, "worker")
    world.move("b1", to=to)

    advance(job.id, world.a.host, "worker")

    assert world.a.job(order, 0).next_agent == world.b.keyid
    assert len(world.a.deliveries()) == 1


def test_a_bell_for_an_unknown_job_is_said_to_be_one(world: World) -> None:
    with pytest.raises(NotFound):
        advance(job_id(world.order().order.id, 0), world.a.host, "worker")


def test_queues_that_cannot_be_written_lose_bells_and_nothing_else(world: World) -> None:
    order = world.order(train=("a1", "a2"), test=())
    before = world.a.host

    def be_full(_: str) -> None:
        raise OutsideError("the disk with the queues is full")

    world.a.ports(broker=Tapped(before.ports.broker, before=be_full))
    job = world.post(order, world.a).job
    for _ in range(2):
        advance(job.id, world.a.host, "worker")
    attested = world.a.job(order, 0)
    world.a.sweep()
    world.a.host = before
    world.pass_time(1)
    world.a.sweep()
    world.settle()

    assert attested.state is JobState.ATTESTED
    assert world.has_result(order)
    assert world.a.runs() == ["train", "train"]


def test_who_is_placed_by_another_at_the_same_moment_stops(world: World) -> None:
    order = world.order(train=("a1",), test=())
    job = world.post(order, world.a).job
    before = world.a.host

    def be_overtaken() -> None:
        advance(job.id, before, "another worker")

    world.a.ports(ledger=Tapped(before.ports.ledger, before=once("move", be_overtaken)))
    advance(job.id, world.a.host, "worker")

    assert world.a.job(order, 0).state is JobState.QUEUED
    assert len(world.a.rung(Queue.LEARN_TASKS)) == 1


def test_a_lost_race_is_no_error_of_a_bell(world: World) -> None:
    order = world.order(train=("b1",), test=())
    job = world.post(order, world.a).job

    def lose() -> None:
        raise LostRace("another worker was quicker")

    world.a.ports(ledger=Tapped(world.a.ledger, before=once("redirect", lose)))
    advance(job.id, world.a.host, "worker")

    assert world.a.deliveries() == ()
