"""A consortium in memory: hospitals a, b and c, orchestrators o1 and o2, one clock. The pipeline in it is the real one.

Keys, signatures, sealed datasets and shares are real too; queues, ledgers, storages and containers are fakes.

    world = World(tmp_path)
    order = world.order(train=("a1", "b1"), test=("c2",))    # a dataset's first letter says where it lies
    world.post(order, world.a)                                # as POST /v1/learnuplets would
    world.work()                                              # every bell that is due is answered, everywhere
    world.a.job(order, 0).state, world.reports(order), world.result(order)

The guests are functions. The algorithm appends what it is trained on to its model, so that the final model tells by itself
which datasets were used, in which order, and how often. A test gives another guest by setting `world.algo` or `world.problem`.
"""

import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any

from agent.domain.cancellations import Cancellation
from agent.domain.ids import Digest, JobId, KeyId, OrderId, job_id, wire_time
from agent.domain.jobs import Job
from agent.domain.orders import DatasetRef, ModelRef, Order, SignedOrder
from agent.domain.reports import ReportBody, ReportState, ResultBody
from agent.domain.standings import PeerJob, PeerOrder
from agent.domain.traces import TraceId
from agent.errors import LedgerUnavailable, NotFound
from agent.log import bound_trace
from agent.pipeline.advance import advance
from agent.pipeline.cancel import Taken, remove_guests, take_cancellation
from agent.pipeline.deliver import deliver
from agent.pipeline.host import Host, Rules
from agent.pipeline.intake import take_handoff, take_order
from agent.pipeline.resume import sweep
from agent.ports import Ports
from agent.ports.broker import Handler, Queue
from agent.ports.images_tar import TarImages
from agent.ports.ledger import Admission, Delivery, DeliveryId, DeliveryKind, DeliveryState, JobQuery, Ledger
from agent.ports.runtime import RunKind
from agent.ports.storage import BlobKind
from agent.trust.dataset_header import Use
from agent.trust.handoff import build_handoff
from agent.trust.keys import SigningKey
from agent.trust.policy import HostPolicy
from agent.trust.roster import Roster
from agent.trust.seal import make_seal, read_preamble
from agent.trust.signed import sign_cancellation
from tests.builders import (
    NOW,
    SKEW,
    consortium,
    dataset,
    digest_named,
    key_of,
    policy_text,
    preduplet,
)
from tests.fakes.broker import MemoryBroker, Ring
from tests.fakes.hands import MemoryHands
from tests.fakes.ledger import MemoryLedger
from tests.fakes.orchestrators import MemoryOrchestrators, MemoryOrchestratorsPort
from tests.fakes.peers import MemoryPeers, MemoryPeersPort
from tests.fakes.runtime import Guest, MemoryRuntime, Program
from tests.fakes.storage import MemoryStorage, MemoryStorages

HOSPITALS = ("a", "b", "c")
DATASETS = ("a1", "a2", "b1", "b2", "c1", "c2")
ALL_USES: tuple[Use, ...] = ("train", "test", "predict")
LEASE = timedelta(seconds=60)
SCORE = "0.875"

ALGO, PROBLEM = digest_named("algo-image"), digest_named("problem-image")
SMALL = "ceilings.output_bytes = 8388608\n"  # so that the workspaces of a small machine hold many tasks
POLICY = policy_text(orchestrators=[key_of("o1").keyid], images=[ALGO, PROBLEM], rest=SMALL)


@dataclass
class Clock:
    """The one clock of the world."""

    moment: datetime = NOW

    def __call__(self) -> datetime:
        return self.moment


# ------------------------------------------------------------------ the guests


def append_what_it_sees(guest: Guest) -> None:
    """The algorithm: its model is the text of everything it was trained on; it predicts how long that text is."""
    weights = guest.path("/data/model") / "weights"
    model = weights.read_text() if weights.exists() else ""
    if guest.kind is RunKind.TRAIN:
        (name,) = data_files(guest, "/data/train")
        guest.write("/data/model/weights", model + guest.read(f"/data/train/{name}").decode())
    else:
        (name,) = data_files(guest, "/data/test")
        guest.write(f"/data/test/pred/{name}", f"{len(model)}\n")


