"""A consortium of simulated hosts, orchestrators that give them orders, and what is done to them: one plan, played to its end.

played = play(draw(seed=7, hosts=10, tasks=200))
played.violations, played.trace, played.counts
"""

import gc
import io
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from hashlib import blake2b, sha256
from pathlib import Path
from random import Random
from typing import Any
from zlib import compress, decompress

from agent.domain.cancellations import Cancellation
from agent.domain.ids import Digest, KeyId, OrderId, digest_of, wire_time
from agent.domain.orders import DatasetRef, ImageRef, Learnuplet, ModelRef, Order, Preduplet, SignedOrder
from agent.errors import AgentError, OutsideError, StorageUnavailable
from agent.pipeline.outputs import pack
from agent.ports.ledger import DeliveryState, JobQuery
from agent.ports.runtime import RunKind
from agent.ports.storage import BlobKind, DatasetInfo
from agent.trust.keys import SigningKey
from agent.trust.policy import HostPolicy
from agent.trust.roster import Role, Roster, RosterEntry
from agent.trust.seal import make_seal, read_preamble
from agent.trust.signed import sign_cancellation, sign_order
from tests.builders import DAY, HOUR, NOW, SKEW, digest_named, entry_for, key_of, policy_text, uuid_of
from tests.checker import ANYTHING, Issued, Run, Seen, Taken, Told, ToldResult, Violation, check
from tests.fakes.runtime import Guest as GuestView
from tests.fakes.storage import MemoryStorages
from tests.simulate.engine import Container
from tests.simulate.host import SimulatedHost
from tests.simulate.ledger import SwiftLedger
from tests.simulate.machine import simulated_machine
from tests.simulate.network import ORCHESTRATORS
from tests.simulate.orchestrators import Orchestrators
from tests.simulate.plan import DATASETS_PER_HOST, Blow, Fault, Guest, OrderPlan, Plan
from tests.simulate.scheduler import Hub, Process, Reply

MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
ALGO, BROKEN, PROBLEM = (
    digest_named(name) for name in ("algo", "broken", "problem")
)  # an archive is a program's name
EXIT_CODE = 3
SCORE = "0.875"
MANY = 1000
PATIENCE_S = 4 * 3600.0  # after the last fault, for everybody to come to an end
LOOK_EVERY_S = 60.0
QUIET_S = 240.0  # so long nothing must be open before it counts as the end: longer than a rest of deliveries, mostly
SMALL = "ceilings.output_bytes = 8388608\n"


# ------------------------------------------------------------------ the guests


def learn_or_predict(guest: GuestView) -> None:
    """The algorithm: its weights are a digest of the earlier ones and of what it is trained on."""
    weights = guest.path("/data/model") / "weights"
    before = weights.read_bytes() if weights.exists() else b""
    folder = "/data/train" if guest.kind is RunKind.TRAIN else "/data/test"
    (name,) = (name for name in guest.names(folder) if name != "pred")
    if guest.kind is RunKind.TRAIN:
        guest.write("/data/model/weights", trained(before, guest.read(f"{folder}/{name}")))
    else:
        guest.write(f"{folder}/pred/{name}", trained(before, b"prediction"))


def trained(before: bytes, data: bytes) -> bytes:
    return sha256(before + data).hexdigest().encode()


def fail(_guest: GuestView) -> int:
    return EXIT_CODE


def hide_and_score(guest: GuestView) -> None:
    """The problem: hides what stands after the `=`, and scores every prediction alike."""
    (name,) = (name for name in guest.names("/hidden_data/test") if name != "pred")
    if "detarget" in guest.args:
        guest.write(
            f"/submission_data/test/{name}", guest.read(f"/hidden_data/test/{name}").partition(b"=")[0]
        )
    else:
        guest.read(f"/submission_data/test/pred/{name}")
        guest.write("/hidden_data/perf/performance.json", f'{{"perf": {SCORE}}}')


# ------------------------------------------------------------------ what is there


