"""Writes of one moment share one commit, and nobody pays for another's failure."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection

from agent.domain.ids import OrderId
from agent.errors import AgentError, JobFailed, LedgerUnavailable, QueueFull
from agent.ports.ledger import Candidate, JobQuery
from agent.ports.ledger_sqlalchemy import SqlAlchemyLedger, open_ledger
from agent.ports.ledger_sqlalchemy_prepared import driver_of
from tests.builders import NOW
from tests.ports.ledger_stage import PEER, arrival, at, fresh_ledger, order_named

ROOT = Path(__file__).resolve().parents[2]
MANY = 8


class Commits:
    """What the ledger calls before each of its commits."""

    def __init__(self) -> None:
        self.count = 0
        self.error: AgentError | None = None

    def __call__(self) -> None:
        self.count += 1
        if self.error is not None:
            raise self.error


@pytest.fixture
def commits() -> Commits:
    return Commits()


@pytest.fixture
def ledger(tmp_path: Path, commits: Commits) -> Iterator[SqlAlchemyLedger]:
    fresh_ledger(tmp_path / "ledger").close()
    with closing(open_ledger(tmp_path / "ledger" / "ledger.db", before_commit=commits)) as opened:
        yield opened


@contextmanager
def at_one_moment(
    ledger: SqlAlchemyLedger, acts: Sequence[Callable[[], object]]
) -> Iterator[list[Future[object]]]:
    """All of these wait for the ledger at the same time; what came of each, once nobody keeps it from them any more."""
    group = ledger._file._group
    with ThreadPoolExecutor(len(acts)) as pool:
        with ledger._file._turn:
            futures = [pool.submit(act) for act in acts]
            deadline = time.monotonic() + 30
            while len(group._waiting) < len(acts):
                assert time.monotonic() < deadline
                time.sleep(0.001)
        yield futures


def admitting(ledger: SqlAlchemyLedger, name: str, limit: int = 1000) -> Callable[[], OrderId]:
    def act() -> OrderId:
        return ledger.admit(arrival(order_named(name)), NOW, max_attempts=3, queue_limit=limit).job.order_id

    return act


def recorded(ledger: SqlAlchemyLedger) -> set[OrderId]:
    return {job.order_id for job in ledger.jobs(JobQuery(limit=1000))}


def test_orders_of_one_moment_share_one_commit(ledger: SqlAlchemyLedger, commits: Commits) -> None:
    names = [f"order {n}" for n in range(MANY)]
    before = commits.count

    with at_one_moment(ledger, [admitting(ledger, name) for name in names]) as futures:
        answered = {future.result() for future in futures}

    assert commits.count == before + 1
    assert answered == recorded(ledger) == {order_named(name).order.id for name in names}
    lines = ledger.events()
    assert [line.seq for line in lines] == list(range(1, MANY + 1))
    assert all(line.digest for line in lines)


def test_what_is_brought_together_shares_one_commit_with_who_waits_too(
    ledger: SqlAlchemyLedger, commits: Commits
) -> None:
    flocks = [[f"order {n} of {flock}" for n in range(MANY)] for flock in range(2)]
    before = commits.count

    def bring(names: Sequence[str]) -> Callable[[], object]:
        wanted = [Candidate(arrival(order_named(name)), max_attempts=3, queue_limit=1000) for name in names]
        return lambda: ledger.admit_all(wanted, NOW)

    group, parts = ledger._file._group, 2 * MANY + 1
    with ThreadPoolExecutor(3) as pool:
        with ledger._file._turn:
            acts = [bring(flocks[0]), admitting(ledger, "alone"), bring(flocks[1])]
            futures = [pool.submit(act) for act in acts]
            deadline = time.monotonic() + 30
            while len(group._waiting) < parts:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        for future in futures:
            future.result()

    assert commits.count == before + 1
    assert recorded(ledger) == {order_named(name).order.id for name in [*flocks[0], *flocks[1], "alone"]}


def test_who_comes_alone_waits_for_nobody(ledger: SqlAlchemyLedger, commits: Commits) -> None:
    before = commits.count

    admitting(ledger, "one")()
    admitting(ledger, "two")()

    assert commits.count == before + 2


def test_what_one_part_raises_undoes_that_part_alone(ledger: SqlAlchemyLedger) -> None:
    def writes_and_raises(tx: Connection) -> None:
        driver_of(tx).execute("UPDATE probe SET count = 4711")
        raise ZeroDivisionError

    acts: list[Callable[[], object]] = [
        admitting(ledger, "first"),
        lambda: ledger._file.together(writes_and_raises),
        admitting(ledger, "nobody's", limit=1),
        admitting(ledger, "last"),
    ]
    with at_one_moment(ledger, acts) as (first, raises, full, last):
        with pytest.raises(ZeroDivisionError):
            raises.result()
        with pytest.raises(QueueFull):
            full.result()
        answered = {first.result(), last.result()}

    assert answered == recorded(ledger)
    with ledger._file.looking() as driver:
        assert driver.execute("SELECT count FROM probe WHERE count = 4711").fetchone() is None


def test_of_what_is_brought_together_one_that_raises_what_nobody_foresaw_is_told_so_alone(
    ledger: SqlAlchemyLedger,
) -> None:
    def writes_and_raises(tx: Connection) -> int:
        driver_of(tx).execute("UPDATE probe SET count = 4711")
        raise ZeroDivisionError

    def writes(tx: Connection) -> int:
        return driver_of(tx).execute("UPDATE probe SET count = 42").rowcount

    raised, written = ledger._file.together_each([writes_and_raises, writes])

    assert isinstance(raised, ZeroDivisionError)
    assert written == 1
    with ledger._file.looking() as driver:
        assert driver.execute("SELECT count FROM probe").fetchone() == (42,)


def test_a_commit_that_fails_fails_for_all_each_with_an_error_of_its_own(
    ledger: SqlAlchemyLedger, commits: Commits
) -> None:
    commits.error = LedgerUnavailable("no commit today")

    with at_one_moment(ledger, [admitting(ledger, f"order {n}") for n in range(MANY)]) as futures:
        errors = [future.exception() for future in futures]

    assert {str(error) for error in errors} == {"no commit today"}
    assert len({id(error) for error in errors}) == MANY
    assert recorded(ledger) == set()
    commits.error = None
    assert recorded(ledger) | {admitting(ledger, "later")()} == recorded(ledger)


def test_a_commit_that_fails_with_what_cannot_be_copied_fails_for_all(
    ledger: SqlAlchemyLedger, commits: Commits
) -> None:
    commits.error = JobFailed("no copy of this", "exit:1")

    with at_one_moment(ledger, [admitting(ledger, f"order {n}") for n in range(MANY)]) as futures:
        errors = [future.exception() for future in futures]

    assert {str(error) for error in errors} == {"no copy of this"}
    assert recorded(ledger) == set()


def test_a_part_that_hides_that_everything_was_taken_back_is_told_to_all(ledger: SqlAlchemyLedger) -> None:
    def full(tx: Connection) -> None:
        driver_of(tx).execute("ROLLBACK")

    acts = [admitting(ledger, "first"), lambda: ledger._file.together(full), admitting(ledger, "last")]
    with at_one_moment(ledger, acts) as futures:
        errors = [future.exception() for future in futures]

    assert all(isinstance(error, LedgerUnavailable) for error in errors)
    assert recorded(ledger) == set()


def test_where_sqlite_takes_everything_back_nobody_is_told_that_it_was_written(
    ledger: SqlAlchemyLedger,
) -> None:
    def full(tx: Connection) -> None:
        driver_of(tx).execute("ROLLBACK")  # as SQLite itself does on a full disk
        raise sqlite3.OperationalError("database or disk is full")

    acts = [admitting(ledger, "first"), lambda: ledger._file.together(full), admitting(ledger, "last")]
    with at_one_moment(ledger, acts) as futures:
        errors = [future.exception() for future in futures]

    assert all(isinstance(error, LedgerUnavailable) for error in errors)
    assert recorded(ledger) == set()
    assert admitting(ledger, "later")() in recorded(ledger)


def test_a_nonce_is_new_once_among_those_of_one_commit(ledger: SqlAlchemyLedger) -> None:
    acts: list[Callable[[], object]] = [lambda: ledger.remember_nonce(PEER, "n", at(60), NOW)] * MANY

    with at_one_moment(ledger, acts) as futures:
        assert sum(bool(future.result()) for future in futures) == 1


def test_what_was_acknowledged_to_many_threads_is_there_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "ledger" / "ledger.db"
    fresh_ledger(tmp_path / "ledger").close()
    command = [sys.executable, "-m", "tests.ports.ledger_processes", "crowd", str(path), "w"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline().strip() for _ in range(5 * MANY)]
        os.kill(process.pid, signal.SIGKILL)
        acknowledged += process.stdout.read().split("\n")[:-1]

    with closing(open_ledger(path)) as ledger:
        assert set(acknowledged) <= recorded(ledger)
        assert len(ledger.events(limit=100_000)) == len(recorded(ledger))
