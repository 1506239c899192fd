"""A worker's life: what a bell does, how leases are kept, how it starts and how it leaves."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent import worker
from agent.domain.chain import TaskKind
from agent.domain.control import Control, Mode
from agent.domain.ids import JobId
from agent.domain.jobs import Job, JobEvent, JobState
from agent.domain.orders import Learnuplet, Limits
from agent.errors import LedgerUnavailable, RuntimeUnavailable, WorkspaceOnDisk
from agent.pipeline import space
from agent.pipeline.gate import Breach, Gate, GateState, Prove, standing
from agent.pipeline.host import Host
from agent.pipeline.run import ATTEMPT_LABEL, JOB_LABEL
from agent.ports.broker import Handler, Queue
from agent.ports.ledger import Arrival
from agent.ports.runtime import RunKind, RunSpec
from agent.worker import Leases, Stop, check_start, handlers, work
from tests.api.house import House, open_house
from tests.builders import NOW, digest_named
from tests.fakes.runtime import MemoryRuntime

SOON_S = 10.0  # for what must happen at once, on a busy machine


class Hands:
    """A consumer that calls handlers when the test says so. `stop` waits for the handler under way."""

    def __init__(self, handlers: Mapping[Queue, Handler]) -> None:
        self.handlers = handlers
        self.has_started = threading.Event()
        self.is_stopping = threading.Event()
        self.under_way: threading.Thread | None = None

    def start(self) -> None:
        self.has_started.set()

    def take(self, queue: Queue, item: str) -> None:
        self.under_way = threading.Thread(target=self.handlers[queue], args=(item,), daemon=True)
        self.under_way.start()

    def stalled(self, limit_s: float) -> tuple[str, ...]:
        return ()

    def stop(self) -> None:
        self.is_stopping.set()
        if self.under_way is not None:
            self.under_way.join()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory: no worker starts on another."""
    with tempfile.TemporaryDirectory(prefix="dcc-worker-", dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def house(tmp_path: Path, memory: Path) -> House:
    made = open_house(tmp_path, lease=timedelta(seconds=0.3), workspace_root=memory)
    ports = made.host.ports
    runtime = MemoryRuntime({})
    with_runtime = type(ports)(
        ports.ledger,
        ports.broker,
        ports.storage,
        ports.orchestrators,
        ports.peers,
        runtime,
        ports.images,
        ports.now,
        ports.hands,
    )
    host = made.host
    made.host = Host(host.key, host.roster, host.policy, with_runtime, host.rules)
    return made


@pytest.fixture
def job(house: House) -> Job:
    """A job that was received and is not placed yet; storage knows nothing of its dataset."""
    order = house.world.order()
    arrival = Arrival(order=order, receipts=(), kind=TaskKind.LEARN, sender=order.signer)
    return house.ledger.admit(arrival, NOW, max_attempts=3, queue_limit=10).job


def proved(host: Host) -> Gate:
    """The gate of a host whose cage holds."""
    gate = Gate(host, tuple)
    gate.try_open()
    return gate


def in_thread(run: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(run()), daemon=True)
    thread.start()
    return thread, results


# ------------------------------------------------------------------ bells


def test_there_is_a_handler_for_each_of_the_six_queues(house: House) -> None:
    assert set(handlers(house.host, Leases(house.host), proved(house.host))) == set(Queue)


def test_a_bell_for_an_unknown_job_is_logged_and_no_more(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    for handle in handlers(house.host, Leases(house.host), proved(house.host)).values():
        handle("nothing.0")


def test_a_bell_while_the_ledger_is_away_does_not_raise(house: House, job: Job) -> None:
    house.ledger.is_broken = True

    handlers(house.host, Leases(house.host), proved(house.host))[Queue.LEARNUPLETS](job.id)


def test_a_bug_in_a_handler_does_not_reach_the_consumer(
    house: House, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def burst(*_: object, may_run: bool) -> None:
        raise RuntimeError("nobody foresaw this")

    monkeypatch.setattr(worker, "advance", burst)

    handlers(house.host, Leases(house.host), proved(house.host))[Queue.LEARNUPLETS](job.id)


def test_a_bell_for_a_cancelled_job_removes_its_containers_and_no_other(house: House, job: Job) -> None:
    ended = house.ledger.move(job, JobEvent.CANCEL, NOW, reason="cancelled")
    runtime = house.host.ports.runtime
    assert isinstance(runtime, MemoryRuntime)
    for name, of in (("mine", ended.id), ("other", "another.0")):
        runtime.leave_behind(spec_of(house, name, of))

    handlers(house.host, Leases(house.host), proved(house.host))[Queue.CANCELLATIONS](ended.id)

    assert [left.name for left in runtime.leftovers()] == ["other"]


def spec_of(house: House, name: str, job: str) -> RunSpec:
    return RunSpec(
        name=name,
        image=digest_named("image"),
        args=(),
        kind=RunKind.TRAIN,
        mounts=(),
        ceilings=house.host.policy.ceilings_for(Limits()),
        labels={JOB_LABEL: job, ATTEMPT_LABEL: "1"},
    )


@pytest.mark.parametrize("mode", [Mode.PAUSED, Mode.DRAINING])
def test_no_task_begins_while_the_host_is_paused_or_drained(house: House, job: Job, mode: Mode) -> None:
    queued = house.ledger.move(job, JobEvent.ENQUEUE, NOW)
    house.ledger.set_control(Control(mode=mode), NOW)

    handlers(house.host, Leases(house.host), proved(house.host))[Queue.LEARN_TASKS](queued.id)

    assert house.ledger.job(job.id) == queued


# ------------------------------------------------------------------ leases


def test_each_bell_has_a_name_that_no_other_has(house: House) -> None:
    leases, others = Leases(house.host), Leases(house.host)

    with leases.name() as one, leases.name() as two, others.name() as three:
        assert len({one, two, three}) == 3
        assert set(leases.held()) == {one, two}

    assert leases.held() == ()


def running(house: House, job: Job, name: str) -> JobId:
    """The job, run under this name with a lease that is about to end."""
    queued = house.ledger.move(job, JobEvent.ENQUEUE, NOW)
    house.ledger.start(queued, NOW, worker=name, lease_until=NOW + timedelta(seconds=1))
    return job.id


def test_what_is_in_hand_keeps_its_lease(house: House, job: Job) -> None:
    leases = Leases(house.host)
    with leases.name() as name:
        running(house, job, name)
        house.clock.pass_by(timedelta(hours=1))

        leases.renew()

    assert house.ledger.job(job.id).lease_until == house.clock() + house.host.rules.lease


def test_what_a_bug_left_behind_loses_its_lease_while_the_process_lives(house: House, job: Job) -> None:
    leases = Leases(house.host)
    with suppress(RuntimeError), leases.name() as name:
        running(house, job, name)
        raise RuntimeError("a bug")

    leases.renew()
    house.clock.pass_by(timedelta(seconds=2))

    assert [orphan.id for orphan in house.ledger.unrung(house.clock(), 10).orphans] == [job.id]


def test_a_ledger_that_is_away_does_not_end_the_beat(house: House) -> None:
    leases = Leases(house.host)
    house.ledger.is_broken = True

    with leases.name():
        leases.renew()


def test_a_bug_does_not_end_the_beat_nor_keep_it_from_other_tasks(
    house: House, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = Leases(house.host)
    renew, crashed = house.ledger.renew, threading.Event()

    with leases.name() as first, leases.name() as second:

        def fail_once(worker: str, lease_until: datetime) -> None:
            if worker == first and not crashed.is_set():
                crashed.set()
                raise RuntimeError("a bug")
            renew(worker, lease_until)

        monkeypatch.setattr(house.ledger, "renew", fail_once)
        running(house, job, second)
        house.clock.pass_by(timedelta(hours=1))

        leases.renew()

    assert crashed.is_set()
    assert house.ledger.job(job.id).lease_until == house.clock() + house.host.rules.lease


def test_the_beat_goes_on_while_a_handler_works(
    house: House, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = Leases(house.host)
    renewed = threading.Event()
    renew = house.ledger.renew

    def note(worker: str, lease_until: datetime) -> None:
        renew(worker, lease_until)
        renewed.set()

    monkeypatch.setattr(house.ledger, "renew", note)
    with leases.name() as name, leases.beating(timedelta(milliseconds=20)):
        running(house, job, name)

        assert renewed.wait(SOON_S)


# ------------------------------------------------------------------ start


def test_a_worker_starts_only_on_a_ledger_that_takes_writes(house: House) -> None:
    house.ledger.is_broken = True

    with pytest.raises(LedgerUnavailable):
        work(house.host, Hands, tuple, grace_s=1, stop=Stop())


def test_a_worker_starts_without_its_container_engine_and_says_so(house: House) -> None:
    runtime = house.host.ports.runtime
    assert isinstance(runtime, MemoryRuntime)
    runtime.is_down = True

    check_start(house.host)


def test_the_workspace_s_folder_is_made_for_the_agent_alone(house: House, memory: Path) -> None:
    root = memory / "run" / "work"
    rules = house.host.rules
    told = {name: getattr(rules, name) for name in rules.__slots__} | {"workspace_root": root}
    host = Host(house.host.key, house.host.roster, house.host.policy, house.host.ports, type(rules)(**told))

    check_start(host)

    assert root.stat().st_mode & 0o777 == 0o700


def on_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "file_system_of", lambda _root: "ext4")


def test_a_worker_whose_workspace_lies_on_a_disk_does_not_start(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_disk(monkeypatch)

    with pytest.raises(WorkspaceOnDisk, match="mount -t tmpfs"):
        work(house.host, Hands, tuple, grace_s=1, stop=Stop())


def test_a_workspace_that_lost_its_memory_begins_no_task_and_costs_no_attempt(
    house: House, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued = house.ledger.move(job, JobEvent.ENQUEUE, NOW)
    on_a_disk(monkeypatch)

    handlers(house.host, Leases(house.host), proved(house.host))[Queue.LEARN_TASKS](queued.id)

    assert house.ledger.job(job.id) == queued


def test_a_worker_whose_engine_keeps_what_guests_say_on_a_disk_does_not_start(
    house: House, monkeypatch: pytest.MonkeyPatch, job: Job
) -> None:
    """conmon writes a guest's output below [runtime] run_dir, and a guest may print data."""
    runs = Path("/of/runs")
    monkeypatch.setattr(space, "file_system_of", lambda root: "ext4" if root == runs else "tmpfs")
    host = replace(house.host, rules=replace(house.host.rules, in_memory=(runs,)))

    with pytest.raises(WorkspaceOnDisk, match="runs lies on ext4"):
        work(host, Hands, tuple, grace_s=1, stop=Stop())

    queued = house.ledger.move(job, JobEvent.ENQUEUE, NOW)
    handlers(host, Leases(host), proved(host))[Queue.LEARN_TASKS](queued.id)
    assert house.ledger.job(job.id) == queued


# ------------------------------------------------------------------ the gate


BREACH = Breach("podman", "mount", "killed by SIGSYS", "done")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[JobId]:
    """The jobs whose task was begun."""
    begun: list[JobId] = []
    monkeypatch.setattr("agent.pipeline.advance.execute", lambda job, host, worker: begun.append(job.id))
    return begun


def events(house: House) -> list[str]:
    return [event.name for event in house.ledger.events()]


def test_no_task_begins_before_the_cage_was_proved_and_its_bell_is_not_lost(
    house: House, job: Job, started: list[JobId]
) -> None:
    house.ledger.move(job, JobEvent.ENQUEUE, NOW)
    gate = Gate(house.host, tuple)
    ring = handlers(house.host, Leases(house.host), gate)[Queue.LEARN_TASKS]

    ring(job.id)
    assert started == []
    worker.run_sweep(house.host)
    assert (Queue.LEARN_TASKS, job.id) in house.bells.rung
    assert gate.try_open()
    ring(job.id)

    assert started == [job.id]
    assert events(house)[-1] == "selftest.held"


def test_an_attempt_that_succeeds_keeps_the_gate_shut_and_says_which(
    house: House, job: Job, started: list[JobId]
) -> None:
    house.ledger.move(job, JobEvent.ENQUEUE, NOW)
    proofs = [(BREACH,), ()]  # the second one would hold
    gate = Gate(house.host, lambda: proofs.pop(0))

    with capture_logs() as told:
        opened = [gate.try_open(), gate.try_open()]
    handlers(house.host, Leases(house.host), gate)[Queue.LEARN_TASKS](job.id)

    assert opened == [False, False]
    assert started == []
    (event,) = [event for event in house.ledger.events() if event.name == "selftest.failed"]
    assert event.values == {
        "runtime": "podman",
        "probe": "mount",
        "expected": "killed by SIGSYS",
        "seen": "done",
    }
    (line,) = told
    assert (line["event"], line["log_level"], line["probe"]) == ("selftest.failed", "error", "mount")
    assert (line["expected"], line["seen"]) == ("killed by SIGSYS", "done")
    assert standing(house.host.rules.workspace_root).state is GateState.BROKEN


def test_orders_are_placed_while_the_gate_is_shut(house: House, job: Job) -> None:
    gate = Gate(house.host, lambda: (BREACH,))
    gate.try_open()
    order = house.world.order().order
    assert isinstance(order, Learnuplet)
    for ref in order.train_data:
        house.storages.keep_dataset(house.host.me, ref, b"", b"sealed")

    handlers(house.host, Leases(house.host), gate)[Queue.LEARNUPLETS](job.id)

    assert house.ledger.job(job.id).state is not JobState.RECEIVED


def test_a_runtime_that_is_not_there_yet_is_tried_again(house: House) -> None:
    is_there = False

    def prove() -> tuple[Breach, ...]:
        if not is_there:
            raise RuntimeUnavailable("the engine does not answer")
        return ()

    gate = Gate(house.host, prove)

    assert not gate.try_open()
    assert standing(house.host.rules.workspace_root).state is GateState.CLOSED
    is_there = True
    assert gate.try_open()


def test_a_self_test_that_falls_over_opens_nothing(house: House) -> None:
    def burst() -> tuple[Breach, ...]:
        raise ZeroDivisionError

    gate = Gate(house.host, burst)

    assert not worker.try_gate(gate)
    assert not gate.is_open


def test_a_worker_proves_the_cage_at_its_start_and_rings_for_what_waited(house: House, job: Job) -> None:
    house.ledger.move(job, JobEvent.ENQUEUE, NOW)
    may_prove = threading.Event()

    def prove() -> tuple[Breach, ...]:
        may_prove.wait(SOON_S)
        house.bells.rung.clear()
        return ()

    _, stop, thread, _ = at_work(house, grace_s=1, prove=prove)

    may_prove.set()
    while (Queue.LEARN_TASKS, job.id) not in house.bells.rung:
        thread.join(0.01)
    stop.asked.set()
    thread.join(SOON_S)

    assert not thread.is_alive()


# ------------------------------------------------------------------ stop


def at_work(
    house: House, grace_s: float, prove: Prove = tuple
) -> tuple[Hands, Stop, threading.Thread, list[Any]]:
    """A worker that has started."""
    made: list[Hands] = []
    stop = Stop()

    def make(handlers: Mapping[Queue, Handler]) -> Hands:
        made.append(Hands(handlers))
        return made[0]

    thread, results = in_thread(lambda: work(house.host, make, prove, grace_s=grace_s, stop=stop))
    while not made:
        thread.join(0.01)
    assert made[0].has_started.wait(SOON_S)
    return made[0], stop, thread, results


def test_a_worker_rings_at_its_start_what_was_lost(house: House, job: Job) -> None:
    _, stop, thread, _ = at_work(house, grace_s=1)
    while (Queue.LEARNUPLETS, job.id) not in house.bells.rung:
        thread.join(0.01)

    stop.asked.set()
    thread.join(SOON_S)

    assert not thread.is_alive()


def test_a_worker_without_tasks_leaves_at_once_and_cleanly(house: House) -> None:
    hands, stop, thread, results = at_work(house, grace_s=60)

    stop.asked.set()
    thread.join(SOON_S)

    assert results == [True]
    assert hands.is_stopping.is_set()


def hold_advance(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """(has begun, may end) of a task that takes its time."""
    has_begun, may_end = threading.Event(), threading.Event()

    def advance(job: JobId, host: Host, name: str, *, may_run: bool, may_start: bool) -> None:
        has_begun.set()
        may_end.wait(60)

    monkeypatch.setattr(worker, "advance", advance)
    return has_begun, may_end


def test_a_worker_waits_for_the_task_under_way(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    has_begun, may_end = hold_advance(monkeypatch)
    hands, stop, thread, results = at_work(house, grace_s=60)
    hands.take(Queue.LEARN_TASKS, "x.0")
    assert has_begun.wait(SOON_S)
    stop.asked.set()
    assert hands.is_stopping.wait(SOON_S)
    assert thread.is_alive()

    may_end.set()
    thread.join(SOON_S)

    assert results == [True]


def test_a_worker_leaves_a_task_that_outlasts_its_grace(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_end = hold_advance(monkeypatch)
    hands, stop, thread, results = at_work(house, grace_s=0.05)
    hands.take(Queue.LEARN_TASKS, "x.0")
    assert has_begun.wait(SOON_S)

    stop.asked.set()
    thread.join(SOON_S)
    may_end.set()

    assert results == [False]


SIGNALLED = """
import os, sys, threading
from agent.worker import Stop
stop = Stop()
with stop.on_signals():
    print("listening", flush=True)
    stop.asked.wait()
    print("asked", flush=True)
    threading.Event().wait(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_ends(number: signal.Signals) -> None:
    process = subprocess.Popen([sys.executable, "-c", SIGNALLED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process, process.stdout as lines:
        assert lines.readline() == "listening\n"

        os.kill(process.pid, number)
        assert lines.readline() == "asked\n"
        os.kill(process.pid, number)

        assert process.wait(SOON_S) == 128 + number


def test_a_job_that_runs_is_not_rung(house: House, job: Job) -> None:
    running(house, job, "somebody")
    assert house.ledger.job(job.id).state is JobState.RUNNING

    worker.run_sweep(house.host)

    assert (Queue.LEARNUPLETS, job.id) not in house.bells.rung
