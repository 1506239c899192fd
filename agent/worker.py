"""A worker: consumes the six queues, keeps the leases of what it runs, proves the cage, sweeps, and leaves when told to.

Stateless: several on one host share the ledger and the queues. What a bell means is the pipeline's; here is only the life
around it, and one of the two outermost doors: whatever a handler raises ends here, in the log.
"""

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from types import FrameType

from agent.domain.ids import JobId
from agent.domain.jobs import JobState
from agent.errors import AgentError, RuntimeUnavailable
from agent.log import get_logger
from agent.pipeline.advance import advance
from agent.pipeline.cancel import remove_guests
from agent.pipeline.deliver import deliver
from agent.pipeline.gate import Gate, Prove
from agent.pipeline.host import Host
from agent.pipeline.reconcile import Reconciler
from agent.pipeline.resume import sweep
from agent.pipeline.ringing import Ringing
from agent.pipeline.run import JOB_LABEL
from agent.pipeline.space import require_memory
from agent.ports.broker import Consumer, Handler, Queue
from agent.ports.ledger import DeliveryId, JobQuery
from agent.process import give_memory_back
from agent.repeating import repeating
from agent.sd_notify import Rounds, Systemd

log = get_logger(__name__)

SWEEP_EVERY_S = 60.0
LOOK_EVERY_S = 0.5
ROUND_S = 300.0  # for one sweep, and the rest after it
PROOF_S = 3600.0  # for the self-test of a slow host
QUEUE_ROUND_S = 60.0  # a thread of a queue looks every few seconds unless it has a task in hand
IN_HAND = JobQuery(states=frozenset({JobState.RUNNING}), limit=1000)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

MakeConsumer = Callable[[Mapping[Queue, Handler]], Consumer]


class Leases:
    """Under which name each bell in hand is worked on, and the beat that keeps those names' leases from running out.

    A name per bell, not per process: a handler that died of a bug stops being renewed, so that its job is taken over while
    the process lives on.
    """

    def __init__(self, host: Host) -> None:
        self.process = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._host = host
        self._numbers = count(1)
        self._held: set[str] = set()
        self._lock = threading.Lock()

    @contextmanager
    def name(self) -> Iterator[str]:
        """A name unique in the world, renewed while the context lasts."""
        name = f"{self.process}-{next(self._numbers)}"
        with self._lock:
            self._held.add(name)
        try:
            yield name
        finally:
            with self._lock:
                self._held.discard(name)

    def held(self) -> tuple[str, ...]:
        """The names in use now."""
        with self._lock:
            return tuple(sorted(self._held))

    def renew(self) -> None:
        """Lengthen the lease of everything in hand. What goes wrong is logged: the next beat tries again."""
        for name in self.held():
            try:
                self._host.ports.ledger.renew(name, self._host.ports.now() + self._host.rules.lease)
            except AgentError as error:
                log.error("lease.not_renewed", worker=name, code=error.code, detail=error.detail)
            except Exception:  # if it ended the beat, every task in hand would be given away unnoticed
                log.exception("lease.renewal_crashed", worker=name)

    def beating(self, every: timedelta) -> AbstractContextManager[None]:
        """Renew in a thread of its own while the context lasts."""
        return repeating("heartbeat", self.renew, every.total_seconds)


