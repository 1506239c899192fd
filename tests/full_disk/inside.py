"""A whole agent on a small file system that really fills up, at every moment of an order's walk. Run by `test_full_disk.py`.

Ledger, queues, spool and workspaces lie on the tmpfs that $SMALL_DISK names. The disk is filled behind one port
call, the agent goes on as it can, then there is room again. What must come of it: nothing that was accepted is lost, every
effect happened once, the ledger's file is whole, and no error was any but ours.
"""

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from threading import Event

import pytest

from agent.domain.jobs import JobState
from agent.domain.orders import SignedOrder
from agent.domain.receipts import Outcome
from agent.domain.reports import ReportState
from agent.errors import AgentError, LedgerFull, NoSpace, OutsideError
from agent.pipeline.host import Host
from agent.pipeline.intake import take_order
from agent.pipeline.resume import sweep
from agent.ports.broker import Queue
from agent.ports.broker_huey import HueyBroker
from agent.ports.ledger_sqlalchemy import open_ledger
from tests.fakes.runtime import Guest, Program
from tests.pipeline.world import LEASE, POLICY, SMALL, Hospital, Tapped, World

DISK = Path(os.environ.get("SMALL_DISK", "/nowhere"))
FILL = "ballast"
PIECE = bytes(1 << 20)
SMALLER = (
    "ceilings.output_bytes = 1048576\nceilings.output_files = 100\n"  # so that a task fits beside a ledger
)
PARTS = 4
MOMENTS = 400  # more than there are port calls in one order's walk: the last one fills nothing


def fill() -> None:
    """Take the last byte."""
    with (DISK / FILL).open("ab", buffering=0) as file:
        size = len(PIECE)
        while size:
            try:
                file.write(PIECE[:size])
            except OSError:
                size //= 2


def free() -> None:
    (DISK / FILL).unlink(missing_ok=True)


@pytest.fixture
def disk() -> Iterator[Path]:
    assert os.path.ismount(DISK), "this file is run by test_full_disk.py"
    folder = DISK / "agent"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        free()
        shutil.rmtree(folder)


# ------------------------------------------------------------------ an agent there


class BothBells:
    """The real queues on the full disk; a bell that they took also rings where the test can answer it."""

    def __init__(self, real: HueyBroker, hospital: Hospital) -> None:
        self.real, self.hospital = real, hospital
        self.lost = 0

    def ring(self, queue: Queue, item: str, *, delay_s: float = 0.0) -> None:
        try:
            self.real.ring(queue, item, delay_s=delay_s)
        except OutsideError:
            self.lost += 1
            raise
        self.hospital.broker.ring(queue, item, delay_s=delay_s)

    def ring_all(self, queue: Queue, items: Sequence[str]) -> None:
        for item in items:
            self.ring(queue, item)

    def depth(self) -> object:
        return self.real.depth()


def roomy(guest: Program) -> Program:
    """What a guest may write is reserved for it: what fills the disk does not reach it."""

    def run(inside: Guest) -> int | None:
        free()
        return guest(inside)

    return run


class Agent:
    """Hospital a with everything of its own on the small disk, and the moment at which that fills up."""

    def __init__(self, folder: Path, moment: int) -> None:
        self.world = World(folder, lambda where: open_ledger(where / "ledger" / "ledger.db"))
        self.a = self.world.a
        self.a.allows(POLICY.replace(SMALL, SMALLER))
        self.queues = HueyBroker(folder / "a" / "queues.db")
        self.bells = BothBells(self.queues, self.a)
        self.moments, self.moment = count(), moment
        self.filled_at: str | None = None
        self.codes: set[str] = set()  # of the errors that it went through
        real = self.a.host.ports
        ports = {name: self._tapped(name, getattr(real, name)) for name in PORTS}
        rules = replace(self.a.host.rules, records=(folder / "a",))
        self.host: Host = replace(
            self.a.host,
            rules=rules,
            ports=replace(real, broker=self.bells, **ports),  # type: ignore[arg-type]
        )

        self.world.algo, self.world.problem = roomy(self.world.algo), roomy(self.world.problem)

    def _tapped(self, port: str, real: object) -> Tapped:
        def behind(call: str) -> None:
            self.meet(f"behind {port}.{call}")

        return Tapped(real, after=behind)

    def meet(self, where: str) -> None:
        """The disk fills up here when this is the moment."""
        if next(self.moments) == self.moment:
            self.filled_at = where
            fill()

    def close(self) -> None:
        self.queues.close()
        for hospital in self.world:
            hospital.ledger.close()

    # ---- as its processes do

    def post(self, order: SignedOrder) -> bool:
        """Whether the order was accepted."""
        self.meet("before intake")
        try:
            take_order(order.envelope, order.order.payload_type, order.signer, self.host)
        except (NoSpace, LedgerFull) as error:
            self.codes.add(error.code)
            return False
        return True

    def work(self) -> None:
        """Answer what rings. As in a worker, an error of ours ends a bell and nothing else; any other fails the test."""
        handlers = self.a.handlers(self.host)

        def guarded(queue: Queue, item: str) -> None:
            try:
                handlers[queue](item)
            except AgentError as error:
                self.codes.add(error.code)

        self.a.broker.pump({queue: partial(guarded, queue) for queue in Queue})

    def minute(self) -> None:
        self.world.pass_time(LEASE.total_seconds() + 1)
        with suppress(AgentError):
            sweep(self.host)


