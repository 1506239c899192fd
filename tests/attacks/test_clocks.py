"""The wall clock is the host's, and the host's clock jumps: NTP after a boot, a paused virtual machine, a dead battery."""

import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from agent import worker
from agent.domain.chain import TaskKind
from agent.domain.jobs import JobEvent, JobState
from agent.pipeline.host import Host
from agent.pipeline.resume import sweep
from agent.pipeline.ringing import Ringing
from agent.ports.broker import Handler, Queue
from agent.ports.ledger import Arrival
from tests.api.house import open_house
from tests.builders import NOW
from tests.fakes.runtime import MemoryRuntime
from tests.pipeline.world import LEASE, World

PATIENCE_S = 20.0


def test_a_clock_that_jumps_ahead_takes_no_task_from_a_worker_that_is_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 1: no process died, and the running attempt is lost (with `max_attempts` 1 the order FAILS).

    The wall clock jumps over the lease, and the sweep may come before the heartbeat: a process takes its *own* live task over
    and removes its container and workspace.
    Mend: agent/worker.py `work`: `leases.renew()` before each `run_sweep(host)`. (Another process of this host may still be
    the first: it should wait one beat when wall and monotonic time disagree.)
    """
    house = open_house(tmp_path)
    host = replace(house.host, ports=replace(house.host.ports, runtime=MemoryRuntime({})))
    order = house.world.order()
    arrival = Arrival(order=order, receipts=(), kind=TaskKind.LEARN, sender=order.signer)
    received = house.ledger.admit(arrival, NOW, max_attempts=3, queue_limit=10).job
    job = house.ledger.move(received, JobEvent.ENQUEUE, NOW)
    is_claimed, may_end, is_swept = threading.Event(), threading.Event(), threading.Semaphore(0)

    def claim(_job: object, _host: object, name: str, **_: object) -> None:
        house.ledger.start(job, house.clock(), worker=name, lease_until=house.clock() + host.rules.lease)
        is_claimed.set()
        may_end.wait(PATIENCE_S)

    class Hands:
        def __init__(self, handlers: Mapping[Queue, Handler]) -> None:
            self.thread = threading.Thread(target=handlers[Queue.LEARN_TASKS], args=(job.id,))

        def start(self) -> None:
            self.thread.start()

        def stop(self) -> None:
            may_end.set()
            self.thread.join()

    def swept(at: Host, *told: Ringing) -> None:
        sweep(at, *told)
        is_swept.release()

    monkeypatch.setattr(worker, "advance", claim)
    monkeypatch.setattr(worker, "sweep", swept)
    monkeypatch.setattr(worker, "SWEEP_EVERY_S", 0.05)
    stop = worker.Stop()
    at_work = threading.Thread(
        target=worker.work, args=(host, Hands, tuple), kwargs={"grace_s": PATIENCE_S, "stop": stop}
    )
    at_work.start()
    assert is_claimed.wait(PATIENCE_S)

    house.clock.pass_by(timedelta(minutes=10))
    for _ in range(20):  # some of them began before
        assert is_swept.acquire(timeout=PATIENCE_S)
    state = house.ledger.job(job.id).state
    stop.asked.set()
    at_work.join()

    assert state is JobState.RUNNING


@pytest.mark.parametrize("hours", [1, 24])
def test_a_clock_that_was_set_back_holds_nothing_up(tmp_path: Path, hours: int) -> None:
    """Promise 1: a worker dies while the clock is ahead. Its lease, the rests of jobs and the next tries of deliveries then lie
    hours or years in the future: nobody takes the job over until then, and the order expires.

    Mend: agent/ports/ledger_sqlalchemy.py `unrung` and `lease_delivery` (and tests/fakes/ledger.py): a lease or rest that lies
    further ahead than any that is ever given (the lease; CAP_S) counts as over.
    """
    world = World(tmp_path)
    order = world.order(train=("a1",), test=())
    world.pass_time(hours * 3600 - 1)
    world.post(order, world.a)
    world.a.work(Queue.LEARNUPLETS)
    ahead = world.clock()
    world.a.ledger.start(world.a.job(order, 0), ahead, worker="dead", lease_until=ahead + LEASE)
    world.clock.moment = NOW  # the clock is right again

    for _ in range(5):
        world.pass_time(60)
        world.a.sweep()
        world.work()

    assert world.a.job(order, 0).state is JobState.DONE
