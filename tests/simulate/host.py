"""One simulated host: what outlives its processes (ledger, queues, containers, folders), its workers, and its API.

The code that runs is the agent's own: what a bell does, the leases and the sweep are those of `agent/worker.py`.
"""

import errno
import os
import shutil
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from agent import worker as real_worker
from agent.domain.ids import KeyId, OrderId
from agent.domain.standings import PeerJob, PeerOrder
from agent.errors import AgentError, LedgerUnavailable, NotFound, OutsideError
from agent.pipeline import cancel, intake
from agent.pipeline.host import Host, Rules
from agent.pipeline.reconcile import Reconciler
from agent.ports import Ports
from agent.ports.broker import Queue
from agent.ports.images_tar import TarImages
from agent.ports.ledger import Admission, JobQuery
from agent.trust.handoff import parse_handoff
from agent.trust.keys import SigningKey
from tests.builders import NOW, SKEW
from tests.checker import Taken
from tests.fakes.hands import MemoryHands
from tests.simulate.engine import Engine
from tests.simulate.network import Gated, Mortal, OrchestratorsPort, PeersPort, StoragePort
from tests.simulate.plan import Blow
from tests.simulate.scheduler import Reply

if TYPE_CHECKING:
    from tests.simulate.world import Consortium

LEASE = timedelta(seconds=60)
SLOTS: Mapping[Queue, int] = {
    Queue.LEARNUPLETS: 1,
    Queue.PREDUPLETS: 2,
    Queue.LEARN_TASKS: 2,
    Queue.TEST_TASKS: 2,
    Queue.DELIVERIES: 2,
    Queue.CANCELLATIONS: 1,
}
PORTS = ("ledger", "broker", "storage", "orchestrators", "peers", "runtime")


class OpenGate:
    """A cage that was proved."""

    is_open = True


class Bells:
    """See `Broker`. The rows outlive the workers; one that was taken is gone, whatever becomes of who took it."""

    def __init__(self, host: "SimulatedHost") -> None:
        self._host, self._hub = host, host.world.hub
        self._due: dict[Queue, deque[str]] = {queue: deque() for queue in Queue}
        self._delayed: dict[Queue, int] = dict.fromkeys(Queue, 0)

    def ring(self, queue: Queue, item: str, *, delay_s: float = 0.0) -> None:
        host = self._host
        if host.is_during(Blow.BELLS_REFUSED):
            raise OutsideError("the file with the queues cannot be written")
        times = 1
        if host.is_during(Blow.BELLS_LOST) and host.dice.random() < 0.5:
            host.world.count("bells lost")
            times = 0
        elif host.is_during(Blow.BELLS_DOUBLED) and host.dice.random() < 0.5:
            host.world.count("bells doubled")
            times = 2
        for _ in range(times):
            self._delayed[queue] += 1
            self._hub.at(self._hub.now_s + max(0.0, delay_s), self._come_due, queue, item, times == 2)

    def ring_all(self, queue: Queue, items: Sequence[str]) -> None:
        for item in items:
            self.ring(queue, item)

    def depth(self) -> Mapping[Queue, int]:
        return {queue: len(due) + self._delayed[queue] for queue, due in self._due.items()}

    def take(self, queue: Queue) -> str | None:
        """The next due one, no longer there."""
        return self._due[queue].popleft() if self._due[queue] else None

    def _come_due(self, queue: Queue, item: str, is_doubled: bool) -> None:
        self._delayed[queue] -= 1
        if is_doubled or item not in self._due[queue]:
            self._due[queue].append(item)
        self._host.dispatch()


class Worker(Mortal):
    """A worker's process, from its start on."""

    def __init__(self, host: "SimulatedHost", number: int) -> None:
        super().__init__(f"{host.name} worker {number}", host)
        self.agent = host.agent_of(self)
        self.leases = real_worker.Leases(self.agent)
        self.leases.process = self.name.replace(" ", "-")
        gate: Any = OpenGate()
        self.handlers = real_worker.handlers(self.agent, self.leases, gate)
        self._free = dict(SLOTS)
        self.hub.spawn(self, self._sweep_for_ever)
        self.hub.spawn(self, self._renew_for_ever)
        self.hub.spawn(self, self._reconcile_for_ever)

    @property
    def has_task(self) -> bool:
        return bool(self.leases.held())

    def take(self, bells: Bells) -> None:
        """Bells into free hands."""
        for queue in self._free:
            while self._free[queue] > 0 and (item := bells.take(queue)) is not None:
                self._free[queue] -= 1
                self.hub.spawn(self, self._answer(queue, item))

    def _answer(self, queue: Queue, item: str) -> Callable[[], None]:
        def act() -> None:
            try:
                self.handlers[queue](item)
            finally:
                self._free[queue] += 1
            self.host.dispatch()

        return act

    def _sweep_for_ever(self) -> None:
        while True:
            self.leases.renew()
            real_worker.take_from_the_dead(self.agent)
            real_worker.run_sweep(self.agent)
            self.hub.sleep(real_worker.SWEEP_EVERY_S * self.host.dice.uniform(0.8, 1.2))

    def _reconcile_for_ever(self) -> None:
        reconciler = Reconciler(self.agent)
        while True:
            self.hub.sleep(reconciler.rest().total_seconds())
            real_worker.run_round(reconciler, self.agent)

    def _renew_for_ever(self) -> None:
        while True:
            self.hub.sleep(LEASE.total_seconds() / 3)
            if self.leases.held():
                self.leases.renew()


