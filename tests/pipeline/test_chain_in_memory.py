"""One order on three hosts: it trains on A, B, C, then A again and is tested on C, while any of their processes may die.

A life is a process from its start to its death: it sweeps, answers the bells that are due, and ends. A life that fate
ends earlier stops for ever inside a port call, before or behind its effect, as SIGKILL would stop it: no `finally` of it
runs, its container runs on and its workspace stays. A life may also stall, as under SIGSTOP, until its lease is long over
and others went on; then it wakes up as if nothing had happened. In the end the order must be done as if nothing had: each
task attested once, one result, one model, nothing left lying about.
"""

import io
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.domain.ids import KeyId
from agent.domain.jobs import JobState
from agent.domain.orders import SignedOrder
from agent.domain.reports import ReportState, envelope_bytes
from agent.errors import OrchestratorUnavailable, OutsideError, PeerUnavailable
from agent.pipeline.host import Host
from agent.pipeline.intake import take_handoff, take_order
from agent.pipeline.resume import sweep
from agent.ports.broker import Queue
from agent.ports.ledger import Ledger
from agent.ports.ledger_sqlalchemy import open_ledger
from agent.trust.audit import audit_chain
from tests.fakes.hands import MemoryHands
from tests.fakes.ledger import MemoryLedger
from tests.pipeline.world import LEASE, SCORE, Hospital, Tapped, World, plaintext

TRAIN, TEST = ("a1", "b1", "c1", "a2"), ("c2",)
PARTS = 4  # of the longest test, to run beside each other
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
ROUNDS_ASLEEP = 3
ROUNDS = 150  # of a life at each hospital and a minute: more than all that can go wrong takes


class KilledError(BaseException):
    """Unwinds a process that is dead already."""


# ------------------------------------------------------------------ lives and fate


@dataclass
class Fate:
    """What goes wrong, by number: at which gates a process dies or stalls, which bells are lost or doubled, and which answers
    of peers and orchestrators are lost on their way back. A gate is a moment before or behind a port call of any process.
    """

    deaths: frozenset[int] = frozenset()
    stalls: frozenset[int] = frozenset()
    lost_bells: frozenset[int] = frozenset()
    doubled_bells: frozenset[int] = frozenset()
    lost_answers: frozenset[int] = frozenset()
    gates: Iterator[int] = field(default_factory=count)
    bells: Iterator[int] = field(default_factory=count)
    answers: Iterator[int] = field(default_factory=count)
    stalled: list["Life"] = field(default_factory=list)
    threads: list[tuple["Life", threading.Thread]] = field(default_factory=list)
    blows: int = 0  # deaths and stalls that happened

    def rings(self) -> int:
        """How often the next bell rings. Of those that are lost every other one is seen to be lost."""
        bell = next(self.bells)
        if bell in self.lost_bells and bell % 2:
            raise OutsideError("the disk with the queues is full")
        return 0 if bell in self.lost_bells else 2 if bell in self.doubled_bells else 1

    def answer(self, error: Exception) -> None:
        """The next answer arrives, or not."""
        if next(self.answers) in self.lost_answers:
            raise error


class Life:
    """A process from its start to its end or its death."""

    def __init__(self, fate: Fate, *, is_unwound: bool = False) -> None:
        self.fate = fate
        self.is_unwound = is_unwound  # it dies by an exception: enough where no `finally` cleans up
        self.stopped = threading.Event()  # dead, stalled, or at its end
        self.goes_on = (
            threading.Event()
        )  # woken from its stall; or the test is over, and a dead thread may go
        self.is_dead = False
        self.slept = 0  # rounds
        self.error: BaseException | None = None  # what it ended with: a bug

    def gate(self, _call: str) -> None:
        """Pass, stall, or die here."""
        if self.is_dead:
            raise KilledError
        gate = next(self.fate.gates)
        if gate in self.fate.deaths:
            self.fate.blows += 1
            self.is_dead = True
            if not self.is_unwound:
                self._stop()
            raise KilledError
        if gate in self.fate.stalls and not self.is_unwound:
            self.fate.blows += 1
            self.fate.stalled.append(self)
            self._stop()

    def _stop(self) -> None:
        self.stopped.set()
        self.goes_on.wait()
        self.goes_on.clear()

    def wake(self) -> None:
        """Go on after a stall, until the next one, the end or death."""
        self.stopped.clear()
        self.goes_on.set()
        self.see()

    def see(self) -> None:
        """Wait until it stops. Raises: what it ended with."""
        self.stopped.wait()
        if self.error is not None:
            raise self.error


class FatedBroker:
    """A broker whose bells are lost or doubled as fate has it."""

    def __init__(self, hospital: Hospital, fate: Fate) -> None:
        self._hospital, self._fate = hospital, fate

    def ring(self, queue: Queue, item: str, *, delay_s: float = 0.0) -> None:
        for _ in range(self._fate.rings()):
            self._hospital.broker.ring(queue, item, delay_s=delay_s)

    def ring_all(self, queue: Queue, items: Sequence[str]) -> None:
        for item in items:
            self.ring(queue, item)