@cache
def agent_key(number: int) -> SigningKey:
    return key_of(f"agent-{number}")


@cache
def storage_key(number: int) -> SigningKey:
    return key_of(f"storage-{number}")


@cache
def orchestrator_key(number: int) -> SigningKey:
    return key_of(f"o{number + 1}")


def dataset(number: int) -> DatasetRef:
    return DatasetRef(uuid_of(f"dataset/{number}"), "1")


def plaintext(number: int) -> bytes:
    return f"dataset {number}=target;".encode()


@cache
def roster_of(hosts: int) -> Roster:
    """Everybody's entries."""
    found: list[RosterEntry] = [entry_for("owner", Role.OWNER)]
    for number in range(2):
        found.append(
            entry_for(
                f"o{number + 1}", Role.ORCHESTRATOR, orchestrator_url=f"https://o{number + 1}.test:8460"
            )
        )
    for number in range(hosts):
        urls = {"storage_url": f"https://storage-{number}.test:8450"}
        agent_url = f"https://agent-{number}.test:8440"
        found.append(entry_for(f"agent-{number}", Role.AGENT, agent_url=agent_url, **urls))
        found.append(entry_for(f"storage-{number}", Role.STORAGE, **urls))
    return Roster(tuple(found))


@cache
def sealed(number: int, host: int) -> tuple[bytes, bytes, tuple[tuple[KeyId, bytes], ...]]:
    """(header, sealed file, shares) of a dataset; every fourth one's key is split over both orchestrators."""
    plain, file, ref = plaintext(number), io.BytesIO(), dataset(number)
    shares = make_seal(
        io.BytesIO(plain),
        file,
        size=len(plain),
        dataset=ref.id,
        version=ref.version,
        orchestrators=[orchestrator_key(each).keyid for each in range(1 if number % 4 else 2)],
        nodes=[agent_key(host).keyid],
        uses=("train", "test", "predict"),
        owner=key_of("owner"),
    )
    return read_preamble(io.BytesIO(file.getvalue())), file.getvalue(), shares


@cache
def model_after(train: tuple[int, ...]) -> bytes:
    """The archive of the model that training on these datasets leaves."""
    weights = b""
    for number in train:
        weights = trained(weights, plaintext(number))
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        (Path(folder) / "weights").write_bytes(weights)
        pack(Path(folder), ("weights",), Path(folder) / "model.tar")
        return (Path(folder) / "model.tar").read_bytes()


class Storages(MemoryStorages):
    """See `MemoryStorages`. `asker`: the host whose question is answered now: links may be cut, storages may be down."""

    world: "Consortium"
    asker: int = 0
    homes: dict[KeyId, KeyId]
    numbers: dict[KeyId, int]

    def storage_of(self, agent: KeyId) -> KeyId:
        return self.homes[agent]

    def ask(self, storage: KeyId) -> KeyId:
        number = self.numbers[storage]
        host = self.world.hosts[number]
        if host.is_during(Blow.STORAGE_DOWN) or self.world.is_cut(self.asker, number):
            raise StorageUnavailable("no connection")
        return storage

    def keep_blob(self, storage: KeyId, kind: BlobKind, content: bytes) -> Digest:
        digest = super().keep_blob(storage, kind, content)
        self.files[storage, digest] = compress(content, 1)  # an archive is mostly zeros, and there are many
        return digest

    def keep_dataset(self, agent: KeyId, ref: DatasetRef, header: bytes, sealed: bytes) -> DatasetInfo:
        info = super().keep_dataset(agent, ref, header, sealed)
        self.files[self.homes[agent], info.digest] = compress(sealed, 1)
        return info

    def serve(self, storage: KeyId, digest: Digest) -> bytes:
        return decompress(super().serve(storage, digest))

    def take(self, agent: KeyId, digest: Digest, kind: BlobKind, content: bytes) -> None:
        """PUT /v1/blobs."""
        if digest_of(content) != digest:
            raise AssertionError("an agent uploads other bytes than it says")
        self.keep_blob(self.ask(self.homes[agent]), kind, content)


