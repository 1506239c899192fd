"""Attempts lost, doubled, endless or uncounted: workers that die, stall or stumble, and what changed while they were away."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agent.domain.jobs import JobState
from agent.domain.orders import SignedOrder
from agent.errors import AgentError, LedgerUnavailable, NoSpace, RuntimeUnavailable, StorageUnavailable
from agent.pipeline.advance import advance
from agent.ports.broker import Queue
from agent.ports.ledger import ATTEMPT_FAILED
from tests.builders import DAY, NOW, changed
from tests.fakes.runtime import Guest
from tests.pipeline.world import LEASE, Hospital, Tapped, World, append_what_it_sees, die, once

LEASE_S = LEASE.total_seconds()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def queued_at_a(world: World, **changes: Any) -> SignedOrder:
    """An order of one training, to be begun at a."""
    wanted: dict[str, Any] = {"train": ("a1",), "test": ()} | changes
    order = world.order(**wanted)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    return order


def failing(error: AgentError) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def go_on(world: World, order: SignedOrder, position: int = 0) -> None:
    """The bell rings at a once more, when every lease and rest is over."""
    world.pass_time(400)
    with suppress(AgentError):
        advance(world.a.job(order, position).id, world.a.host, "next")


# ------------------------------------------------------------------ a ledger that stumbles


STUMBLES = [("end_step", 1), ("begin_step", 1), ("end_step", 2), ("end_step", 3), ("move", 1)]


@pytest.mark.parametrize(("at", "nth"), STUMBLES)
def test_a_ledger_that_stumbles_once_costs_neither_the_attempt_nor_the_training(
    at: str, nth: int, world: World
) -> None:
    """Promise 3: one call fails (a lock that was held too long), the next one answers. What was trained is there still."""
    order = queued_at_a(world, max_attempts=1)
    before, left = world.a.host, [nth]

    def stumble(called: str) -> None:
        left[0] -= called == at
        if called == at and left[0] == 0:
            raise LedgerUnavailable("the ledger was locked for too long")

    world.a.ports(ledger=Tapped(before.ports.ledger, before=stumble))
    with pytest.raises(LedgerUnavailable):
        advance(world.a.job(order, 0).id, world.a.host, "worker")
    world.a.host = before
    world.settle()

    assert (world.a.job(order, 0).state, world.a.job(order, 0).attempt) == (JobState.DONE, 1)
    assert world.a.runs() == ["train"]
    assert world.a.leftovers() == []


# ------------------------------------------------------------------ what changed while nobody had it in hand


def before_the_first_run(world: World, **changes: Any) -> SignedOrder:
    """An order whose worker died when everything lay in the workspace and nothing ran yet."""
    order = queued_at_a(world, **changes)
    die(world.a, "begin_step", 1)
    assert world.a.runs() == []
    return order


def test_a_key_that_was_revoked_since_the_inputs_came_runs_nothing(world: World) -> None:
    """Promise 2: the operator takes an orchestrator off the roster and restarts the worker."""
    order = before_the_first_run(world)
    world.a.trusts(changed(world.people.roster, order.signer, revoked_at=NOW))

    go_on(world, order)

    assert world.a.runs() == []
    assert world.a.job(order, 0).state is JobState.FAILED
    assert list(world.a.workspaces.iterdir()) == []


def test_an_order_that_expired_since_the_inputs_came_runs_nothing(world: World) -> None:
    """Promise 2: the worker was away for days, its workspace was not."""
    order = before_the_first_run(world)
    world.clock.moment = order.order.expires + DAY

    go_on(world, order)

    assert world.a.runs() == []
    assert world.a.job(order, 0).state is JobState.FAILED
    assert world.a.job(order, 0).reason == "order-expired"
    assert list(world.a.workspaces.iterdir()) == []


# ------------------------------------------------------------------ endless


def test_a_step_that_a_newer_version_cannot_read_costs_the_attempt_and_not_the_order(world: World) -> None:
    """Promise 1: a record of an older version that this one cannot read must not stop its order for ever."""
    order = queued_at_a(world, max_attempts=1)
    die(world.a, "begin_step", 1)
    job = world.a.job(order, 0)
    world.a.ledger.end_step(job, "inputs", world.clock(), b'{"of": "another version"}')

    for _ in range(4):
        go_on(world, order)
    world.a.sweep()

    assert world.a.job(order, 0).state is JobState.FAILED
    assert list(world.a.workspaces.iterdir()) == []


@pytest.mark.parametrize("at", ["put_blob", "adopt"])
def test_a_task_that_takes_every_worker_with_it_ends_with_its_order(at: str, world: World) -> None:
    """Promise 6: sending, or adopting, kills whoever does it, again and again. It must not go on after the order's end."""
    order = queued_at_a(world)
    if at == "adopt":
        die(world.a, "wait")
    for _ in range(40):
        world.pass_time(LEASE_S + 1)
        if world.a.job(order, 0).state is JobState.RUNNING or at == "put_blob":
            die_at(world.a, at)
    world.clock.moment = order.order.expires + DAY
    for _ in range(20):
        world.pass_time(400)
        die_at(world.a, at)

    assert world.a.job(order, 0).is_final