def hide_and_score(guest: Guest) -> None:
    """The problem: hides what stands after the `=`, and scores every prediction alike."""
    (name,) = data_files(guest, "/hidden_data/test")
    if "detarget" in guest.args:
        hidden = guest.read(f"/hidden_data/test/{name}").decode()
        guest.write(f"/submission_data/test/{name}", hidden.partition("=")[0])
    else:
        guest.read(f"/submission_data/test/pred/{name}")
        guest.write("/hidden_data/perf/performance.json", f'{{"perf": {SCORE}}}')


def data_files(guest: Guest, folder: str) -> list[str]:
    return [name for name in guest.names(folder) if name != "pred"]


def plaintext(name: str) -> str:
    """What a dataset holds."""
    return f"{name}=target of {name};"


# ------------------------------------------------------------------ sealed datasets


@dataclass(frozen=True)
class Sealed:
    """A dataset as its owner brought it: the file for storage, and a share for each orchestrator."""

    ref: DatasetRef
    header: bytes
    file: bytes
    shares: tuple[tuple[KeyId, bytes], ...]


@cache
def seal(
    name: str,
    uses: tuple[Use, ...] = ALL_USES,
    nodes: tuple[str, ...] = HOSPITALS,
    orchestrators: tuple[str, ...] = ("o1", "o2"),
    owner: SigningKey = key_of("owner"),  # noqa: B008 - a key never changes
) -> Sealed:
    """This dataset sealed by its owner for these uses on these hospitals' nodes."""
    plain, file = plaintext(name).encode(), io.BytesIO()
    shares = make_seal(
        io.BytesIO(plain),
        file,
        size=len(plain),
        dataset=dataset(name).id,
        version=dataset(name).version,
        orchestrators=[key_of(orchestrator).keyid for orchestrator in orchestrators],
        nodes=[key_of(f"agent-{hospital}").keyid for hospital in nodes],
        uses=uses,
        owner=owner,
    )
    header = read_preamble(io.BytesIO(file.getvalue()))
    return Sealed(dataset(name), header, file.getvalue(), shares)


# ------------------------------------------------------------------ a hospital