@dataclass
class Sent:
    """An order on its way to its first host."""

    plan: OrderPlan
    signed: SignedOrder
    accepted_by: set[KeyId] = field(default_factory=set)
    is_settled: bool = False  # answered, one way or the other
    excuses: set[str] = field(default_factory=set)  # what a fault made of it


# ------------------------------------------------------------------ the consortium


class Consortium:
    """Everything of one plan. See `play`."""

    def __init__(self, plan: Plan, root: Path, open_ledger: Callable[[], Any] = SwiftLedger) -> None:
        self.plan, self.root, self.open_ledger = plan, root, open_ledger
        self.hub = Hub()
        self.counts: Counter[str] = Counter()
        self.alarms: list[str] = []
        self.handoffs: list[Taken] = []
        self.runs: list[Run] = []
        self._hash = blake2b(digest_size=16)
        self.roster = roster_of(plan.hosts)
        orchestrators = [orchestrator_key(number).keyid for number in range(2)]
        text = policy_text(orchestrators=orchestrators, images=[ALGO, BROKEN, PROBLEM], rest=SMALL)
        self.policy = HostPolicy.from_toml(text)
        self.programs = {"algo": learn_or_predict, "broken": fail, "problem": hide_and_score}
        self.images = {ALGO: "algo", BROKEN: "broken", PROBLEM: "problem"}
        self.orchestrators = Orchestrators(self.roster, self._orchestrators_now, SKEW)
        self.storages = Storages(self.roster)
        self.storages.world = self
        self.storages.homes = {agent_key(n).keyid: storage_key(n).keyid for n in range(plan.hosts)}
        self.storages.numbers = {storage_key(n).keyid: n for n in range(plan.hosts)}
        self._cuts: dict[tuple[int, int], float] = {}
        self.orchestrators_down_until_s = 0.0
        self.hosts = [SimulatedHost(number, agent_key(number), self) for number in range(plan.hosts)]
        self.by_key = {host.keyid: host for host in self.hosts}
        self._bring_datasets()
        self._bring_images()
        self.sent = {sent.signed.order.id: sent for sent in map(self._sent, plan.orders)}
        self._clients = Process("orchestrator", self.hub)
        self.dice = Random(f"{plan.seed}/clients")

    # ---- setting up

    def _bring_datasets(self) -> None:
        for number in range(self.plan.hosts * DATASETS_PER_HOST):
            host = number % self.plan.hosts
            header, file, shares = sealed(number, host)
            self.storages.keep_dataset(agent_key(host).keyid, dataset(number), header, file)
            for orchestrator, share in shares:
                self.orchestrators.shares[orchestrator, dataset(number)] = share

    def _sent(self, plan: OrderPlan) -> Sent:
        return Sent(plan, sign_order(self._order(plan), orchestrator_key(plan.number % 2)))

    def _order(self, plan: OrderPlan) -> Order:
        moment = NOW + timedelta(seconds=int(plan.at_s))
        image = ALGO if plan.guest is Guest.GOOD else BROKEN
        common: dict[str, Any] = {
            "id": OrderId(uuid_of(f"order/{plan.number}")),
            "orchestrator": orchestrator_key(plan.number % 2).keyid,
            "problem": uuid_of("problem"),
            "algo_image": ImageRef(uuid_of("algo-image"), image),
            "max_attempts": plan.max_attempts,
            "not_before": moment - HOUR,
            "expires": moment + timedelta(seconds=int(plan.expires_s)),
        }
        if plan.predict:
            content = model_after((plan.number,))
            at = plan.number % self.plan.hosts
            digest = self.storages.keep_blob(storage_key(at).keyid, BlobKind.MODEL, content)
            model = ModelRef(digest, agent_key(at).keyid)
            return Preduplet(**common, model=model, data=tuple(map(dataset, plan.predict)))
        return Learnuplet(
            **common,
            problem_image=ImageRef(uuid_of("problem-image"), PROBLEM),
            model_start=None,
            model_end=uuid_of("model-end"),
            rank=0,
            train_data=tuple(map(dataset, plan.train)),
            test_data=tuple(map(dataset, plan.test)),
        )

    def _orchestrators_now(self) -> Any:
        return NOW + timedelta(seconds=self.hub.now_s)

    def _bring_images(self) -> None:
        for storage in self.storages.numbers:
            for program in self.programs:
                self.storages.keep_blob(storage, BlobKind.IMAGE, program.encode())

    # ---- what hosts tell of themselves

    def trace(self, process: str, call: str) -> None:
        """What happened is hashed: two runs of one plan must do the same."""
        self._hash.update(f"{self.hub.now_s:.6f} {process} {call}\n".encode())

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def saw_end(self, host: SimulatedHost, container: Container) -> None:
        """A container ended."""
        self.counts["containers"] += 1
        name = container.spec.name.rpartition("-")[2]
        order_id, _, position = container.spec.labels["dc-compute.job"].rpartition(".")
        last_runs = {"predict"} if self.sent[OrderId(order_id)].plan.predict else {"train", "perf"}
        if container.cause is None and name in last_runs:
            times = MANY if host.lost_work else 1
            self.runs.append(Run(OrderId(order_id), int(position), times))

    def is_cut(self, one: int, other: int) -> bool:
        if other == ORCHESTRATORS and self.orchestrators_down_until_s > self.hub.now_s:
            return True
        return self._cuts.get((one, other), 0.0) > self.hub.now_s if self._cuts else False

    # ---- playing

    def play(self, look: Callable[[int], None]) -> None:
        """From the first order to the time when everybody is quiet, or should be. `look` hears how many tasks are over."""
        for host in self.hosts:
            host.boot()
        for sent in self.sent.values():
            self.hub.at(sent.plan.at_s, self._issue, sent)
        for fault in self.plan.faults:
            self.hub.at(fault.at_s, self._strike, fault)
        last_order_s = max((order.at_s for order in self.plan.orders), default=0.0)
        calm_s = max(self.plan.calm_at_s, last_order_s)
        while self.hub.now_s < calm_s:
            self.hub.run(min(self.hub.now_s + LOOK_EVERY_S, calm_s))
            collect_garbage()
            look(self.tasks_over)
        for host in self.hosts:
            for process in (*host.workers, *([host.api] if host.api else [])):
                process.dies_in = process.stalls_in = None
        quiet_since_s: float | None = None
        while self.hub.now_s < calm_s + PATIENCE_S:
            self.hub.run(self.hub.now_s + LOOK_EVERY_S)
            look(self.tasks_over)
            if not self.is_quiet:
                quiet_since_s = None
            elif quiet_since_s is None:
                quiet_since_s = self.hub.now_s
            elif self.hub.now_s - quiet_since_s >= QUIET_S:
                return

    @property
    def is_quiet(self) -> bool:
        """Whether every accepted order was told of to its end, no job is open and nothing waits to be told."""
        if not all(map(self._is_over, self.sent.values())):
            return False
        for host in self.hosts:
            if host.engine.containers or host.ledger.deliveries(state=DeliveryState.PENDING):
                return False
            if any(not job.is_final for job in host.ledger.jobs(JobQuery(limit=100_000))):
                return False
        return True

    @property
    def tasks_over(self) -> int:
        """Tasks of orders that nobody waits for any more."""
        return sum(sent.plan.tasks for sent in self.sent.values() if self._is_over(sent))

    def _is_over(self, sent: Sent) -> bool:
        return sent.is_settled and (not sent.accepted_by or sent.signed.order.id in self.orchestrators.ended)

    def _issue(self, sent: Sent) -> None:
        self.hub.spawn(self._clients, lambda: self._insist(sent))

    def _insist(self, sent: Sent) -> None:
        """Send the order until it is answered, or too late."""
        host, signed = self.hosts[sent.plan.to], sent.signed
        until_s = sent.plan.at_s + sent.plan.expires_s
        self.orchestrators.issue(signed, host.keyid)
        while self.hub.now_s < until_s:
            self.hub.sleep(self.dice.uniform(0.001, 0.1))
            reply = Reply(self.hub)
            host.serve(
                lambda: host.take_order(signed.envelope, signed.order.payload_type, signed.signer), reply
            )
            is_lost = not self.hub.wait(reply, 30.0) or self.is_cut(host.number, ORCHESTRATORS)
            error = reply.error
            if not is_lost and error is None:
                sent.accepted_by.add(host.keyid)
                break
            if not is_lost and isinstance(error, AgentError) and not isinstance(error, OutsideError):
                self.count("orders refused")
                break
            self.hub.sleep(self.dice.uniform(1.0, 30.0))
        if sent.plan.cancel_s is not None:
            self._cancel(sent, host)
        sent.is_settled = True

    def _cancel(self, sent: Sent, host: SimulatedHost) -> None:
        """Send the cancellation until it is answered. The orchestrator's shares are closed before anybody hears of it."""
        self.hub.sleep(max(0.0, sent.plan.at_s + (sent.plan.cancel_s or 0.0) - self.hub.now_s))
        order, key = sent.signed, orchestrator_key(sent.plan.number % 2)
        self.orchestrators.cancel(order, sent.plan.tasks)
        word = sign_cancellation(
            Cancellation(order=order.digest, issued=wire_time(self._orchestrators_now())), key
        )
        while True:
            self.hub.sleep(self.dice.uniform(0.001, 0.1))
            reply = Reply(self.hub)
            host.serve(lambda: host.take_cancellation(word.envelope, word.signer), reply)
            if (
                self.hub.wait(reply, 30.0)
                and reply.error is None
                and not self.is_cut(host.number, ORCHESTRATORS)
            ):
                break
            self.hub.sleep(self.dice.uniform(1.0, 30.0))
        self.count("orders cancelled")

    # ---- blows

    def _strike(self, fault: Fault) -> None:
        host, blow = self.hosts[fault.host], fault.blow
        match blow:
            case Blow.WORKER_KILLED:
                for worker in host.workers[fault.nth % 2 :][:1] or host.workers[:1]:
                    worker.dies_in = fault.nth
            case Blow.API_KILLED:
                if host.api is not None:
                    host.api.dies_in = fault.nth
            case Blow.WORKER_STALLED:
                for worker in host.workers[fault.nth % 2 :][:1] or host.workers[:1]:
                    worker.stalls_in = (fault.nth, fault.for_s)
            case Blow.CLOCK_JUMPED:
                host.clock_off += timedelta(seconds=fault.by_s)
                self.hub.at(self.hub.now_s + fault.for_s, self._right_clock, host)
                self.count(blow)
            case Blow.LINK_CUT | Blow.LINK_CUT_BOTH:
                until_s = self.hub.now_s + fault.for_s
                self._cuts[fault.host, fault.other] = until_s
                if blow is Blow.LINK_CUT_BOTH:
                    self._cuts[fault.other, fault.host] = until_s
                self.count(blow)
            case Blow.ORCHESTRATORS_DOWN:
                self.orchestrators_down_until_s = self.hub.now_s + fault.for_s / 4
                self.count(blow)
            case Blow.CONTAINER_KILLED | Blow.CONTAINER_LOST:
                self._strike_container(host, blow)
            case Blow.ENGINE_DOWN:
                host.engine.is_down = host.lost_work = True
                self.hub.at(self.hub.now_s + fault.for_s, self._raise_engine, host)
                self.count(blow)
            case Blow.HOST_REBOOTED:
                host.reboot()
                self.count(blow)
            case _:
                host.suffer(blow, fault.for_s)
                self.count(blow)

    def _strike_container(self, host: SimulatedHost, blow: Blow) -> None:
        for container in host.engine.running[:1]:
            order_id = container.spec.labels["dc-compute.job"].rpartition(".")[0]
            if blow is Blow.CONTAINER_KILLED:
                self.sent[OrderId(order_id)].excuses.add("signal:9")
            host.engine.end(container, "signal:9" if blow is Blow.CONTAINER_KILLED else "unknown")
            self.count(blow)

    def _right_clock(self, host: SimulatedHost) -> None:
        host.clock_off = timedelta()

    def _raise_engine(self, host: SimulatedHost) -> None:
        host.engine.is_down = False

    # ---- judging

    def seen(self) -> Seen:
        """What an outsider sees."""
        reports = [
            Told(orchestrator, order_id, position, reporter, n, body)
            for orchestrator, told in self.orchestrators.reports.items()
            for (order_id, position, reporter, n), body in told.items()
        ]
        results = [
            ToldResult(orchestrator, order_id, self.orchestrators.tellers[order_id], body)
            for orchestrator, told in self.orchestrators.results.items()
            for order_id, body in told.items()
        ]
        blobs: dict[KeyId, set[Digest]] = {storage: set() for storage in self.storages.numbers}
        for storage, digest in self.storages.files:
            blobs[storage].add(digest)
        return Seen(
            orders=[self._issued(sent) for sent in self.sent.values()],
            reports=reports,
            results=results,
            handoffs=self.handoffs,
            runs=self.runs,
            blobs=blobs,
            alarms=self.alarms,
            left=[what for host in self.hosts for what in host.left()],
            crashes=self.hub.crashes,
            locate=lambda ref: frozenset(place.agent for place in self.storages.datasets[ref].locations),
        )

    def _issued(self, sent: Sent) -> Issued:
        plan, excuses = sent.plan, set(sent.excuses)
        if plan.guest is Guest.FAILS:
            excuses.add(f"exit:{EXIT_CODE}")
        if any(
            self.hosts[number % self.plan.hosts].lost_work
            for number in (*plan.train, *plan.test, *plan.predict)
        ):
            excuses.add("no-space")
        if plan.cancel_s is not None:
            excuses |= {"cancel", "share-withheld"}
        if plan.expires_s < DAY.total_seconds():
            excuses |= {"order-expired", "the order expired", "share-withheld", "-unavailable", "bad-answer"}
        return Issued(
            envelope=sent.signed.envelope,
            accepted_by=frozenset(sent.accepted_by),
            may_fail=ANYTHING if plan.max_attempts < 50 else frozenset(excuses),
            must_fail=plan.guest is Guest.FAILS,
            is_cancelled=plan.cancel_s is not None,
            model=digest_of(model_after(plan.train)) if plan.train else None,
        )

    @property
    def trace_hash(self) -> str:
        return self._hash.hexdigest()


