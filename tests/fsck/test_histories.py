"""fsck and backups at any moment of a history: three hosts work on an order, are killed and stall, and at each of their calls
the ledgers agree with themselves. A backup taken at any of them holds what anybody outside had been told.
"""

import io
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.domain.backups import BackupFile
from agent.domain.control import Mode
from agent.domain.ids import Digest, OrderId, digest_of, job_id
from agent.domain.orders import SignedOrder
from agent.domain.reports import ReportState, envelope_bytes
from agent.errors import NotFound
from agent.ports.ledger import DeliveryKind, DeliveryState, Ledger
from agent.ports.ledger_sqlalchemy import open_ledger
from agent.ports.ledger_sqlalchemy_backup import back_up, restore
from agent.trust.envelope import parse_envelope
from tests.builders import SKEW
from tests.fsck.stage import findings_in
from tests.pipeline.test_chain_in_memory import MEMORY, SHORT, Fate, check, judged, play
from tests.pipeline.world import Hospital, World

Watch = Callable[[World, SignedOrder, int], None]
MOMENTS = st.frozensets(st.integers(0, 400), max_size=6)


def path_of(hospital: Hospital) -> Path:
    return hospital.world.root / hospital.name / "ledger.sqlite"


def watched(watch: Watch, world: World, order: SignedOrder) -> Iterator[int]:
    """The gates of a history, with a look at the world at each."""
    for gate in count():
        watch(world, order, gate)
        yield gate


def suffer(watch: Watch, deaths: frozenset[int] = frozenset(), stalls: frozenset[int] = frozenset()) -> None:
    """Let one short order meet this fate on real ledgers, watched at every call."""

    def open_real(folder: Path) -> Ledger:
        return open_ledger(folder / "ledger.sqlite")

    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        world = World(Path(folder), open_real)
        order = world.order(train=SHORT["train"], test=SHORT["test"], max_attempts=100)
        fate = Fate(deaths, stalls, gates=watched(watch, world, order))
        with judged(fate):
            play(world, order, world.hospitals[SHORT["at"]], fate)
            check(world, order, SHORT["train"], SHORT["test"])
        for hospital in world:
            hospital.ledger.close()


def agree(world: World, _order: SignedOrder, gate: int) -> None:
    found = {h.name: findings_in(path_of(h), world.people.roster, h.keyid) for h in world}
    assert found == {"a": [], "b": [], "c": []}, gate


def test_in_peace_a_ledger_agrees_with_itself_at_every_call() -> None:
    suffer(agree)


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(deaths=MOMENTS, stalls=MOMENTS)
def test_whatever_dies_and_stalls_it_does(deaths: frozenset[int], stalls: frozenset[int]) -> None:
    suffer(agree, deaths, stalls)


# ------------------------------------------------------------------ backups of any moment


class Backups:
    """Backups of every hospital at one gate, and what everybody outside had been told until then."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.taken: dict[str, tuple[bytes, BackupFile]] = {}
        self.receipts: dict[str, set[Digest]] = {}
        self.jobs: dict[str, set[int]] = {}

    def __call__(self, world: World, order: SignedOrder, gate: int) -> None:
        if gate != self.at:
            return
        for hospital in world:
            self.receipts[hospital.name] = {
                digest
                for told in world.told(order, ReportState.DONE)
                if told.receipt is not None
                for digest, signer in [_opened(envelope_bytes(told.receipt))]
                if signer == hospital.keyid
            }
            self.jobs[hospital.name] = set()
        for hospital in world:
            for delivery in hospital.ledger.deliveries(state=DeliveryState.ACKNOWLEDGED):
                if delivery.kind is DeliveryKind.HANDOFF:
                    (there,) = [other for other in world if other.keyid == delivery.target]
                    job = hospital.ledger.job(delivery.job)
                    self.jobs[there.name].add(job.position + (job.attempt > 0))
        for hospital in world:
            file = world.root / f"{hospital.name}.backup"
            told = back_up(path_of(hospital), file, agent=hospital.keyid, now=world.clock(), overwrite=False)
            self.taken[hospital.name] = file.read_bytes(), told


def _opened(envelope: bytes) -> tuple[Digest, str]:
    parsed = parse_envelope(envelope, limit_bytes=1 << 20)
    return parsed.digest, parsed.keyid


@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.integers(0, 150), deaths=MOMENTS, stalls=MOMENTS)
def test_a_backup_of_any_moment_holds_what_anybody_had_been_told_and_is_put_back_clean(
    at: int, deaths: frozenset[int], stalls: frozenset[int]
) -> None:
    backups = Backups(at)
    worlds: list[tuple[World, SignedOrder]] = []

    def watch(world: World, order: SignedOrder, gate: int) -> None:
        worlds[:] = [(world, order)]
        backups(world, order, gate)

    suffer(watch, deaths, stalls)

    ((world, order),) = worlds
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        for name, (content, told) in backups.taken.items():
            hospital, path = world.hospitals[name], Path(folder) / name / "ledger.sqlite"
            assert digest_of(content) == told.digest
            restore(path, io.BytesIO(content), me=(hospital.keyid,), now=world.clock(), skew=SKEW, uid=None)
            assert findings_in(path, world.people.roster, hospital.keyid) == []
            ledger = open_ledger(path)
            assert ledger.control().mode is Mode.RESTORED
            kept = {receipt.digest for receipt in ledger.receipts(order.digest)}
            assert backups.receipts[name] <= kept
            for position in backups.jobs[name]:
                assert ledger.job(job_id(order.order.id, position)).position == position
            ledger.close()


def test_what_came_after_a_backup_is_not_in_it() -> None:
    """The other half of the property: it would hold of a test that looks at nothing."""
    early = Backups(0)
    seen: list[World] = []

    def watch(world: World, order: SignedOrder, gate: int) -> None:
        seen[:] = [world]
        early(world, order, gate)

    suffer(watch)

    (world,) = seen
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        content, told = early.taken["a"]
        path = Path(folder) / "a" / "ledger.sqlite"
        restore(path, io.BytesIO(content), me=(world.a.keyid,), now=world.clock(), skew=SKEW, uid=None)
        ledger = open_ledger(path)
        with pytest.raises(NotFound):
            ledger.job(job_id(told_order(world), 0))
        ledger.close()
    assert told.orders == 0


def told_order(world: World) -> OrderId:
    return world.order(train=SHORT["train"], test=SHORT["test"], max_attempts=100).order.id