@dataclass(slots=True)
class Stop:
    """The wish to stop. The first signal asks, a second one leaves at once: leases run out, and others go on."""

    asked: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listen to SIGTERM and SIGINT while the context lasts. Only in the main thread."""
        before = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.asked.is_set():
            os._exit(128 + number)
        self.asked.set()


def work(
    host: Host,
    make_consumer: MakeConsumer,
    prove: Prove,
    *,
    grace_s: float,
    stop: Stop | None = None,
    systemd: Systemd | None = None,
) -> bool:
    """Consume until asked to stop; whether every handler had ended then, `grace_s` seconds later at the latest.

    No task runs before `prove` found nothing; all other work goes on. Handlers that wait for a container are not waited for.
    When one had not ended, the caller should leave the process at once: containers run on, the leases are over, and the
    next worker goes on with the same attempts.
    Raises: LedgerUnavailable when the ledger cannot be written at the start; WorkspaceOnDisk when plaintext would lie there.
    """
    stop, systemd = stop or Stop(), systemd or Systemd()
    leases, rounds, ringing = Leases(host), Rounds(ROUND_S), Ringing()
    check_start(host)
    gate = Gate(host, prove)
    consumer = make_consumer(handlers(host, leases, gate))
    looks = {"sweep": rounds.look, "queues": lambda: wait_for_queues(consumer)}
    with leases.beating(host.rules.lease / 3), reconciling(host), systemd.watched(looks):
        consumer.start()
        log.info("worker.started", worker=leases.process)
        systemd.ready("consumes its queues; the cage is not proved yet")
        while not stop.asked.is_set():
            rounds.turn("sweep")
            leases.renew()  # after a jump of the clock the sweep must not take our own live tasks for orphans
            take_from_the_dead(host)
            run_sweep(host, ringing)
            rounds.turn("sweep", PROOF_S)
            if try_gate(gate):
                rounds.turn("sweep")
                ringing.begin_anew()  # every job that waited for it
                run_sweep(host, ringing)
            rounds.turn("sweep")
            give_memory_back()
            systemd.status(told_of(gate, leases))
            stop.asked.wait(SWEEP_EVERY_S * secrets.SystemRandom().uniform(0.8, 1.2))
        systemd.stopping("takes no task any more")
        is_clean = _stop_within(consumer, grace_s, host, leases)
    if is_clean:
        log.info("worker.stopped", worker=leases.process)
    else:
        _let_go(host, leases.process)
        log.warning("worker.left_its_tasks", worker=leases.process, tasks=len(leases.held()))
    return is_clean


def wait_for_queues(consumer: Consumer) -> None:
    """Return when every thread of the queues comes round, or has a task in hand."""
    while consumer.stalled(QUEUE_ROUND_S):
        time.sleep(1.0)


def told_of(gate: Gate, leases: Leases) -> str:
    """One line for `systemctl status`."""
    cage = (
        "the cage is proved"
        if gate.is_open
        else "no task runs: the cage is not proved, see `dc-compute status`"
    )
    return f"consumes its queues, {len(leases.held())} in hand; {cage}"


def handlers(host: Host, leases: Leases, gate: Gate) -> dict[Queue, Handler]:
    """What each queue's bell does."""

    def go_on(item: str) -> None:
        _require_memory(host)  # a mount can vanish; what waits then waits on
        control = host.ports.ledger.control()
        with leases.name() as name:
            advance(JobId(item), host.newest, name, may_run=gate.is_open, may_start=control.may_start)

    def send(item: str) -> None:
        deliver(DeliveryId(item), host.newest)

    def stop(item: str) -> None:
        remove_guests(JobId(item), host.newest)

    others = {Queue.DELIVERIES: send, Queue.CANCELLATIONS: stop}
    return {queue: _guarded(queue, others.get(queue, go_on)) for queue in Queue}


def run_sweep(host: Host, ringing: Ringing | None = None) -> None:
    """One sweep; without `ringing` through everything. What goes wrong in it is logged: the next one tries again."""
    try:
        sweep(host.newest, ringing)
    except AgentError as error:
        log.error("sweep.failed", code=error.code, detail=error.detail, advice=error.advice)
    except Exception:
        log.exception("sweep.crashed")


def reconciling(host: Host) -> AbstractContextManager[None]:
    """Ask others what a lost message hid, from time to time, in a thread of its own while the context lasts.

    A call that is under way at its end ends by its own timeout, and holds nobody up.
    """
    reconciler = Reconciler(host)
    return repeating(
        "reconcile",
        lambda: run_round(reconciler, host),
        lambda: reconciler.rest().total_seconds(),
        is_awaited=False,
    )