class Hospital:
    """One agent: its host, and the ledger, queues and containers that outlive its workers."""

    def __init__(self, name: str, world: "World") -> None:
        self.name, self.world = name, world
        (world.root / name).mkdir()
        self.key = key_of(f"agent-{name}")
        self.ledger = world.open_ledger(world.root / name)
        self.broker = MemoryBroker()
        self.runtime = MemoryRuntime(
            {"algo": partial(world.play, "algo"), "problem": partial(world.play, "problem")}, now=world.clock
        )
        self.runtime.add(ALGO, "algo")
        self.runtime.add(PROBLEM, "problem")
        self.workspaces, self.spool = world.root / name / "workspaces", world.root / name / "spool"
        for folder in (self.workspaces, self.spool):
            folder.mkdir()
        self.host = Host(
            key=self.key,
            roster=world.people.roster,
            policy=HostPolicy.from_toml(POLICY),
            ports=Ports(
                ledger=self.ledger,
                broker=self.broker,
                storage=MemoryStorage(world.storages, self.keyid),
                orchestrators=MemoryOrchestratorsPort(world.orchestrators, self.keyid),
                peers=MemoryPeersPort(world.peers, self.keyid),
                runtime=self.runtime,
                images=TarImages(),
                now=world.clock,
                hands=MemoryHands(),
            ),
            rules=Rules(
                skew=SKEW,
                lease=LEASE,
                queue_limit=100,
                workspace_root=self.workspaces,
                spool=self.spool,
                low_disk_bytes=0,
                max_model_bytes=1 << 20,
                max_image_bytes=1 << 20,
            ),
        )

    @property
    def keyid(self) -> KeyId:
        return self.key.keyid

    @property
    def storage(self) -> KeyId:
        """The key id of this hospital's storage."""
        return self.world.people.storage(self.name).keyid

    # ---- what its processes do

    def handlers(self, host: Host | None = None) -> Mapping[Queue, Handler]:
        """What a worker's process calls for each bell."""
        host = host or self.host

        def go_on(item: str) -> None:
            may_run = host.ports.ledger.control().may_start
            advance(JobId(item), host, f"worker {self.name} {next(self.world.numbers)}", may_run=may_run)

        def send(item: str) -> None:
            deliver(DeliveryId(item), host)

        def stop(item: str) -> None:
            remove_guests(JobId(item), host)

        others = {Queue.DELIVERIES: send, Queue.CANCELLATIONS: stop}
        return {queue: others.get(queue, go_on) for queue in Queue}

    def work(self, *queues: Queue) -> int:
        """Answer every bell that is due, of these queues or of all; how many there were."""
        return self.broker.pump(
            {q: handle for q, handle in self.handlers().items() if not queues or q in queues}
        )

    def sweep(self) -> None:
        sweep(self.host)

    def rung(self, queue: Queue) -> list[Ring]:
        """Every bell that was ever rung in this queue."""
        return [ring for ring in self.broker.rings if ring.queue is queue]

    def forget_bells(self) -> None:
        """As if the file with the queues were lost."""
        self.broker.advance(
            10**6
        )  # delays are counted from the moment of ringing: this only makes all of them due
        self.broker.pump(dict.fromkeys(Queue, lambda _: None))

    # ---- what its ledger says

    def job(self, order: SignedOrder, position: int) -> Job:
        return self.ledger.job(job_id(order.order.id, position))

    def jobs(self) -> tuple[Job, ...]:
        """Every job here, oldest first."""
        return tuple(reversed(self.ledger.jobs(JobQuery(limit=1000))))

    def deliveries(self, kind: DeliveryKind | None = None) -> tuple[Delivery, ...]:
        return tuple(d for d in self.ledger.deliveries() if kind in {None, d.kind})

    def delivery(self, kind: DeliveryKind) -> Delivery:
        """The one delivery of this kind."""
        (only,) = self.deliveries(kind)
        return only

    def events(self) -> list[str]:
        return [event.name for event in self.ledger.events()]

    # ---- what lies about

    def leftovers(self) -> list[str]:
        """Every container, workspace and spooled file that is there."""
        folders = [path.name for root in (self.workspaces, self.spool) for path in root.iterdir()]
        return sorted([*folders, *(leftover.name for leftover in self.runtime.leftovers())])

    def runs(self) -> list[str]:
        """Every run that was begun here, by the last word of its container's name."""
        return [spec.name.rpartition("-")[2] for spec in self.runtime.specs]

    def blob(self, digest: Digest) -> bytes:
        """A blob of this hospital's storage."""
        return self.world.storages.files[self.storage, digest]

    # ---- another host under the same name

    def trusts(self, roster: Roster) -> None:
        """From now on this host knows that roster."""
        self.host = replace(self.host, roster=roster)

    def allows(self, policy: str) -> None:
        """From now on this host has that policy."""
        self.host = replace(self.host, policy=HostPolicy.from_toml(policy))

    def rules(self, **changes: Any) -> None:
        self.host = replace(self.host, rules=replace(self.host.rules, **changes))

    def ports(self, **changes: Any) -> None:
        self.host = replace(self.host, ports=replace(self.host.ports, **changes))


# ------------------------------------------------------------------ the world