# ------------------------------------------------------------------ one plan, played


@dataclass(frozen=True)
class Played:
    """What came of a plan. `counts`: what was done, by name."""

    violations: tuple[Violation, ...]
    trace: str
    counts: Counter[str]
    virtual_s: float


@contextmanager
def garbage_by_hand() -> Iterator[None]:
    """While the context lasts nothing is looked at twice: most of it is kept to the end."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_on:
            gc.enable()


def collect_garbage() -> None:
    """What is unreachable goes, and what is left is never looked at again."""
    if not gc.isenabled():
        gc.collect()
        gc.freeze()


def play(plan: Plan, look: Callable[[int], None] = lambda tasks: None) -> Played:
    """Play it, judge it. `look` hears from time to time how many of its tasks are over."""
    with ExitStack() as stack:
        stack.enter_context(garbage_by_hand())
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=MEMORY)))
        world = Consortium(plan, root)
        stack.enter_context(simulated_machine(world))
        world.play(look)
        violations = check(world.seen(), world.roster)
        counts = world.counts + Counter(
            orders=len(world.sent), accepted=sum(bool(s.accepted_by) for s in world.sent.values())
        )
        virtual_s = world.hub.now_s
        trace = world.trace_hash
        world.hub.close()
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
    return Played(violations, trace, counts, virtual_s)
