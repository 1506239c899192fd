"""What a crash or a lost bell left behind is taken up again by the next sweep, and what is at work is let alone."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.domain.ceilings import DEFAULT_CEILINGS
from agent.domain.control import Control, Mode
from agent.domain.jobs import Job, JobEvent, JobState
from agent.domain.orders import SignedOrder
from agent.domain.receipts import Outcome, Receipt
from agent.domain.reports import ReportState
from agent.errors import RuntimeUnavailable
from agent.pipeline.advance import advance
from agent.pipeline.garbage import ON_ITS_WAY
from agent.pipeline.journal import MOST_TRIES
from agent.pipeline.run import ATTEMPT_LABEL, JOB_LABEL
from agent.pipeline.workspace import folder_name
from agent.ports.broker import Queue
from agent.ports.ledger import DeliveryKind
from agent.ports.runtime import Leftover, RunKind, RunSpec
from tests.builders import NOW
from tests.fakes.broker import Ring
from tests.fakes.runtime import Guest, Program
from tests.pipeline.world import ALGO, LEASE, POLICY, Hospital, Tapped, World, append_what_it_sees, die, once

LEASE_S = LEASE.total_seconds()


def container_of(job: Job, *, name: str = "train") -> RunSpec:
    """The container that an attempt of this job makes."""
    return RunSpec(
        name=f"dc-{job.id}-{job.attempt}-{name}",
        labels={JOB_LABEL: job.id, ATTEMPT_LABEL: str(job.attempt)},
        image=ALGO,
        kind=RunKind.TRAIN,
        args=(),
        mounts=(),
        ceilings=DEFAULT_CEILINGS,
    )


def running_at_a(world: World, **changes: Any) -> SignedOrder:
    """An order whose first task a worker at a took, before it died: its container and its folders are still there."""
    order = world.order(train=("a1", "b1"), test=(), **changes)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    job = world.a.ledger.start(world.a.job(order, 0), world.clock(), worker="dead", lease_until=NOW + LEASE)
    leave_behind(world.a, job)
    world.a.forget_bells()
    return order


def leave_behind(hospital: Hospital, job: Job, *, attempt: int | None = None) -> None:
    """A container and folders of an attempt that nobody has in hand."""
    job = replace(job, attempt=job.attempt if attempt is None else attempt)
    hospital.runtime.leave_behind(container_of(job))
    for root in (hospital.workspaces, hospital.spool):
        folder = root / folder_name(job.id, job.attempt)
        folder.mkdir(mode=0o700)
        (folder / "dataset.partial").write_text("plaintext")


# ------------------------------------------------------------------ lost bells


def test_the_lost_bell_of_a_received_order_is_rung_again(world: World) -> None:
    order = world.order()
    job = world.post(order, world.a).job
    world.a.forget_bells()

    world.a.sweep()

    assert world.a.broker.rings[1:] == [Ring(Queue.LEARNUPLETS, job.id, 0.0)]


def test_the_lost_bell_of_a_queued_task_is_rung_again(world: World) -> None:
    order = world.order()
    job = world.post(order, world.a).job
    world.a.work(Queue.LEARNUPLETS)
    world.a.forget_bells()

    world.a.sweep()

    assert world.a.broker.rings[-1] == Ring(Queue.LEARN_TASKS, job.id, 0.0)


def test_the_lost_bells_of_deliveries_are_rung_again(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS, Queue.LEARN_TASKS)
    world.a.forget_bells()
    before = len(world.a.broker.rings)

    world.a.sweep()

    rung = world.a.broker.rings[before:]
    assert {ring.item for ring in rung} == {delivery.id for delivery in world.a.deliveries()}
    assert {ring.queue for ring in rung} == {Queue.DELIVERIES}


def test_sweeps_alone_bring_an_order_to_its_end_though_every_other_bell_is_lost(world: World) -> None:
    order = world.order()
    world.post(order, world.a)

    for _ in range(30):
        for hospital in world:
            answer_the_sweep_alone(hospital)
        world.pass_time(LEASE_S + 1)

    assert world.is_quiet
    assert world.has_result(order)
    assert [len(hospital.runs()) for hospital in world] == [2, 1, 4]


def answer_the_sweep_alone(hospital: Hospital) -> None:
    """Answer the bells that a sweep rings; all that rang before it or rings because of them is lost."""
    hospital.forget_bells()
    before = len(hospital.broker.rings)
    hospital.sweep()
    rung = hospital.broker.rings[before:]
    hospital.forget_bells()
    for ring in rung:
        hospital.handlers()[ring.queue](ring.item)


def test_what_rests_is_not_rung_before_its_time(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    world.storages.down.add(world.a.storage)
    world.a.work(Queue.LEARN_TASKS)
    world.a.forget_bells()
    before = len(world.a.rung(Queue.LEARN_TASKS))

    world.a.sweep()
    too_early = len(world.a.rung(Queue.LEARN_TASKS)) - before
    world.pass_time(40)
    world.a.sweep()

    assert too_early == 0
    assert len(world.a.rung(Queue.LEARN_TASKS)) - before == 1


def test_an_order_that_waits_for_its_hand_off_alone_is_not_rung(world: World) -> None:
    order = world.order(train=("b1",), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    world.a.forget_bells()
    before = len(world.a.rung(Queue.LEARNUPLETS))

    world.a.sweep()

    assert len(world.a.rung(Queue.LEARNUPLETS)) == before
    assert world.a.rung(Queue.DELIVERIES)[-1].item == world.a.delivery(DeliveryKind.HANDOFF).id


def test_a_sweep_of_nothing_rings_nothing(world: World) -> None:
    world.a.sweep()

    assert world.a.broker.rings == []


# ------------------------------------------------------------------ a worker that died


def placed_at_a(world: World, train: tuple[str, ...] = ("a1", "b1"), **changes: Any) -> SignedOrder:
    """An order whose first task waits for a worker at a."""
    order = world.order(train=train, test=(), **changes)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    return order


DEATHS = (
    ("job", 2),  # before anything
    ("start", 1),
    ("end_step", 1),  # with its inputs in the workspace
    ("begin_step", 1),
    ("end_step", 2),  # while it waits for the container
    ("end_step", 3),  # with its output packed
    ("move", 1),  # with its output sent
)


@pytest.mark.parametrize(("at", "nth"), DEATHS)
def test_a_worker_that_dies_costs_neither_an_attempt_nor_a_training(at: str, nth: int, world: World) -> None:
    order = placed_at_a(world)
    die(world.a, at, nth)

    world.settle()

    (receipt, _) = world.b.ledger.receipts(order.digest)
    assert receipt.receipt.attempt == 1
    assert world.a.runs() == ["train"]
    assert [told.attempt for told in world.told(order, ReportState.DONE)] == [1, 1]
    assert world.told(order, ReportState.ATTEMPT) == []
    assert world.a.job(order, 0).state is JobState.DONE
    assert world.has_result(order)
    assert world.a.leftovers() == []


@pytest.mark.parametrize("nth", range(1, 6), ids="end_step {}".format)
def test_a_test_of_three_runs_goes_on_after_the_last_that_ended(nth: int, world: World) -> None:
    order = world.order(train=(), test=("c2",))
    world.post(order, world.c)
    world.c.work(Queue.LEARNUPLETS)
    die(world.c, "end_step", nth)

    world.settle()

    (receipt,) = world.c.ledger.receipts(order.digest)
    assert world.c.runs() == ["detarget", "predict", "perf"]
    assert receipt.receipt.attempt == 1
    assert receipt.receipt.sandbox is not None
    assert set(receipt.receipt.sandbox.seccomp) == {"detarget", "predict", "perf"}
    assert world.has_result(order)
    assert world.c.leftovers() == []


def exits_with_3(_guest: Guest) -> int:
    return 3


def leaves_a_link(guest: Guest) -> None:
    (guest.path("/data/model") / "link").symlink_to("/etc/shadow")


@pytest.mark.parametrize(("algo", "reason"), [(exits_with_3, "exit:3"), (leaves_a_link, "output")])
@pytest.mark.parametrize("at", ["codes_before", "move"])
def test_a_fault_of_the_job_is_told_as_it_was_though_the_worker_died_before_it_was_written_down(
    at: str, algo: Program, reason: str, world: World
) -> None:
    world.algo = algo
    order = placed_at_a(world)
    die(world.a, at)

    world.settle()

    (told,) = world.told(order, ReportState.FAILED)
    assert (told.reason, told.attempt) == (reason, 1)
    assert world.a.runs() == ["train"]
    assert world.told(order, ReportState.ATTEMPT) == []
    assert world.a.leftovers() == []


def test_workers_that_die_one_after_the_other_share_one_attempt(world: World) -> None:
    order = placed_at_a(world)
    for at, nth in (("end_step", 1), ("end_step", 1), ("end_step", 1), ("move", 1)):
        die(world.a, at, nth)
        world.pass_time(LEASE_S)

    world.settle()

    assert world.a.runs() == ["train"]
    assert world.a.job(order, 0).attempt == 1
    assert world.has_result(order)


def test_a_container_that_nobody_finds_again_costs_the_attempt(world: World) -> None:
    order = placed_at_a(world)
    die(world.a, "run")  # the step is begun, the container is not there yet

    world.pass_time(LEASE_S)
    world.a.sweep()
    world.a.work(Queue.LEARN_TASKS)
    lost = world.a.job(order, 0)
    world.settle()

    assert (lost.state, lost.attempt, lost.reason) == (JobState.QUEUED, 1, "container-lost")
    assert [told.reason for told in world.told(order, ReportState.ATTEMPT)] == ["container-lost"]
    assert world.a.runs() == ["train"]
    assert receipt_at_b(world, order).attempt == 2


def receipt_at_b(world: World, order: SignedOrder) -> Receipt:
    return world.b.ledger.receipts(order.digest)[0].receipt


@pytest.mark.parametrize("at", [("end_step", 2), ("end_step", 3), ("move", 1)], ids=str)
def test_a_host_that_was_restarted_has_lost_the_workspace_and_costs_the_attempt(
    at: tuple[str, int], world: World
) -> None:
    order = placed_at_a(world)
    die(world.a, *at)
    for left in world.a.runtime.leftovers():
        world.a.runtime.remove(left.name)
    for folder in world.a.workspaces.iterdir():
        shutil.rmtree(folder)

    world.pass_time(LEASE_S)
    world.a.sweep()
    world.a.work(Queue.LEARN_TASKS)
    lost = world.a.job(order, 0)
    world.settle()

    assert (lost.state, lost.attempt, lost.reason) == (JobState.QUEUED, 1, "worker-lost")
    assert world.a.runs() == ["train", "train"]
    assert receipt_at_b(world, order).attempt == 2
    assert world.a.leftovers() == []


def test_the_last_attempt_that_is_lost_fails_with_a_receipt(world: World) -> None:
    order = placed_at_a(world, max_attempts=1)
    die(world.a, "run")

    world.settle()

    (receipt,) = world.a.ledger.receipts(order.digest)
    (told,) = world.told(order, ReportState.FAILED)
    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, "container-lost")
    assert (receipt.receipt.outcome, receipt.receipt.reason, receipt.receipt.attempt) == (
        Outcome.FAILED,
        "container-lost",
        1,
    )
    assert told.receipt is not None
    assert world.a.leftovers() == []
    assert world.a.runs() == []


def test_a_step_that_takes_every_worker_with_it_costs_the_attempt_in_the_end(world: World) -> None:
    order = placed_at_a(world, max_attempts=1)
    die(world.a, "end_step", 1)
    for _ in range(MOST_TRIES):
        world.pass_time(LEASE_S)
        die(world.a, "end_step", 1)

    world.settle()

    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, "worker-lost")
    assert world.a.leftovers() == []


def test_an_order_that_expired_before_its_task_had_its_inputs_begins_nothing_more(world: World) -> None:
    order = placed_at_a(world)
    die(world.a, "end_step", 1)
    world.pass_time((order.order.expires - world.clock()).total_seconds() + 100)

    world.settle()

    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, "order-expired")
    assert world.a.runs() == []
    assert world.a.leftovers() == []


def test_a_training_that_began_in_time_is_told_of_though_its_worker_died_and_the_order_expired(
    world: World,
) -> None:
    order = placed_at_a(world, train=("a1",))
    die(world.a, "end_step", 2)
    world.pass_time((order.order.expires - world.clock()).total_seconds() + 100)

    world.settle()

    assert world.a.job(order, 0).state is JobState.DONE
    assert world.a.runs() == ["train"]
    assert world.has_result(order)


def test_an_engine_that_is_away_when_its_container_is_looked_for_is_waited_for(world: World) -> None:
    order = placed_at_a(world)
    die(world.a, "end_step", 2)
    world.pass_time(LEASE_S)
    world.a.runtime.is_down = True
    with suppress(RuntimeUnavailable):
        world.a.sweep()
    world.a.work(Queue.LEARN_TASKS)
    waits = world.a.job(order, 0)
    world.a.runtime.is_down = False
    world.settle()

    assert (waits.state, waits.attempt, waits.reason) == (JobState.RUNNING, 1, "runtime-unavailable")
    assert world.a.runs() == ["train"]
    assert receipt_at_b(world, order).attempt == 1
    assert world.a.leftovers() == []


@pytest.mark.parametrize("at", ["reclaim", "remove"])
def test_an_engine_that_goes_away_when_the_run_has_ended_costs_no_second_run(at: str, world: World) -> None:
    order = placed_at_a(world)
    alive = world.a.host

    def go_away() -> None:
        world.a.runtime.is_down = True
        raise RuntimeUnavailable("the engine was stopped")

    if at == "remove":
        world.a.ports(ledger=Tapped(alive.ports.ledger, after=twice("end_step", lambda: down(world))))
    else:
        world.a.ports(runtime=Tapped(alive.ports.runtime, before=once("reclaim", go_away)))
    world.a.work(Queue.LEARN_TASKS)
    world.a.host, world.a.runtime.is_down = alive, False
    world.settle()

    assert world.a.runs() == ["train"]
    assert receipt_at_b(world, order).attempt == 1
    world.a.sweep()
    assert world.a.leftovers() == []


def down(world: World) -> None:
    world.a.runtime.is_down = True


def twice(name: str, happen: Callable[[], object]) -> Callable[[str], None]:
    """For a tap: `happen` at the second call of this name."""
    left: list[Callable[[], object]] = [happen, lambda: None]

    def tap(called: str) -> None:
        if called == name and left:
            left.pop()()

    return tap


def test_the_receipt_of_a_run_that_was_taken_over_tells_how_long_it_ran(world: World) -> None:
    order = placed_at_a(world)
    die(world.a, "end_step", 3)  # the run has ended: 0.2 s, by what the ledger has
    world.settle()

    usage = receipt_at_b(world, order).usage
    assert usage.phases["train"] > 0
    assert usage.wall_s >= usage.phases["train"]


def test_what_runs_is_waited_for_though_the_cage_is_not_proved_yet_and_nothing_else_begins(
    world: World,
) -> None:
    runs, waits = placed_at_a(world), placed_at_a(world, id="11111111-2222-3333-4444-555555555555")
    die(world.a, "end_step", 2)
    jobs = world.a.job(runs, 0), world.a.job(waits, 0)
    world.pass_time(LEASE_S)
    for job in jobs:
        advance(job.id, world.a.host, "next", may_run=False)

    assert world.a.job(runs, 0).state is JobState.ATTESTED
    assert world.a.runs() == ["train"]
    assert world.a.job(waits, 0).state in {JobState.QUEUED, JobState.RUNNING}


@pytest.mark.parametrize("mode", [Mode.PAUSED, Mode.DRAINING])
def test_on_a_host_that_starts_nothing_an_attempt_that_ran_nothing_waits(mode: Mode, world: World) -> None:
    order = placed_at_a(world)
    die(world.a, "begin_step", 1)
    world.a.ledger.set_control(Control(mode=mode), world.clock())
    world.pass_time(LEASE_S)
    world.a.sweep()
    world.a.work(Queue.LEARN_TASKS)
    paused = world.a.runs()
    world.a.ledger.set_control(Control(), world.clock())
    world.settle()

    assert paused == []
    assert world.a.runs() == ["train"]
    assert receipt_at_b(world, order).attempt == 1


def test_an_image_that_was_denied_since_starts_no_further_container(world: World) -> None:
    order = placed_at_a(world)
    die(world.a, "begin_step", 1)
    world.a.allows(POLICY.replace('"learn", ', ""))

    world.settle()

    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, "policy-refused")
    assert world.a.runs() == []


# ------------------------------------------------------------------ a worker that was only slow


@pytest.mark.parametrize(("at", "nth"), [("end_step", 2), ("end_step", 3), ("move", 1)])
def test_a_worker_that_wakes_up_late_takes_nothing_from_the_one_that_took_over(
    at: str, nth: int, world: World
) -> None:
    order = placed_at_a(world, train=("a1",))
    alive, left, seen = world.a.host, [nth], list[list[str]]()

    def sleep(called: str) -> None:
        left[0] -= called == at
        if called == at and left[0] == 0:
            world.pass_time(LEASE_S)
            adopted = world.a.ledger.adopt(
                world.a.job(order, 0), world.clock(), worker="next", lease_until=world.clock() + LEASE
            )
            assert adopted.claim == 2
            seen.append(world.a.leftovers())

    world.a.ports(ledger=Tapped(alive.ports.ledger, before=sleep))
    advance(world.a.job(order, 0).id, world.a.host, "slow")
    world.a.host = alive
    left_by_the_slow = world.a.leftovers()
    world.settle()

    assert left_by_the_slow == seen[0] != []
    assert world.a.runs() == ["train"]
    assert (world.a.job(order, 0).state, world.a.job(order, 0).attempt) == (JobState.DONE, 1)
    assert len(world.told(order, ReportState.DONE)) == 1
    assert world.a.leftovers() == []


@pytest.mark.parametrize(("at", "nth"), [("end_step", 2), ("end_step", 3), ("move", 1)])
def test_a_worker_whose_job_was_cancelled_leaves_nothing(at: str, nth: int, world: World) -> None:
    order = placed_at_a(world, train=("a1",))
    alive, left = world.a.host, [nth]

    def cancel(called: str) -> None:
        left[0] -= called == at
        if called == at and left[0] == 0:
            alive.ports.ledger.move(world.a.job(order, 0), JobEvent.CANCEL, world.clock())

    world.a.ports(ledger=Tapped(alive.ports.ledger, before=cancel))
    advance(world.a.job(order, 0).id, world.a.host, "worker")

    assert world.a.job(order, 0).state is JobState.CANCELLED
    assert world.a.leftovers() == []
    assert world.a.ledger.receipts(order.digest) == ()


def test_a_task_under_a_lease_is_let_alone(world: World) -> None:
    order = running_at_a(world)
    before, left = world.a.job(order, 0), world.a.leftovers()

    world.pass_time(LEASE_S - 1)
    world.a.sweep()

    assert world.a.job(order, 0) == before
    assert world.a.leftovers() == left


def test_a_task_at_work_keeps_its_container_and_workspace_through_a_sweep(world: World) -> None:
    there: list[list[str]] = []

    def sweep_meanwhile(guest: Guest) -> None:
        world.a.sweep()
        there.append(world.a.leftovers())
        append_what_it_sees(guest)

    world.algo = sweep_meanwhile
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)

    world.work()

    job = world.a.job(order, 0)
    assert there == [sorted([folder_name(job.id, 1), f"dc-{job.id}-1-train"])]
    assert job.state is JobState.DONE


def test_an_older_attempts_leftovers_go_while_the_next_attempt_is_at_work(world: World) -> None:
    order = placed_at_a(world)
    die(world.a, "run")
    leave_behind(world.a, world.a.job(order, 0), attempt=7)
    there: list[list[str]] = []

    def sweep_meanwhile(guest: Guest) -> None:
        world.a.sweep()
        there.append(world.a.leftovers())
        append_what_it_sees(guest)

    world.algo = sweep_meanwhile
    world.settle()

    job = world.a.job(order, 0)
    assert there[0] == sorted([folder_name(job.id, 2), f"dc-{job.id}-2-train"])


def test_two_bells_for_an_orphan_take_it_over_once(world: World) -> None:
    order = placed_at_a(world)
    die(world.a, "end_step", 2)
    world.pass_time(LEASE_S)

    world.a.sweep()
    world.a.sweep()
    world.a.work(Queue.LEARN_TASKS)

    assert world.a.events().count("job.adopted") == 1
    assert world.a.runs() == ["train"]
    assert world.a.job(order, 0).attempt == 1


def test_a_clock_that_was_set_back_keeps_no_sweep_from_ending_a_task(world: World) -> None:
    order = placed_at_a(world, max_attempts=1)
    die(world.a, "run")
    job = world.a.job(order, 0)
    world.clock.moment = NOW - timedelta(minutes=30)

    world.settle()

    (receipt,) = world.a.ledger.receipts(order.digest)
    assert receipt.receipt.started == receipt.receipt.finished == job.changed_at
    assert world.a.job(order, 0).state is JobState.FAILED


def test_a_lease_from_before_the_clock_was_set_back_does_not_last_for_ever(world: World) -> None:
    order = placed_at_a(world)
    die(world.a, "end_step", 2)
    world.clock.moment = NOW - timedelta(minutes=30)

    world.a.sweep()
    world.pass_time(LEASE_S + 1)
    world.a.sweep()
    world.a.work(Queue.LEARN_TASKS)

    assert world.a.job(order, 0).state is JobState.ATTESTED
    assert world.a.leftovers() == []


def test_a_rest_from_before_the_clock_was_set_back_does_not_last_for_ever(world: World) -> None:
    order = world.order(train=("a1", "b1"), test=())
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    world.storages.down.add(world.a.storage)
    world.a.work(Queue.LEARN_TASKS)
    world.orchestrators.down.add(world.o1)
    world.work()
    world.storages.down.clear()
    world.orchestrators.down.clear()
    world.a.forget_bells()
    world.clock.moment = NOW - timedelta(minutes=30)

    world.settle(rounds=8)

    assert world.has_result(order)


# ------------------------------------------------------------------ what else lies about


def test_a_container_engine_that_is_away_keeps_no_bell_from_ringing(world: World) -> None:
    order = placed_at_a(world)
    leave_behind(world.a, world.a.job(order, 0), attempt=1)
    other = world.order(id="11111111-2222-3333-4444-555555555555")
    job = world.post(other, world.a).job
    world.a.forget_bells()
    world.a.runtime.is_down = True

    with pytest.raises(RuntimeUnavailable):
        world.a.sweep()

    assert list(world.a.workspaces.iterdir()) == []  # plaintext goes all the same
    assert Ring(Queue.LEARNUPLETS, job.id, 0.0) in world.a.broker.rings[2:]


def test_folders_that_are_no_attempts_are_not_ours_to_remove(world: World, tmp_path: Path) -> None:
    names = ["python3.11", "lost+found", "systemd-private.1", "notes"]
    for name in names:
        (world.a.workspaces / name).mkdir()
    (world.a.spool / "body.1").write_text("an upload that is under way")
    outside = tmp_path / "outside"
    outside.mkdir()
    job = world.post(world.order(), world.a).job
    link, file = folder_name(job.id, 7), folder_name(job.id, 8)
    os.symlink(outside, world.a.workspaces / link)
    (world.a.workspaces / file).write_text("not a folder")

    world.a.sweep()

    assert sorted(path.name for path in world.a.workspaces.iterdir()) == sorted([*names, link, file])
    assert (world.a.spool / "body.1").exists()
    assert outside.exists()


def test_leftovers_of_an_order_that_the_ledger_does_not_know_are_removed(world: World) -> None:
    job = world.post(world.order(), world.b).job  # another ledger: as after a restore
    leave_behind(world.a, job)

    world.a.sweep()

    assert world.a.leftovers() == []


def test_leftovers_of_a_job_that_ended_are_removed(world: World) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    world.work()
    leave_behind(world.a, world.a.job(order, 0))

    world.a.sweep()

    assert world.a.leftovers() == []


def test_a_container_that_cannot_go_keeps_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    order = world.order(train=("a1",), test=())
    world.post(order, world.a)
    world.work()
    leave_behind(world.a, world.a.job(order, 0))
    (real,) = world.a.runtime.leftovers()
    stuck = Leftover("stuck", real.labels, True)
    runtime, remove = world.a.runtime, world.a.runtime.remove

    def remove_but_one(name: str) -> None:
        if name == "stuck":
            raise RuntimeUnavailable("process 7 of a container does not end")
        remove(name)

    monkeypatch.setattr(runtime, "leftovers", lambda: (stuck, real))
    monkeypatch.setattr(runtime, "remove", remove_but_one)

    world.a.sweep()

    monkeypatch.undo()
    assert world.a.leftovers() == []


def test_nonces_are_forgotten_some_time_after_their_own_is_over(world: World) -> None:
    keep_until = world.clock() + timedelta(seconds=150)
    world.a.ledger.remember_nonce(world.o1, "nonce", keep_until, world.clock())

    world.pass_time(151)
    world.a.sweep()
    while_kept = world.a.ledger.remember_nonce(world.o1, "nonce", keep_until, world.clock())
    world.pass_time(ON_ITS_WAY.total_seconds())
    world.a.sweep()

    assert not while_kept
    assert world.a.ledger.forget_nonces(world.clock()) == 0  # the sweep did already
