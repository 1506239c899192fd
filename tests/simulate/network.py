"""What lies between an agent and everybody else: messages that are late, lost, doubled, answered with a lie, or not at all.

An effect at the other side happens at one moment; asking and answering take time. An asker that lost its patience does not know
whether the effect was.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from agent.domain.ids import Digest, KeyId, OrderId
from agent.domain.orders import DatasetRef
from agent.domain.standings import PeerOrder, StandingsPage, WholeStanding
from agent.errors import (
    AgentError,
    BadAnswer,
    LedgerUnavailable,
    OrchestratorUnavailable,
    OutsideError,
    PeerRefused,
    PeerUnavailable,
    StorageUnavailable,
)
from agent.ports.storage import BlobInfo, BlobKind, ByteSink, DatasetInfo
from tests.fakes.orchestrators import MemoryOrchestratorsPort
from tests.fakes.storage import MemoryStorage
from tests.simulate.plan import Blow
from tests.simulate.scheduler import Process, Reply

if TYPE_CHECKING:
    from tests.simulate.host import SimulatedHost
    from tests.simulate.world import Consortium

T = TypeVar("T")

PATIENCE_S = 30.0  # of an asker
ORCHESTRATORS = -1  # where they sit, among the numbers of hosts


class Network:
    """The messages of one host. `asker`: whose threads wait for the answers."""

    def __init__(self, host: "SimulatedHost", world: "Consortium") -> None:
        self._host, self._world, self._hub = host, world, world.hub
        self._dice = host.dice

    def ask(self, to: int, effect: Callable[[], T], error: type[AgentError], *, is_read: bool = False) -> T:
        """Ask somebody whose effect happens at one moment; a read has none over there.

        Raises: `error` when no answer came; what the effect raises.
        """
        late_s = self._go(to, error)
        if late_s:  # it arrives when nobody waits for the answer any more
            if not is_read:
                self._hub.at(self._hub.now_s + late_s, self._ignore, effect)
            self._give_up(error)
        if self._suffers(Blow.MESSAGES_DOUBLED) and not is_read:
            self._hub.at(self._hub.now_s + self._dice.uniform(0.0, 120.0), self._ignore, effect)
        told = effect()
        self._come_back(to, error)
        return told

    def ask_process(self, to: "SimulatedHost", effect: Callable[[], T], error: type[AgentError]) -> T:
        """Ask the API of a host, whose work takes time, and which may die meanwhile."""
        late_s = self._go(to.number, error)
        if late_s:
            to.serve(effect, Reply(self._hub), after_s=late_s)
            self._give_up(error)
        if self._suffers(Blow.MESSAGES_DOUBLED):
            to.serve(effect, Reply(self._hub), after_s=self._dice.uniform(0.0, 120.0))
        reply = Reply(self._hub)
        to.serve(effect, reply)
        if not self._hub.wait(reply, PATIENCE_S):
            raise error("no answer in time")
        if isinstance(reply.error, ConnectionError):
            raise error("the connection broke") from reply.error
        self._come_back(to.number, error)
        if reply.error is not None:
            raise reply.error
        told: T = reply.value
        return told

    def _go(self, to: int, error: type[AgentError]) -> float:
        """The request on its way; how much later than its asker's patience it arrives, 0 for in time."""
        self._hub.sleep(self._dice.uniform(0.001, 0.08))
        if self._suffers(Blow.REQUESTS_LOST) or self._world.is_cut(self._host.number, to):
            self._give_up(error)
        if self._suffers(Blow.MESSAGES_DELAYED):
            delay_s = self._dice.uniform(0.0, 180.0)
            if delay_s > PATIENCE_S:
                return delay_s
            self._hub.sleep(delay_s)
        return 0.0

    def _come_back(self, to: int, error: type[AgentError]) -> None:
        self._hub.sleep(self._dice.uniform(0.001, 0.08))
        if self._suffers(Blow.ANSWERS_LOST) or self._world.is_cut(to, self._host.number):
            self._give_up(error)
        if self._suffers(Blow.ANSWERS_GARBLED):
            self._world.count("answers garbled")
            raise BadAnswer("the answer is not signed by whom we asked")

    def _give_up(self, error: type[AgentError]) -> None:
        self._world.count("messages lost")
        self._hub.sleep(self._dice.uniform(0.0, PATIENCE_S))
        raise error("no answer in time")

    def _suffers(self, blow: Blow) -> bool:
        return self._host.is_during(blow) and self._dice.random() < 0.5

    def _ignore(self, effect: Callable[[], object]) -> None:
        self._world.count("messages doubled or late")
        try:
            effect()
        except AgentError:
            return