class World:
    """See the top of this file."""

    def __init__(self, root: Path, open_ledger: Callable[[Path], Ledger] = lambda _: MemoryLedger()) -> None:
        self.root = root
        self.open_ledger = open_ledger
        self.clock = Clock()
        self.numbers = count(1)
        self.people = consortium()
        self.algo: Program = append_what_it_sees
        self.problem: Program = hide_and_score
        self.storages = MemoryStorages(self.people.roster)
        self.orchestrators = MemoryOrchestrators(self.people.roster, self.clock, SKEW)
        self.peers = MemoryPeers({})
        self.hospitals = {name: Hospital(name, self) for name in HOSPITALS}
        self.a, self.b, self.c = self.hospitals.values()
        for hospital in self.hospitals.values():
            self.peers.doors[hospital.keyid] = partial(self._hand_over, hospital)
            self.peers.cancel_doors[hospital.keyid] = partial(self._forward, hospital)
            self.peers.views[hospital.keyid] = partial(self._view, hospital)
        for name in DATASETS:
            self.bring(seal(name), at=name[0])

    def __iter__(self) -> Iterator[Hospital]:
        return iter(self.hospitals.values())

    @property
    def o1(self) -> KeyId:
        return self.people.orchestrator.keyid

    @property
    def o2(self) -> KeyId:
        return self.people.other_orchestrator.keyid

    def play(self, role: str, guest: Guest) -> int | None:
        """Be the guest of that role, as it is now."""
        return (self.algo if role == "algo" else self.problem)(guest)

    # ---- datasets and orders

    def bring(self, sealed: Sealed, *, at: str) -> None:
        """The owner brings a sealed dataset to a hospital's storage and its shares to the orchestrators."""
        self.storages.datasets.pop(sealed.ref, None)
        self.storages.keep_dataset(key_of(f"agent-{at}").keyid, sealed.ref, sealed.header, sealed.file)
        for orchestrator, share in sealed.shares:
            self.orchestrators.shares[orchestrator, sealed.ref] = share

    def move(self, name: str, *, to: str) -> None:
        """A dataset leaves its hospital for another."""
        self.bring(seal(name), at=to)

    def order(self, order: Order | None = None, **changes: Any) -> SignedOrder:
        """A learnuplet of o1, by default: train on a1, b1, c1, a2, then test on c2."""
        return self.people.order(order, **changes)

    def preduplet(self, *data: str, model: bytes, at: str = "c", **changes: Any) -> SignedOrder:
        """A preduplet of o1 with this model, which lies at that hospital's storage."""
        digest = self.storages.keep_blob(self.hospitals[at].storage, BlobKind.MODEL, model)
        where = ModelRef(digest, self.hospitals[at].keyid)
        return self.people.order(preduplet(data=data, model=where, **changes))

    # ---- doors

    def post(self, order: SignedOrder, hospital: Hospital, trace: TraceId | None = None) -> Admission:
        """An orchestrator sends its order, with a trace perhaps."""
        self.issue(order, hospital)
        kind = order.order.payload_type
        return take_order(order.envelope, kind, order.signer, hospital.host, trace=trace)

    def issue(self, order: SignedOrder, hospital: Hospital) -> None:
        """An orchestrator writes down that it sends its order there; whether it arrives is another thing."""
        self.orchestrators.issued.setdefault(order.order.id, (order, hospital.keyid))

    def hand_over(
        self, order: SignedOrder, done: int, *, to: Hospital, sender: Hospital | None = None
    ) -> Admission:
        """A peer sends what is left after `done` tasks, with receipts as honest agents would have written."""
        receipts = self.people.chain(order, done)
        by = sender.keyid if sender else receipts[-1].signer if receipts else self.a.keyid
        return take_handoff(build_handoff(order, receipts), by, to.host)

    def _hand_over(self, hospital: Hospital, body: bytes, sender: KeyId) -> object:
        trace = bound_trace()  # as the field of the request brings it
        return take_handoff(body, sender, hospital.host, trace=None if trace is None else TraceId(trace))

    def cancel(
        self, order: SignedOrder, at: Hospital, *, by: SigningKey | None = None, sender: KeyId | None = None
    ) -> Taken:
        """The order's orchestrator (or `by`) cancels it at this hospital, itself or through `sender`."""
        envelope = self.cancellation(order, by=by)
        key = by or self.people.orchestrator
        return take_cancellation(envelope, sender or key.keyid, at.host)

    def cancellation(self, order: SignedOrder, *, by: SigningKey | None = None) -> bytes:
        """What the order's orchestrator (or `by`) signs to cancel it now."""
        said = Cancellation(order.digest, wire_time(self.clock()))
        return sign_cancellation(said, by or self.people.orchestrator).envelope

    def _forward(self, hospital: Hospital, body: bytes, sender: KeyId) -> object:
        return take_cancellation(body, sender, hospital.host)

    def _view(
        self, hospital: Hospital, order_id: OrderId, asker: KeyId
    ) -> tuple[PeerOrder, tuple[bytes, ...]] | None:
        """As GET /v1/orders/{id} and its receipts answer an agent."""
        try:
            record = hospital.ledger.order(order_id)
        except NotFound:
            return None
        jobs = hospital.ledger.jobs(JobQuery(order_id=order_id, limit=1000))
        receipts = hospital.ledger.receipts(record.digest)
        told = PeerOrder(
            id=order_id,
            digest=record.digest,
            jobs=tuple(PeerJob(position=job.position, state=job.state) for job in jobs),
        )
        own = [place for place, receipt in enumerate(receipts) if receipt.signer == asker]
        readable = receipts[: own[-1] + 1] if own else ()
        return told, tuple(receipt.envelope for receipt in readable)

    # ---- time

    def work(self) -> None:
        """Every hospital answers its bells until none rings any more."""
        while sum(hospital.work() for hospital in self):
            pass

    def pass_time(self, seconds: float) -> None:
        self.clock.moment += timedelta(seconds=seconds)
        for hospital in self:
            hospital.broker.advance(seconds)

    def sweep(self) -> None:
        for hospital in self:
            hospital.sweep()

    def settle(self, rounds: int = 40) -> None:
        """Work, let a minute pass and sweep, until nobody has anything left to do. Raises: AssertionError."""
        for _ in range(rounds):
            self.work()
            if self.is_quiet:
                return
            self.pass_time(LEASE.total_seconds() + 1)
            self.sweep()
        raise AssertionError(f"not quiet after {rounds} minutes: {[job for h in self for job in h.jobs()]}")

    @property
    def is_quiet(self) -> bool:
        """Whether no job is open and no delivery pending."""
        return all(
            all(job.is_final for job in hospital.jobs())
            and not hospital.ledger.deliveries(state=DeliveryState.PENDING)
            for hospital in self
        )

    # ---- what orchestrators know

    def told(self, order: SignedOrder, state: ReportState | None = None) -> list[ReportBody]:
        """The reports on this order that its orchestrator acknowledged, in order of arrival."""
        reports = self.orchestrators.told(order.signer)
        return [r for r in reports if r.order == order.digest and state in {None, r.state}]

    def story(self, order: SignedOrder) -> list[tuple[int, str]]:
        """(position, state) of those reports."""
        return [(report.position, str(report.state)) for report in self.told(order)]

    def result(self, order: SignedOrder) -> ResultBody:
        return self.orchestrators.result_of(order.signer, order.order.id)

    def has_result(self, order: SignedOrder) -> bool:
        return order.order.id in self.orchestrators.results.get(order.signer, {})