def die_at(hospital: Hospital, at: str) -> None:
    """As `die`, at this call of storage or the engine, where it is reached."""
    alive, ledger = hospital.host, hospital.ledger

    def tap(called: str) -> None:
        if called == at:
            ledger.is_broken = True  # type: ignore[attr-defined]
            raise LedgerUnavailable("its worker is gone")

    ports = alive.ports
    hospital.ports(storage=Tapped(ports.storage, before=tap), runtime=Tapped(ports.runtime, before=tap))
    for job in hospital.jobs():
        with suppress(LedgerUnavailable):
            advance(job.id, hospital.host, "dead")
    ledger.is_broken = False  # type: ignore[attr-defined]
    hospital.host = alive
    hospital.forget_bells()


# ------------------------------------------------------------------ said of an attempt that is another's


def test_who_wakes_up_late_says_nothing_of_an_attempt_that_is_anothers(world: World) -> None:
    """Promises 5 and 6: the codes of attempts that ended decide about retries; only who has the attempt says how it ended."""
    order = queued_at_a(world)

    def stall(guest: Guest) -> None:
        job = world.a.job(order, 0)
        now = world.clock() + 2 * LEASE
        world.a.ledger.adopt(job, now, worker="another", lease_until=now + LEASE)
        append_what_it_sees(guest)

    world.algo = stall
    world.a.ports(
        runtime=Tapped(
            world.a.host.ports.runtime, after=once("wait", failing(NoSpace("no room, said who stalled")))
        )
    )
    advance(world.a.job(order, 0).id, world.a.host, "worker")

    assert world.a.job(order, 0).worker == "another"
    assert ATTEMPT_FAILED not in world.a.events()
    assert len(list(world.a.workspaces.iterdir())) == 1


def test_an_engine_that_is_away_hides_no_fault_of_the_job(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 3: the job's own fault is not tried again, though its workspace could not be removed at once."""

    def fail(guest: Guest) -> int:
        return 3

    world.algo = fail
    order = queued_at_a(world)
    break_removal(monkeypatch)

    advance(world.a.job(order, 0).id, world.a.host, "worker")
    monkeypatch.undo()

    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, "exit:3")
    world.settle()
    world.a.sweep()
    assert world.a.leftovers() == []


def test_an_attested_task_did_not_fail_because_its_workspace_stayed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = queued_at_a(world, train=("a1", "a2"))
    break_removal(monkeypatch)

    advance(world.a.job(order, 0).id, world.a.host, "worker")
    monkeypatch.undo()

    assert world.a.job(order, 0).state is JobState.ATTESTED
    assert ATTEMPT_FAILED not in world.a.events()
    assert world.a.rung(Queue.LEARN_TASKS)[-1].item == world.a.job(order, 1).id


def break_removal(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise RuntimeUnavailable("the engine does not answer")

    monkeypatch.setattr("agent.pipeline.workspace.remove_folder", away)


# ------------------------------------------------------------------ parked


def test_what_waits_to_be_sent_ends_with_its_order_and_leaves_nothing(world: World) -> None:
    order = queued_at_a(world)
    world.a.ports(
        storage=Tapped(
            world.a.host.ports.storage, before=once("put_blob", failing(StorageUnavailable("away")))
        )
    )
    advance(world.a.job(order, 0).id, world.a.host, "worker")
    assert world.a.job(order, 0).worker is None

    world.cancel(order, world.a)
    world.a.sweep()

    assert world.a.job(order, 0).state is JobState.CANCELLED
    assert world.a.leftovers() == []