PORTS = ("ledger", "storage", "orchestrators", "runtime")


def settle(agent: Agent) -> None:
    for _ in range(30):
        agent.work()
        if agent.world.is_quiet:
            return
        agent.minute()
    raise AssertionError(f"not quiet: {agent.filled_at} {agent.a.jobs()}")


def check(agent: Agent, order: SignedOrder) -> None:
    world, where = agent.world, agent.filled_at
    states = {job.position: (job.state, job.attempt) for job in agent.a.jobs()}
    assert {state for state, _ in states.values()} == {JobState.DONE}, (where, states)
    assert all(attempt <= 2 for _, attempt in states.values()), (
        where,
        states,
    )  # it costs an attempt, no more
    assert sorted(told.position for told in world.told(order, ReportState.DONE)) == [0, 1], where
    assert world.told(order, ReportState.FAILED) == [], where
    assert world.has_result(order), where
    receipts = agent.a.ledger.receipts(order.digest)
    assert [r.receipt.outcome for r in receipts] == [Outcome.DONE, Outcome.DONE], where
    assert [name for name in agent.a.leftovers() if not name.startswith("held")] == [], where


def is_whole(folder: Path) -> bool:
    with closing(sqlite3.connect(folder / "a" / "ledger" / "ledger.db")) as plain:
        return plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# ------------------------------------------------------------------ at every moment


@pytest.mark.parametrize("part", range(PARTS))
def test_a_disk_that_fills_up_at_any_moment_costs_an_attempt_and_nothing_else(disk: Path, part: int) -> None:
    filled, codes, lost = [], set[str](), 0
    for moment in range(part, MOMENTS, PARTS):
        folder = disk / str(moment)
        folder.mkdir()
        agent = Agent(folder, moment)
        order = agent.world.order(train=("a1",), test=("a2",), max_attempts=5)
        is_accepted = agent.post(order)
        agent.work()
        free()
        if not is_accepted:
            assert agent.post(order), agent.filled_at
        settle(agent)

        check(agent, order)
        agent.close()
        assert is_whole(folder), agent.filled_at
        shutil.rmtree(folder)
        if agent.filled_at is None:
            break
        filled.append(agent.filled_at)
        codes |= agent.codes
        lost += agent.bells.lost
    assert len(filled) > 20
    assert "ledger-full" in codes  # else nothing was tried
    assert lost > 0
    sys.stdout.write(f"filled {len(filled)} times: {', '.join(filled)}; {codes}; {lost} bells lost\n")


def ring_until_it_fails(queues: HueyBroker) -> None:
    for n in range(10_000):  # until the room that the file has already is used up
        queues.ring(Queue.LEARN_TASKS, f"lost {n}")


def test_bells_that_a_full_disk_takes_are_lost_and_later_ones_ring(disk: Path) -> None:
    queues, heard = HueyBroker(disk / "queues.db"), Event()
    consumer = queues.consumer({Queue.DELIVERIES: lambda item: heard.set() if item == "later" else None}, {})
    consumer.start()
    fill()
    with pytest.raises(OutsideError):
        ring_until_it_fails(queues)

    free()
    queues.ring(Queue.DELIVERIES, "later")

    assert heard.wait(30)
    consumer.stop()
    queues.close()
    with closing(sqlite3.connect(disk / "queues.db")) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_ledger_is_not_made_on_a_full_disk_and_is_when_there_is_room(disk: Path) -> None:
    fill()
    with pytest.raises(LedgerFull):
        open_ledger(disk / "new" / "ledger.db")

    free()
    open_ledger(disk / "new" / "ledger.db").close()


def test_a_full_disk_is_made_room_on_by_the_sweep_alone(disk: Path) -> None:
    agent = Agent(disk, -1)
    left = agent.a.workspaces / "e7aa231d-09a6-509c-9aa2-ea51b3c030fe.9.1"
    left.mkdir()
    (left / "dataset").write_bytes(bytes(4 << 20))
    fill()
    order = agent.world.order(train=("a1",), test=(), max_attempts=5)
    assert not agent.post(order)

    agent.minute()

    assert not left.exists()
    assert agent.post(order)
    settle(agent)
    agent.close()


@pytest.mark.parametrize("moment", [0, 7, 15, 25, 40, 60])
def test_a_disk_that_stays_full_for_an_hour_loses_nothing_that_was_accepted(disk: Path, moment: int) -> None:
    agent = Agent(disk, moment)
    order = agent.world.order(train=("a1",), test=("a2",), max_attempts=5)
    is_accepted = agent.post(order)
    for _ in range(60):
        agent.work()
        agent.minute()
    assert agent.filled_at is not None
    assert agent.post(order) is is_accepted or not is_accepted
    free()
    if not is_accepted:
        assert agent.post(order)
    settle(agent)

    ends = {job.position: job for job in agent.a.jobs()}
    assert all(job.is_final for job in ends.values())
    failed = [job for job in ends.values() if job.state is JobState.FAILED]
    assert all(job.reason == "no-space" for job in failed)  # the one retry found it full as well
    assert len(agent.world.told(order, ReportState.FAILED)) == len(failed)
    assert bool(failed) is not agent.world.has_result(order)
    agent.close()
    assert is_whole(disk)