# ------------------------------------------------------------------ in between


def nothing(_called: str) -> None:
    pass


class Tapped:
    """A port with something that happens around its calls: `before(name)` and `after(name)`."""

    def __init__(
        self, port: object, *, before: Callable[[str], None] = nothing, after: Callable[[str], None] = nothing
    ) -> None:
        self._port, self._before, self._after = port, before, after

    def __getattr__(self, name: str) -> Any:
        behind = getattr(self._port, name)
        if not callable(behind):
            return behind

        def call(*args: Any, **named: Any) -> Any:
            self._before(name)
            told = behind(*args, **named)
            if isinstance(told, AbstractContextManager):
                return self._tapped_run(name, told)
            self._after(name)
            return told

        return call

    @contextmanager
    def _tapped_run(self, name: str, run: Any) -> Iterator[Any]:
        with run as started:
            self._after(name)
            yield Tapped(started, before=self._before, after=self._after)


def once(name: str, happen: Callable[[], object]) -> Callable[[str], None]:
    """For a tap: `happen` at the first call of this name only."""
    left = [happen]

    def tap(called: str) -> None:
        if called == name and left:
            left.pop()()

    return tap


def die(hospital: Hospital, at: str, nth: int = 1) -> None:
    """Run what waits here with a worker that is gone at the nth call of this name, of the ledger, the engine or storage.

    The ledger hears no more of it from there on, and nothing it had is taken away: its container, its folders. What it
    rang is lost too.
    """
    alive, ledger, left = hospital.host, hospital.ledger, [nth]
    assert isinstance(ledger, MemoryLedger)

    def tap(called: str) -> None:
        left[0] -= called == at
        if left[0] == 0 and called == at:
            ledger.is_broken = hospital.runtime.is_worker_gone = True
            raise LedgerUnavailable("its worker is gone")

    ports = hospital.host.ports
    doors = {name: Tapped(getattr(ports, name), before=tap) for name in ("ledger", "runtime", "storage")}
    hospital.ports(**doors)
    for job in hospital.jobs():
        with suppress(LedgerUnavailable):
            advance(job.id, hospital.host, "dead")
    assert left[0] <= 0, f"{at} was called fewer than {nth} times"
    ledger.is_broken = hospital.runtime.is_worker_gone = False
    hospital.host = alive
    hospital.forget_bells()


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be nobody for a while, when the tests run as root, whom no mode keeps out."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