class StoragePort:
    """See `Storage`."""

    def __init__(self, host: "SimulatedHost", world: "Consortium") -> None:
        self._host, self._world = host, world
        self._net = Network(host, world)
        self._real = MemoryStorage(world.storages, host.keyid)

    def dataset(self, ref: DatasetRef, *, within_s: float = 0.0) -> DatasetInfo:
        return self._ask(lambda: self._real.dataset(ref, within_s=within_s))

    def open_dataset(self, info: DatasetInfo, sink: ByteSink) -> None:
        self._host.require_disk()
        self._ask(lambda: self._real.open_dataset(info, sink))

    def blob(self, digest: Digest, *, near: KeyId | None = None) -> BlobInfo:
        return self._ask(lambda: self._real.blob(digest, near=near))

    def fetch_blob(
        self,
        digest: Digest,
        target: Path,
        *,
        limit_bytes: int,
        near: KeyId | None = None,
        within_s: float | None = None,
        known: BlobInfo | None = None,
    ) -> int:
        self._host.require_disk()
        return self._ask(
            lambda: self._real.fetch_blob(digest, target, limit_bytes=limit_bytes, near=near, known=known)
        )

    def put_blob(
        self, digest: Digest, kind: BlobKind, source: Path, *, moved: Callable[[int], None] | None = None
    ) -> None:
        content = source.read_bytes()  # as sent: the file may be gone when the message arrives
        self._ask(lambda: self._world.storages.take(self._host.keyid, digest, kind, content), is_read=False)

    def check(self) -> None:
        self._ask(self._real.check)

    def _ask(self, effect: Callable[[], T], *, is_read: bool = True) -> T:
        def as_host() -> T:
            self._world.storages.asker = self._host.number
            return effect()

        return self._net.ask(self._host.number, as_host, StorageUnavailable, is_read=is_read)


class OrchestratorsPort:
    """See `Orchestrators`."""

    def __init__(self, host: "SimulatedHost", world: "Consortium") -> None:
        self._host, self._world = host, world
        self._net = Network(host, world)
        self._real = MemoryOrchestratorsPort(world.orchestrators, host.keyid)

    def share(self, orchestrator: KeyId, request: bytes) -> bytes:
        return self._ask(lambda: self._real.share(orchestrator, request))

    def report(self, orchestrator: KeyId, order_id: OrderId, position: int, n: int, body: bytes) -> None:
        def record() -> None:
            self._real.report(orchestrator, order_id, position, n, body)
            self._world.orchestrators.note((order_id, position, self._host.keyid, n), body)

        self._ask(lambda: self._record(record))

    def result(self, orchestrator: KeyId, order_id: OrderId, body: bytes) -> None:
        def record() -> None:
            self._real.result(orchestrator, order_id, body)
            self._world.orchestrators.note_result(order_id, self._host.keyid)

        self._ask(lambda: self._record(record))

    def check(self, orchestrator: KeyId) -> None:
        self._ask(lambda: self._real.check(orchestrator))

    def open_orders(self, orchestrator: KeyId, after: OrderId | None = None) -> StandingsPage:
        orchestrators = self._world.orchestrators
        return self._ask(
            lambda: orchestrators.open_orders(orchestrator, self._host.keyid, after), is_read=True
        )

    def standing(self, orchestrator: KeyId, order_id: OrderId) -> WholeStanding | None:
        return self._ask(lambda: self._real.standing(orchestrator, order_id), is_read=True)

    def _record(self, record: Callable[[], None]) -> None:
        try:
            record()
        except PeerRefused as error:
            self._world.alarms.append(error.detail)
            raise

    def _ask(self, effect: Callable[[], T], *, is_read: bool = False) -> T:
        return self._net.ask(ORCHESTRATORS, effect, OrchestratorUnavailable, is_read=is_read)


class PeersPort:
    """See `Peers`."""

    def __init__(self, host: "SimulatedHost", world: "Consortium") -> None:
        self._host, self._world = host, world
        self._net = Network(host, world)

    def hand_off(self, agent: KeyId, body: bytes) -> None:
        peer = self._world.by_key[agent]
        self._ask(peer, lambda: peer.take_handoff(body, self._host.keyid), "the hand-off")

    def cancel(self, agent: KeyId, envelope: bytes) -> None:
        peer = self._world.by_key[agent]
        self._ask(peer, lambda: peer.take_cancellation(envelope, self._host.keyid), "the cancellation")

    def order(self, agent: KeyId, order_id: OrderId) -> PeerOrder | None:
        peer = self._world.by_key[agent]
        return self._ask(peer, lambda: peer.view(order_id), "the question")

    def receipts(self, agent: KeyId, order_id: OrderId) -> tuple[bytes, ...]:
        peer = self._world.by_key[agent]
        return self._ask(peer, lambda: peer.readable_receipts(order_id, self._host.keyid), "the question")

    def _ask(self, peer: "SimulatedHost", effect: Callable[[], T], what: str) -> T:
        try:
            return self._net.ask_process(peer, effect, PeerUnavailable)
        except OutsideError:
            raise
        except AgentError as error:
            if isinstance(error, BadAnswer):
                raise
            sentence = f"{peer.keyid[:16]} refuses {what} ({error.code}): {error.detail}"
            if 400 <= error.status < 500 and error.status not in {408, 421, 425, 429}:
                raise PeerRefused(sentence, error.code) from error
            raise PeerUnavailable(sentence) from error

    def check(self, agent: KeyId) -> None:
        peer = self._world.by_key[agent]
        self._net.ask_process(peer, lambda: None, PeerUnavailable)