def mortal(hospital: Hospital, life: Life) -> Host:
    """The host as a process of this life has it: every port call may be its last, before its effect or just behind it."""

    def gated(port: object, after: Callable[[str], None] = lambda _: None) -> Any:
        def behind(call: str) -> None:
            after(call)
            life.gate(call)

        return Tapped(port, before=life.gate, after=behind)

    real, fate = hospital.host.ports, life.fate
    hands = real.hands
    assert isinstance(hands, MemoryHands)
    ports = replace(
        real,
        ledger=gated(real.ledger),
        broker=gated(FatedBroker(hospital, fate)),
        storage=gated(real.storage),
        orchestrators=gated(real.orchestrators, lambda _: fate.answer(OrchestratorUnavailable("no answer"))),
        peers=gated(real.peers, lambda _: fate.answer(PeerUnavailable("no answer"))),
        runtime=gated(real.runtime),
        hands=hands.of_process(lambda: life.is_dead),
    )
    return replace(hospital.host, ports=ports)


def live(hospital: Hospital, fate: Fate) -> None:
    """One life of a worker's process, to its end or its death."""
    life = Life(fate)
    host = mortal(hospital, life)

    def process() -> None:
        try:
            sweep(host)
            hospital.broker.pump(hospital.handlers(host))
        except KilledError:
            return
        except BaseException as error:
            life.error = error
        life.stopped.set()

    thread = threading.Thread(target=process, daemon=True)
    fate.threads.append((life, thread))
    thread.start()
    life.see()


@contextmanager
def judged(fate: Fate) -> Iterator[None]:
    """Let the threads of the dead go when all is said."""
    try:
        yield
    finally:
        for life, thread in fate.threads:
            life.is_dead = True
            life.goes_on.set()
            thread.join()


# ------------------------------------------------------------------ the play


def play(world: World, order: SignedOrder, at: Hospital, fate: Fate) -> None:
    """Give the order to this hospital and let all of them live, and die, until everybody is done."""
    for hospital in world:
        world.peers.doors[hospital.keyid] = mortal_door(hospital, fate)
    while True:  # an orchestrator sends again what was not answered
        with suppress(KilledError):
            host = mortal(at, Life(fate, is_unwound=True))
            take_order(order.envelope, order.order.payload_type, order.signer, host)
            break
    for _ in range(ROUNDS):
        for hospital in world:
            live(hospital, fate)
        if world.is_quiet and not fate.stalled:
            return
        world.pass_time(LEASE.total_seconds() + 1)
        sleepers, fate.stalled = fate.stalled, []
        for life in sleepers:  # who stalled sleeps through a few rounds; what it has in hand waits for it
            life.slept += 1
            if life.slept % ROUNDS_ASLEEP == 0 or world.is_quiet:
                life.wake()
            else:
                fate.stalled.append(life)


def mortal_door(hospital: Hospital, fate: Fate) -> Callable[[bytes, KeyId], object]:
    """POST /v1/handoffs of a process that may die while it answers."""

    def door(body: bytes, sender: KeyId) -> object:
        try:
            return take_handoff(body, sender, mortal(hospital, Life(fate, is_unwound=True)))
        except KilledError as cause:
            raise PeerUnavailable("the connection broke") from cause

    return door


def check(world: World, order: SignedOrder, train: Sequence[str] = TRAIN, test: Sequence[str] = TEST) -> None:
    """What must be so in the end, seen from outside, whatever happened on the way."""
    count = len(train) + len(test)
    states = {(h.name, job.position): (job.state, job.reason) for h in world for job in h.jobs()}
    assert set(states.values()) == {(JobState.DONE, None)}, states

    receipts = {(r.receipt.position, r.digest) for h in world for r in h.ledger.receipts(order.digest)}
    assert sorted(position for position, _ in receipts) == list(range(count))
    done = [told.position for told in world.told(order, ReportState.DONE)]
    assert sorted(done) == list(range(count))
    assert world.told(order, ReportState.FAILED) == []

    told = world.result(order)
    envelopes = [envelope_bytes(receipt) for receipt in told.receipts]
    audit = audit_chain(order.envelope, envelopes, world.people.roster, locate=world.people.locate)
    assert audit.is_complete
    assert told.mean == SCORE
    assert told.model is not None
    assert final_model(world, told.model.agent, told.model.digest) == "".join(map(plaintext, train))

    for position in range(1, count):
        assert len([place for place in states if place[1] == position]) == 1
    assert [hospital.leftovers() for hospital in world] == [[], [], []]


def final_model(world: World, agent: KeyId, digest: Any) -> str:
    (home,) = [hospital for hospital in world if hospital.keyid == agent]
    with tarfile.open(fileobj=io.BytesIO(home.blob(digest))) as tar:
        content = tar.extractfile("weights")
        assert content is not None
        return content.read().decode()


