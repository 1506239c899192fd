"""What a crash or a lost bell left behind is taken up again by the next sweep, and what is at work is let alone."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.domain.ceilings import DEFAULT_CEILINGS
from agent.domain.jobs import Job, JobState
from agent.domain.orders import SignedOrder
from agent.domain.receipts import Outcome
from agent.domain.reports import ReportState
from agent.errors import RuntimeUnavailable
from agent.pipeline.execute import execute
from agent.pipeline.run import ATTEMPT_LABEL, JOB_LABEL
from agent.pipeline.workspace import folder_name
from agent.ports.broker import Queue
from agent.ports.ledger import DeliveryKind
from agent.ports.runtime import Leftover, RunKind, RunSpec
from tests.builders import NOW
from tests.fakes.broker import Ring
from tests.fakes.runtime import Guest
from tests.pipeline.world import ALGO, LEASE, Hospital, World, append_what_it_sees

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


def leave_behind(hospital: Hospital, job: Job) -> None:
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


def test_a_task_whose_worker_died_is_taken_over_as_the_next_attempt(world: World) -> None:
    order = running_at_a(world)

    world.pass_time(LEASE_S)
    world.a.sweep()
    taken_over = world.a.job(order, 0)
    world.work()
    told = world.told(order)
    world.settle()

    assert (taken_over.state, taken_over.attempt, taken_over.reason) == (JobState.QUEUED, 1, "worker-lost")
    assert [(report.state, report.reason) for report in told] == [("attempt", "worker-lost")]  # at once
    (receipt, _) = world.b.ledger.receipts(order.digest)
    assert receipt.receipt.attempt == 2
    assert [told.reason for told in world.told(order, ReportState.ATTEMPT)] == ["worker-lost"]
    assert world.a.job(order, 0).state is JobState.DONE
    assert world.has_result(order)


def test_the_dead_workers_container_and_folders_are_removed(world: World) -> None:
    running_at_a(world)

    world.pass_time(LEASE_S)
    world.a.sweep()

    assert world.a.leftovers() == []


def test_the_last_attempt_that_loses_its_worker_fails_with_a_receipt(world: World) -> None:
    order = running_at_a(world, max_attempts=1)

    world.pass_time(LEASE_S)
    world.settle()

    (receipt,) = world.a.ledger.receipts(order.digest)
    (told,) = world.told(order, ReportState.FAILED)
    assert (world.a.job(order, 0).state, world.a.job(order, 0).reason) == (JobState.FAILED, "unknown")
    assert (receipt.receipt.outcome, receipt.receipt.reason, receipt.receipt.attempt) == (
        Outcome.FAILED,
        "unknown",
        1,
    )
    assert told.receipt is not None
    assert world.a.leftovers() == []
    assert world.a.runs() == []


def test_workers_that_die_again_and_again_end_the_order_at_its_last_attempt(world: World) -> None:
    order = running_at_a(world, max_attempts=3)

    for _ in range(10):
        world.pass_time(LEASE_S + 1)
        world.a.sweep()
        job = world.a.job(order, 0)
        if job.state is JobState.QUEUED and (job.not_before is None or job.not_before <= world.clock()):
            job = world.a.ledger.start(
                job, world.clock(), worker="dead too", lease_until=world.clock() + LEASE
            )
            leave_behind(world.a, job)

    assert (world.a.job(order, 0).state, world.a.job(order, 0).attempt) == (JobState.FAILED, 3)
    assert world.a.leftovers() == []


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
    order = running_at_a(world)
    world.a.runtime.is_down = True  # so that the take-over cannot clean
    world.pass_time(LEASE_S)
    with pytest.raises(RuntimeUnavailable):
        world.a.sweep()
    world.a.runtime.is_down = False
    world.pass_time(10)
    there: list[list[str]] = []

    def sweep_meanwhile(guest: Guest) -> None:
        world.a.sweep()
        there.append(world.a.leftovers())
        append_what_it_sees(guest)

    world.algo = sweep_meanwhile
    execute(world.a.job(order, 0), world.a.host, "worker")

    job = world.a.job(order, 0)
    assert there == [sorted([folder_name(job.id, 2), f"dc-{job.id}-2-train"])]


def test_two_sweeps_at_once_take_over_once(world: World) -> None:
    order = running_at_a(world)
    world.pass_time(LEASE_S)

    world.a.sweep()
    world.a.sweep()

    assert world.a.events().count("job.queued") == 2  # by its placing, and by the take-over
    assert world.a.job(order, 0).attempt == 1


def test_a_clock_that_was_set_back_keeps_no_sweep_from_ending_a_task(world: World) -> None:
    order = running_at_a(world, max_attempts=1)
    job = world.a.job(order, 0)
    world.a.ledger.renew("dead", NOW - timedelta(hours=2))
    world.clock.moment = NOW - timedelta(minutes=30)

    world.a.sweep()

    (receipt,) = world.a.ledger.receipts(order.digest)
    assert receipt.receipt.started == receipt.receipt.finished == job.changed_at
    assert world.a.job(order, 0).state is JobState.FAILED


def test_a_lease_from_before_the_clock_was_set_back_does_not_last_for_ever(world: World) -> None:
    order = running_at_a(world)
    world.clock.moment = NOW - timedelta(minutes=30)

    world.a.sweep()
    world.pass_time(LEASE_S + 1)
    world.a.sweep()

    assert world.a.job(order, 0).reason == "worker-lost"
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
    order = running_at_a(world)
    other = world.order(id="11111111-2222-3333-4444-555555555555")
    job = world.post(other, world.a).job
    world.a.forget_bells()
    world.a.runtime.is_down = True
    world.pass_time(LEASE_S)

    with pytest.raises(RuntimeUnavailable):
        world.a.sweep()

    assert list(world.a.workspaces.iterdir()) == []  # plaintext goes all the same
    assert world.a.job(order, 0).state is JobState.QUEUED
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


def test_nonces_are_forgotten_after_their_time(world: World) -> None:
    keep_until = world.clock() + timedelta(seconds=150)
    world.a.ledger.remember_nonce(world.o1, "nonce", keep_until, world.clock())

    world.a.sweep()
    world.pass_time(100)
    while_kept = world.a.ledger.remember_nonce(world.o1, "nonce", keep_until, world.clock())
    world.pass_time(60)
    world.a.sweep()

    assert not while_kept
    assert world.a.ledger.forget_nonces(world.clock()) == 0  # the sweep did already