class SimulatedHost:
    """See the top of this file."""

    def __init__(self, number: int, key: SigningKey, world: "Consortium") -> None:
        self.number, self.name, self.key, self.world = number, f"h{number}", key, world
        self.keyid: KeyId = key.keyid
        self.dice = Random(f"{world.plan.seed}/{number}")
        self.clock_off = timedelta()
        self._until_s: dict[Blow, float] = defaultdict(float)
        self.ledger = world.open_ledger()
        self.bells = Bells(self)
        self.engine = Engine(
            world.programs,
            world.hub,
            Random(f"{world.plan.seed}/{number}/engine"),
            now=self.now,
            ended=lambda container: world.saw_end(self, container),
        )
        for digest, program in world.images.items():
            self.engine.add(digest, program)
        self.root = world.root / self.name
        self.workspaces, self.spool = self.root / "workspaces", self.root / "spool"
        for folder in (self.workspaces, self.spool):
            folder.mkdir(parents=True)
        self.hands = MemoryHands()
        self.real = Host(
            key=key,
            roster=world.roster,
            policy=world.policy,
            ports=Ports(
                ledger=self.ledger,
                broker=self.bells,
                storage=StoragePort(self, world),
                orchestrators=OrchestratorsPort(self, world),
                peers=PeersPort(self, world),
                runtime=self.engine,
                images=TarImages(),
                now=self.now,
                hands=self.hands,
            ),
            rules=Rules(
                skew=SKEW,
                lease=LEASE,
                queue_limit=10_000,
                workspace_root=self.workspaces,
                spool=self.spool,
                low_disk_bytes=1 << 20,
                max_model_bytes=1 << 20,
                max_image_bytes=1 << 20,
            ),
        )
        self._processes = 0
        self.lost_work = (
            False  # memory, what was to be written to a full disk, or what the engine would have told
        )
        self.workers: list[Worker] = []
        self.api: Mortal | None = None
        self.api_agent: Host = self.real

    def now(self) -> datetime:
        """What its clock says."""
        return NOW + timedelta(seconds=self.world.hub.now_s) + self.clock_off

    # ---- its processes

    def boot(self) -> None:
        """Every process that a host has: one worker, a second one on every other host, and the API."""
        for _ in range(1 if self.number % 2 else 2):
            self.start_worker()
        self.start_api()

    def start_worker(self) -> None:
        self._processes += 1
        worker = Worker(self, self._processes)
        self.workers.append(worker)

        def is_dead() -> None:
            self.workers.remove(worker)
            self.world.hub.at(self.world.hub.now_s + self.dice.uniform(0.5, 20.0), self.start_worker)

        worker.at_death.append(is_dead)
        self.dispatch()

    def start_api(self) -> None:
        self._processes += 1
        api = Mortal(f"{self.name} api {self._processes}", self)
        self.api, self.api_agent = api, self.agent_of(api)

        def is_dead() -> None:
            self.api = None
            for reply in api.in_flight:
                reply.give(error=ConnectionResetError())
            self.world.hub.at(self.world.hub.now_s + self.dice.uniform(0.5, 20.0), self.start_api)

        api.at_death.append(is_dead)

    def agent_of(self, process: Mortal) -> Host:
        """The agent as this process has it: every port call is a gate."""
        ports = self.real.ports
        gated: dict[str, Any] = {name: Gated(getattr(ports, name), name, process) for name in PORTS}
        hands = self.hands.of_process(lambda: not process.is_alive)
        return replace(self.real, ports=replace(ports, hands=hands, **gated))

    def dispatch(self) -> None:
        """Give due bells to whoever has a free hand."""
        first = self.dice.randrange(2)
        for worker in (*self.workers[first:], *self.workers[:first]):
            if not worker.is_stalled:
                worker.take(self.bells)

    # ---- its doors

    def serve(self, effect: Callable[[], Any], reply: Reply, *, after_s: float = 0.0) -> None:
        """Let the API do this, then, and reply."""
        self.world.hub.at(self.world.hub.now_s + after_s, self._serve, effect, reply)

    def _serve(self, effect: Callable[[], Any], reply: Reply) -> None:
        api = self.api
        if api is None:
            reply.give(error=ConnectionRefusedError())
            return

        def act() -> None:
            try:
                reply.give(effect())
            except AgentError as error:
                reply.give(error=error)
            api.in_flight.pop(reply, None)

        api.in_flight[reply] = None
        self.world.hub.spawn(api, act)

    def take_order(self, envelope: bytes, payload_type: str, sender: KeyId) -> Admission:
        """POST /v1/learnuplets, /v1/preduplets: in a thread of the API."""
        return intake.take_order(envelope, payload_type, sender, self.api_agent)

    def take_handoff(self, body: bytes, sender: KeyId) -> Admission:
        """POST /v1/handoffs: in a thread of the API. What it answers 2xx is seen."""
        admission = intake.take_handoff(body, sender, self.api_agent)
        parsed = parse_handoff(body)
        last = None if parsed.last is None else parsed.last.digest
        self.world.handoffs.append(Taken(admission.job.order, parsed.position, self.keyid, last))
        return admission

    def take_cancellation(self, envelope: bytes, sender: KeyId) -> object:
        """POST /v1/cancellations."""
        return cancel.take_cancellation(envelope, sender, self.api_agent)

    def view(self, order_id: OrderId) -> PeerOrder | None:
        """GET /v1/orders/{id}, as a peer reads it."""
        ledger = self.api_agent.ports.ledger
        try:
            record = ledger.order(order_id)
        except NotFound:
            return None
        jobs = ledger.jobs(JobQuery(order_id=order_id, limit=1000))
        told = tuple(PeerJob(position=job.position, state=job.state) for job in jobs)
        return PeerOrder(id=order_id, digest=record.digest, jobs=told)

    def readable_receipts(self, order_id: OrderId, asker: KeyId) -> tuple[bytes, ...]:
        """GET /v1/orders/{id}/receipts: up to the asker's own last one."""
        ledger = self.api_agent.ports.ledger
        receipts = ledger.receipts(ledger.order(order_id).digest)
        own = [place for place, receipt in enumerate(receipts) if receipt.signer == asker]
        return tuple(receipt.envelope for receipt in receipts[: own[-1] + 1]) if own else ()

    # ---- what is done to it

    def is_during(self, blow: Blow) -> bool:
        return bool(self._until_s) and self._until_s.get(blow, 0.0) > self.world.hub.now_s

    def suffer(self, blow: Blow, for_s: float) -> None:
        self._until_s[blow] = max(self._until_s[blow], self.world.hub.now_s + for_s)

    def took_over(self, by: Mortal) -> None:
        """A worker began what another had begun: the moment at which one that was stalled does most harm when it wakes."""
        for worker in self.workers:
            if worker is not by and worker.is_stalled:
                self.world.hub.at(
                    self.world.hub.now_s + self.dice.choice((0.2, 6.0)) * self.dice.random(), worker.wake
                )

    def require_disk(self, error: type[AgentError] | None = None) -> None:
        """Raises: OSError, or `error`, when nothing can be written."""
        if self.is_during(Blow.DISK_FULL) and self.dice.random() < 0.7:
            self.world.count("writes to a full disk")
            self.lost_work = True
            if error is LedgerUnavailable:
                raise LedgerUnavailable("database or disk is full")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def reboot(self) -> None:
        """Memory is gone."""
        self.lost_work = True
        for process in [*self.workers, *([self.api] if self.api else [])]:
            process.kill()
        self.engine.forget_all()
        for folder in list(self.workspaces.iterdir()):
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()

    # ---- what is left

    def left(self) -> list[str]:
        """Every container, workspace and spooled file."""
        found = [f"container {name}" for name in self.engine.containers]
        for root in (self.workspaces, self.spool):
            found += [f"{root.name}/{path.name}" for path in _leftovers(root)]
        return [f"{self.name}: {what}" for what in sorted(found)]


def _leftovers(root: Path) -> list[Path]:
    """What lies there but the few files that a host keeps for good: locks."""
    return [path for path in root.iterdir() if not path.name.endswith(".lock") and path.is_dir()]