# ------------------------------------------------------------------ the last moment before and behind a call

READS = frozenset(
    {
        "job", "jobs", "receipts", "deliveries", "delivery", "events", "digest_of_order", "order_of_digest", "cancellations",
        "recorded_last_receipt", "description", "listing", "logs", "counts", "unrung", "waiting", "unsent", "is_placing",
        "steps", "target_failures",
    }
)  # fmt: skip
# What never changes once it is there, or nobody changes here: nothing can come in between.
SETTLED = frozenset({"order", "verdict_on", "ruling", "rulings", "control", "codes_before"})
TAKES_OVER = frozenset({"start", "adopt"})


class Gated:
    """A port as one process has it: each call may be the last thing that it does, before its effect or right behind it."""

    def __init__(self, port: Any, name: str, process: "Mortal") -> None:
        self._port, self._name, self._process = port, name, process

    def __getattr__(self, name: str) -> Any:
        behind = getattr(self._port, name)
        if not callable(behind):
            return behind
        is_ledger = self._name == "ledger"
        if is_ledger and name in READS:
            behind = self._before(name, behind)
        elif not (is_ledger and name in SETTLED):
            behind = self._around(name, behind)
        self.__dict__[name] = behind
        return behind

    def _before(self, name: str, behind: Callable[..., Any]) -> Callable[..., Any]:
        """One gate: what is read is gone with the reader, so dying behind it is dying before the next call."""
        gate, traced = self._process.gate, f"{self._name}.{name}"

        def call(*args: Any, **named: Any) -> Any:
            gate(traced)
            return behind(*args, **named)

        return call

    def _around(self, name: str, behind: Callable[..., Any]) -> Callable[..., Any]:
        gate, traced, process = self._process.gate, f"{self._name}.{name}", self._process
        writes, takes_over = self._name == "ledger", name in TAKES_OVER

        def call(*args: Any, **named: Any) -> Any:
            gate(traced)
            if writes:
                process.host.require_disk(LedgerUnavailable)
            told = behind(*args, **named)
            if hasattr(told, "__enter__"):
                return _GatedRun(told, process)
            gate(None)
            if takes_over and told.claim > 1:
                process.host.took_over(process)
            return told

        return call


class _GatedRun:
    """A run whose beginning, waiting and end are calls too."""

    def __init__(self, run: Any, process: "Mortal") -> None:
        self._run, self._process = run, process

    def __enter__(self) -> Any:
        started = self._run.__enter__()
        self._process.gate("run.began")
        return Gated(started, "run", self._process)

    def __exit__(self, *error: Any) -> Any:
        self._process.gate("run.end")
        told = self._run.__exit__(*error)
        self._process.gate(None)
        return told


class Mortal(Process):
    """A process whose port calls are gates: it may be killed or stalled at each, and others may go first."""

    def __init__(self, name: str, host: "SimulatedHost") -> None:
        super().__init__(name, host.world.hub)
        self.host = host
        self._dice = host.dice
        self._trace = host.world.trace
        self.dies_in: int | None = None
        self.stalls_in: tuple[int, float] | None = None
        self.in_flight: dict[Reply, None] = {}  # what others wait for

    @property
    def has_task(self) -> bool:
        """Whether it works on a job now."""
        return False

    def gate(self, traced: str | None) -> None:
        if traced is not None:
            self._trace(self.name, traced)
        if self.dies_in is not None:
            self.dies_in -= 1
            if self.dies_in <= 0:
                self.host.world.count(f"{self.name.split()[1]} killed")
                self.kill()
        if self.stalls_in is not None and self.has_task:
            left, for_s = self.stalls_in
            self.stalls_in = (left - 1, for_s) if left > 1 else None
            if left <= 1:
                self.host.world.count("worker stalled")
                self.stall(for_s)
        if self._dice.random() < 0.1:
            self.hub.sleep(self._dice.random() * 0.02)
