"""A task's first container is made while its inputs come: what is there when, and what becomes of it when they do not come."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from agent.domain.jobs import JobState
from agent.domain.orders import SignedOrder
from agent.pipeline import frame as module
from agent.pipeline.advance import advance
from agent.pipeline.host import InForce, Trusted
from agent.ports.broker import Queue
from agent.ports.together_threads import ThreadsTogether
from agent.trust.policy import HostPolicy
from tests.builders import dataset, key_of, policy_text
from tests.fakes.runtime import Guest
from tests.pipeline.world import (
    LEASE,
    SMALL,
    Hospital,
    Tapped,
    World,
    append_what_it_sees,
    die,
    once,
    plaintext,
)

WITHOUT_IMAGES = policy_text(orchestrators=[key_of("o1").keyid], images=[], rest=SMALL)


@pytest.fixture
def threads() -> Iterator[ThreadsTogether]:
    made = ThreadsTogether()
    yield made
    made.close()


def placed_at_a(world: World) -> SignedOrder:
    """An order whose first task waits for a worker at a."""
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    return order


def while_the_dataset_comes(hospital: Hospital, happen: Callable[[], object]) -> None:
    """This happens when the container is made and the dataset is asked for."""
    storage = hospital.host.ports.storage
    hospital.ports(storage=Tapped(storage, before=once("open_dataset", happen)))


def test_the_container_is_there_before_the_dataset_and_its_program_only_after_it(world: World) -> None:
    order = placed_at_a(world)
    seen: list[tuple[list[bool], int]] = []
    read: list[bytes] = []

    def look() -> None:
        left = world.a.runtime.leftovers()
        seen.append(([one.is_running for one in left], len(world.a.runtime.specs)))

    def algorithm(guest: Guest) -> None:
        read.append(guest.read(f"/data/train/{dataset('a1').id}"))
        append_what_it_sees(guest)

    world.algo = algorithm
    while_the_dataset_comes(world.a, look)

    world.a.work(Queue.LEARN_TASKS)

    assert seen == [([False], 0)]
    assert read == [plaintext("a1").encode()]
    assert world.a.runtime.specs == world.a.runtime.frames
    assert world.a.job(order, 0).state is JobState.ATTESTED


def test_only_the_first_run_of_a_task_is_made_ahead_and_it_is_the_one_that_runs(world: World) -> None:
    world.post(world.order(train=(), test=("a1",)), world.a)

    world.settle()

    assert world.a.runs() == ["detarget", "predict", "perf"]
    assert world.a.runtime.frames == world.a.runtime.specs[:1]


def test_a_share_that_is_withheld_takes_the_container_away_again(
    world: World, threads: ThreadsTogether
) -> None:
    world.orchestrators.withheld.add((world.o2, dataset("a1").id))
    world.a.ports(together=threads)
    order = placed_at_a(world)

    world.settle()

    assert len(world.a.runtime.frames) == 1
    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, "share-withheld")
    assert world.a.runs() == []
    assert world.a.leftovers() == []


def test_a_cancellation_meanwhile_leaves_no_container_and_nothing_runs(world: World) -> None:
    order = placed_at_a(world)

    def cancelled() -> None:
        world.cancel(order, world.a)
        world.a.work(Queue.CANCELLATIONS)  # as another thread of the worker does
        assert [left.name for left in world.a.runtime.leftovers()] == []

    while_the_dataset_comes(world.a, cancelled)

    world.settle()

    assert world.a.job(order, 0).state is JobState.CANCELLED
    assert world.a.runs() == []
    assert world.a.leftovers() == []


def test_a_container_that_somebody_removed_meanwhile_is_made_anew(world: World) -> None:
    order = placed_at_a(world)

    def removed() -> None:
        (left,) = world.a.runtime.leftovers()
        world.a.runtime.remove(left.name)

    while_the_dataset_comes(world.a, removed)

    world.settle()

    assert world.a.job(order, 0).state is JobState.DONE
    assert world.a.runs() == ["train"]
    assert world.a.leftovers() == []


def test_an_image_that_the_policy_lost_meanwhile_does_not_run_though_its_container_is_there(
    world: World,
) -> None:
    host = world.a.host
    in_force = InForce(Trusted(host.roster, host.policy))
    world.a.host = replace(host, in_force=in_force)
    order = placed_at_a(world)
    newer = Trusted(host.roster, HostPolicy.from_toml(WITHOUT_IMAGES))
    while_the_dataset_comes(world.a, lambda: in_force.exchange(newer))

    world.settle()

    assert len(world.a.runtime.frames) == 1
    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, "policy-refused")
    assert world.a.runs() == []
    assert world.a.leftovers() == []


def test_an_engine_that_fails_to_make_it_ahead_fails_no_task(world: World) -> None:
    order = placed_at_a(world)

    def away() -> None:
        world.a.runtime.is_down = True

    def back() -> None:
        world.a.runtime.is_down = False

    world.a.ports(runtime=Tapped(world.a.runtime, before=once("framed", away)))
    while_the_dataset_comes(world.a, back)

    world.settle()

    assert world.a.job(order, 0).state is JobState.DONE
    assert world.a.job(order, 0).attempt == 1
    assert world.a.runtime.frames == []


def test_no_place_is_taken_while_much_data_comes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SOON_BYTES", 1)
    order = placed_at_a(world)

    world.settle()

    assert world.a.runtime.frames == []
    assert world.a.job(order, 0).state is JobState.DONE


def test_the_sweep_removes_the_container_of_a_worker_that_died_when_its_attempt_is_over(
    world: World,
) -> None:
    order = placed_at_a(world)
    frames: list[str] = []

    def killed() -> None:
        world.a.runtime.is_worker_gone = True
        frames.extend(left.name for left in world.a.runtime.leftovers())
        raise KeyboardInterrupt

    while_the_dataset_comes(world.a, killed)
    with pytest.raises(KeyboardInterrupt):
        world.a.work(Queue.LEARN_TASKS)
    left = [one.name for one in world.a.runtime.leftovers()]

    world.cancel(order, world.a)
    world.a.forget_bells()
    world.a.sweep()

    assert left == frames != []
    assert world.a.job(order, 0).state is JobState.CANCELLED
    assert world.a.leftovers() == []


def test_a_worker_that_took_over_and_slept_lets_the_container_run_of_who_took_over_from_it(
    world: World,
) -> None:
    """It knows of no run yet, and would take what runs by now for what a dead worker made ahead."""
    order = placed_at_a(world)
    runtime, ledger = world.a.runtime, world.a.ledger
    die(world.a, "begin_step")
    world.pass_time(LEASE.total_seconds())
    (frame,) = runtime.frames
    seen: list[list[str]] = []

    def another_begins_it() -> None:
        world.pass_time(LEASE.total_seconds())
        ledger.adopt(world.a.job(order, 0), world.clock(), worker="next", lease_until=world.clock() + LEASE)
        runtime.remove(frame.name)
        runtime.leave_running(frame)
        seen.append(world.a.leftovers())

    world.a.ports(ledger=Tapped(ledger, before=once("verdict_on", another_begins_it)))
    advance(world.a.job(order, 0).id, world.a.host, "slow")

    assert seen == [world.a.leftovers()] != [[]]
    assert world.a.job(order, 0).worker == "next"