# ------------------------------------------------------------------ in peace


@pytest.mark.parametrize("at", ["a", "b", "c"])
def test_an_order_walks_its_chain_wherever_it_arrives(at: str, world: World) -> None:
    order = world.order(train=TRAIN, test=TEST)
    world.post(order, world.hospitals[at])

    world.work()

    check(world, order)
    assert {hospital.name: hospital.runs() for hospital in world} == {
        "a": ["train", "train"],
        "b": ["train"],
        "c": ["train", "detarget", "predict", "perf"],
    }
    assert sorted(world.story(order)) == sorted(
        (position, state) for position in range(5) for state in ("started", "done")
    )


def test_every_share_was_released_to_the_holder_of_the_dataset_once(world: World) -> None:
    order = world.order(train=TRAIN, test=TEST)
    world.post(order, world.a)

    world.work()

    expected = [
        (orchestrator, world.people.holder(ref).keyid, ref)
        for ref in (*order.order.train_data, *order.order.test_data)  # type: ignore[union-attr]
        for orchestrator in (world.o1, world.o2)
    ]
    assert world.orchestrators.releases == expected


def test_many_orders_walk_beside_each_other(world: World) -> None:
    orders = [world.order(id=f"00000000-0000-4000-8000-{number:012}", rank=number) for number in range(8)]
    for number, order in enumerate(orders):
        world.post(order, (world.a, world.b, world.c)[number % 3])

    world.settle()

    for order in orders:
        assert world.has_result(order)
        assert len(world.told(order, ReportState.DONE)) == 5
    assert [len(hospital.runs()) for hospital in world] == [16, 8, 32]


# ------------------------------------------------------------------ blows


def suffer(
    fate: Fate,
    *,
    at: str = "a",
    train: Sequence[str] = TRAIN,
    test: Sequence[str] = TEST,
    open_ledger: Callable[[Path], Ledger] = lambda _: MemoryLedger(),
) -> None:
    """Let one order meet this fate, and end well all the same."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        world = World(Path(folder), open_ledger)
        order = world.order(train=train, test=test, max_attempts=100)
        with judged(fate):
            play(world, order, world.hospitals[at], fate)
            check(world, order, train, test)
        for hospital in world:
            hospital.ledger.close()


SHORT: dict[str, Any] = {
    "at": "b",
    "train": ("a1",),
    "test": ("c2",),
}  # an order that still passes all three hosts


def gates_of(part: int) -> range:
    """Every gate that the short order passes in peace, or this part of them."""
    peace = Fate()
    suffer(peace, **SHORT)
    return range(part, next(peace.gates), PARTS)


@pytest.mark.parametrize("part", range(PARTS))
def test_a_process_killed_at_any_one_call_loses_nothing_and_doubles_nothing(part: int) -> None:
    for gate in gates_of(part):
        fate = Fate(deaths=frozenset({gate}))

        suffer(fate, **SHORT)

        assert fate.blows == 1


@pytest.mark.parametrize("part", range(PARTS))
def test_a_worker_that_stalls_at_any_one_call_and_wakes_too_late_does_no_harm(part: int) -> None:
    for gate in gates_of(part):
        suffer(Fate(stalls=frozenset({gate})), **SHORT)


@pytest.mark.parametrize("what", ["lost_bells", "doubled_bells", "lost_answers"])
def test_any_one_bell_or_answer_may_be_lost_or_doubled(what: str) -> None:
    for number in range(24):
        suffer(replace(Fate(), **{what: frozenset({number})}), **SHORT)  # type: ignore[arg-type]


MOMENTS = st.frozensets(st.integers(0, 900), max_size=12)
FEW = st.frozensets(st.integers(0, 60), max_size=12)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.sampled_from("abc"), deaths=MOMENTS, stalls=MOMENTS, lost=FEW, doubled=FEW, unanswered=FEW)
def test_whatever_dies_and_is_lost_the_order_is_done_once(
    at: str,
    deaths: frozenset[int],
    stalls: frozenset[int],
    lost: frozenset[int],
    doubled: frozenset[int],
    unanswered: frozenset[int],
) -> None:
    suffer(Fate(deaths, stalls, lost, doubled, unanswered), at=at)


@settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(every=st.integers(13, 60), offset=st.integers(0, 60))
def test_hosts_that_are_killed_again_and_again_still_end_the_order(every: int, offset: int) -> None:
    suffer(Fate(deaths=frozenset(range(offset, 1500, every))), at="b")


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(deaths=MOMENTS, stalls=MOMENTS, lost=FEW, unanswered=FEW)
def test_so_it_is_on_the_ledger_that_hosts_really_have(
    deaths: frozenset[int], stalls: frozenset[int], lost: frozenset[int], unanswered: frozenset[int]
) -> None:
    def open_real(folder: Path) -> Ledger:
        return open_ledger(folder / "ledger.sqlite")

    suffer(Fate(deaths, stalls, lost, lost_answers=unanswered), open_ledger=open_real)