def run_round(reconciler: Reconciler, host: Host) -> None:
    """One round of questions. What goes wrong in it is logged: the next one asks again."""
    try:
        done = reconciler.run()
        if done is not None and done.runs_again:
            run_sweep(host)
    except AgentError as error:
        log.error("round.failed", code=error.code, detail=error.detail, advice=error.advice)
    except Exception:
        log.exception("round.crashed")


def take_from_the_dead(host: Host) -> None:
    """End the lease of every job that no process of this host has in hand: its worker died, and the sweep finds it at once."""
    try:
        for job in host.ports.ledger.jobs(IN_HAND):
            with host.ports.hands.hold(job.id) as is_free:
                if is_free and job.worker is not None and host.ports.ledger.job(job.id).worker == job.worker:
                    host.ports.ledger.release(job.worker, host.ports.now())
                    log.warning("worker.died", worker=job.worker, job=job.id)
    except AgentError as error:  # its lease runs out anyway
        log.error("worker.not_buried", code=error.code, detail=error.detail)


def try_gate(gate: Gate) -> bool:
    """Whether it opened just now. What goes wrong is logged, and the gate stays closed: the next sweep tries again."""
    try:
        return gate.try_open()
    except Exception:
        log.exception("selftest.crashed")
        return False


def check_start(host: Host) -> None:
    """Look at what a worker stands on, and say what is amiss. Raises: LedgerUnavailable, WorkspaceOnDisk."""
    host.ports.ledger.check()
    root = host.rules.workspace_root
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    _require_memory(host)
    try:
        left = host.ports.runtime.leftovers()
        log.info("runtime.found", runtime=host.ports.runtime.name, containers=len(left))
    except RuntimeUnavailable as error:
        log.error("runtime.not_found", detail=error.detail, advice=error.advice)


def _require_memory(host: Host) -> None:
    """Raises: WorkspaceOnDisk."""
    require_memory(host.rules.workspace_root)
    for folder in host.rules.in_memory:
        require_memory(folder, "the engine's folder of runs")


def _guarded(queue: Queue, handle: Handler) -> Handler:
    """The handler as the consumer calls it: it never raises."""

    def handler(item: str) -> None:
        log.debug("bell.heard", queue=queue, item=item)
        try:
            handle(item)
        except AgentError as error:
            log.error(
                "bell.failed",
                queue=queue,
                item=item,
                code=error.code,
                detail=error.detail,
                advice=error.advice,
            )
        except Exception:
            log.exception("bell.crashed", queue=queue, item=item)

    return handler


def _let_go(host: Host, process: str) -> None:
    """End the leases of everything in hand: whoever comes next need not wait for them."""
    try:
        host.ports.ledger.release(process, host.ports.now())
    except AgentError as error:
        log.error("lease.not_released", worker=process, code=error.code, detail=error.detail)


def _stop_within(consumer: Consumer, grace_s: float, host: Host, leases: Leases) -> bool:
    """Let the consumer take nothing more; whether its handlers ended in time. Containers are not waited for."""
    stopping = threading.Thread(target=consumer.stop, name="stopping", daemon=True)
    stopping.start()
    deadline_s = time.monotonic() + grace_s
    while stopping.is_alive() and (left_s := deadline_s - time.monotonic()) > 0:
        stopping.join(min(LOOK_EVERY_S, left_s))
        if stopping.is_alive() and _waits_for_containers(host, leases):
            return False
    return not stopping.is_alive()


def _waits_for_containers(host: Host, leases: Leases) -> bool:
    """Whether every task in hand has a container that runs."""
    try:
        held = set(leases.held())
        mine = {job.id for job in host.ports.ledger.jobs(IN_HAND) if job.worker in held}
        running = {left.labels.get(JOB_LABEL) for left in host.ports.runtime.leftovers() if left.is_running}
    except AgentError:
        return False
    return len(mine) == len(held) > 0 and mine <= running
