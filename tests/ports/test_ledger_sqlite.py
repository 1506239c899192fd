"""What only the real ledger has: a file with modes, threads and processes that share it, kills, restarts."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from agent.domain.ids import JobId
from agent.domain.jobs import Job, JobEvent, JobState
from agent.errors import LedgerUnavailable, LostRace, QueueFull
from agent.ports import ledger_sqlalchemy_file
from agent.ports.ledger import DeliveryState, JobQuery, Ledger
from agent.ports.ledger_sqlalchemy import SqlAlchemyLedger, open_ledger
from tests.builders import NOW
from tests.ports.ledger_stage import (
    PEER,
    arrival,
    at,
    attested,
    fresh_ledger,
    handoff,
    order_named,
    queued,
    received,
    report,
    running,
)

ROOT = Path(__file__).resolve().parents[2]
THREADS = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the ledger lies, as `ledger.db`."""
    return tmp_path / "ledger"


@pytest.fixture
def ledger(folder: Path) -> Iterator[SqlAlchemyLedger]:
    with closing(fresh_ledger(folder)) as opened:
        yield opened


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def start_process(action: str, path: Path, argument: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.ports.ledger_processes", action, str(path), argument]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def lines_of(process: "subprocess.Popen[str]") -> list[str]:
    output, _ = process.communicate()
    return output.split("\n")[:-1]


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def race(workers: "list[subprocess.Popen[str]]") -> dict[str, str]:
    """Let all go for the next job at once; each one's answer by its name."""
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
    return {str(worker.args[-1]): read_line(worker) for worker in workers}  # type: ignore[index]


def at_once(act: Callable[[int], bool], count: int) -> int:
    """Call `act(n)` for every n from THREADS threads; how often it gave True."""
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(act, range(count)))


def everything_in(ledger: Ledger) -> tuple[Any, ...]:
    jobs = ledger.jobs(JobQuery(limit=10_000))
    orders = {job.order_id: job.order for job in jobs}
    return (
        jobs,
        [ledger.order(order_id) for order_id in orders],
        [ledger.receipts(digest) for digest in orders.values()],
        [ledger.recorded_last_receipt(job.order, job.position) for job in jobs],
        [ledger.logs(order_id) for order_id in orders],
        ledger.deliveries(),
        ledger.events(limit=10_000),
        ledger.counts(),
        ledger.unrung(at(100), 100),
        ledger.waiting(at(100), limit=100),
        ledger.unsent(at(100), limit=100),
    )


# ------------------------------------------------------------------ the file


def test_the_file_and_its_folder_belong_to_the_agent_alone(tmp_path: Path) -> None:
    path = tmp_path / "data" / "ledger.db"
    before = os.umask(0)
    try:
        with closing(open_ledger(path)) as ledger:
            received(ledger)

            modes = {file.name: mode_of(file) for file in path.parent.iterdir()}
    finally:
        os.umask(before)

    assert modes == dict.fromkeys(("ledger.db", "ledger.db-wal", "ledger.db-shm", "ledger.db.lock"), 0o600)
    assert mode_of(path.parent) == 0o700


def test_a_file_that_others_can_read_is_refused(folder: Path) -> None:
    fresh_ledger(folder).close()
    (folder / "ledger.db").chmod(0o640)

    with pytest.raises(LedgerUnavailable, match="chmod 600"):
        open_ledger(folder / "ledger.db")


def test_a_folder_that_others_can_write_is_refused(folder: Path) -> None:
    fresh_ledger(folder).close()
    folder.chmod(0o770)

    with pytest.raises(LedgerUnavailable, match="chmod 700"):
        open_ledger(folder / "ledger.db")


def test_a_link_in_the_place_of_the_file_is_refused(folder: Path, tmp_path: Path) -> None:
    fresh_ledger(folder).close()
    (tmp_path / "link.db").symlink_to(folder / "ledger.db")

    with pytest.raises(LedgerUnavailable, match="regular file"):
        open_ledger(tmp_path / "link.db")


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.touch(0o600)
    path.write_bytes(b"something else entirely" * 1000)

    with pytest.raises(LedgerUnavailable, match="not a database"):
        open_ledger(path)


def test_every_commit_is_synced_and_foreign_keys_hold(ledger: SqlAlchemyLedger) -> None:
    with ledger._file.writing() as tx:
        found = {
            name: tx.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("synchronous", "foreign_keys")
        }
        mode = tx.exec_driver_sql("PRAGMA journal_mode").scalar()

    assert found == {"synchronous": 2, "foreign_keys": 1}
    assert mode == "wal"


def test_a_ledger_that_another_process_blocks_is_unavailable(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh_ledger(folder).close()
    monkeypatch.setattr(ledger_sqlalchemy_file, "BUSY_S", 0.05)
    with (
        closing(open_ledger(folder / "ledger.db")) as ledger,
        closing(sqlite3.connect(folder / "ledger.db", isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(LedgerUnavailable, match="locked"):
            received(ledger)
        assert ledger.jobs(JobQuery()) == ()  # reading goes on

        other.execute("ROLLBACK")
        received(ledger)


def test_an_error_of_the_database_tells_no_values_and_leaves_nothing(
    ledger: SqlAlchemyLedger, folder: Path
) -> None:
    job = running(ledger)
    with closing(sqlite3.connect(folder / "ledger.db")) as other:
        other.execute("DROP TABLE events")

    with pytest.raises(LedgerUnavailable) as caught:
        ledger.move(job, JobEvent.RETRY, at(1), reason="what nobody may read")

    assert "events" in str(caught.value)
    assert "nobody may read" not in f"{caught.value} {caught.value.__cause__}"
    assert ledger.job(job.id) == job


def test_a_receipt_that_somebody_changed_in_the_file_is_not_read(
    ledger: SqlAlchemyLedger, folder: Path
) -> None:
    received(ledger, position=2)
    with closing(sqlite3.connect(folder / "ledger.db")) as other, other:
        other.execute("UPDATE receipts SET envelope = CAST('{}' AS BLOB) WHERE position = 1")

    with pytest.raises(LedgerUnavailable, match="position 1"):
        ledger.receipts(order_named("order").digest)


# ------------------------------------------------------------------ threads


def test_of_many_threads_that_saw_the_same_job_one_moves_it(ledger: SqlAlchemyLedger) -> None:
    seen = received(ledger)

    def move(_: int) -> bool:
        try:
            return ledger.move(seen, JobEvent.ENQUEUE, NOW).state is JobState.QUEUED
        except LostRace:
            return False

    assert at_once(move, 4 * THREADS) == 1
    assert [line.name for line in ledger.events()] == ["job.received", "job.queued"]


def test_a_nonce_is_new_once_under_many_threads(ledger: SqlAlchemyLedger) -> None:
    def remember(n: int) -> bool:
        return ledger.remember_nonce(PEER, f"nonce {n // THREADS}", at(120), NOW)

    assert at_once(remember, 50 * THREADS) == 50


def test_the_queue_limit_holds_under_many_threads(ledger: SqlAlchemyLedger) -> None:
    arrivals = [arrival(order_named(f"order {n}")) for n in range(5 * THREADS)]

    def admit(n: int) -> bool:
        try:
            return not ledger.admit(arrivals[n], NOW, max_attempts=3, queue_limit=11).is_repeat
        except QueueFull:
            return False

    assert at_once(admit, len(arrivals)) == 11
    assert ledger.counts()[JobState.RECEIVED] == 11


def test_the_same_order_from_many_threads_is_recorded_once(ledger: SqlAlchemyLedger) -> None:
    def admit(_: int) -> bool:
        return not ledger.admit(arrival(order_named("order")), NOW, max_attempts=3, queue_limit=10).is_repeat

    assert at_once(admit, 4 * THREADS) == 1


def test_a_delivery_is_leased_once_under_many_threads(ledger: SqlAlchemyLedger) -> None:
    attested(ledger, report())
    (delivery,) = ledger.unrung(at(2), 10).deliveries

    assert at_once(lambda _: ledger.lease_delivery(delivery, at(2), at(62)) is not None, 4 * THREADS) == 1


# ------------------------------------------------------------------ processes


def test_two_processes_claim_every_job_once(ledger: SqlAlchemyLedger, folder: Path) -> None:
    jobs = {queued(ledger, f"order {n}").id for n in range(200)}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(start_process("claim", folder / "ledger.db", name)) for name in ("w1", "w2")
        ]
        assert [read_line(worker) for worker in workers] == ["ready", "ready"]
        rounds = [race(workers if n % 2 else workers[::-1]) for n in range(len(jobs))]

    claimed = [{answer[name] for answer in rounds} - {"lost"} for name in ("w1", "w2")]
    assert all("lost" in answer.values() for answer in rounds)
    assert (claimed[0] | claimed[1], claimed[0] & claimed[1]) == (jobs, set())
    assert all(claimed), "one process took everything: this test raced nobody"
    running_jobs = ledger.jobs(JobQuery(states=frozenset({JobState.RUNNING}), limit=1000))
    assert {job.id for job in running_jobs if job.worker == "w1" and job.attempt == 1} == set(claimed[0])
    assert {job.id for job in running_jobs if job.worker == "w2" and job.attempt == 1} == set(claimed[1])


def test_processes_that_find_no_ledger_make_it_together(folder: Path) -> None:
    with ExitStack() as stack:
        path = folder / "ledger.db"
        workers = [stack.enter_context(start_process("claim", path, f"w{n}")) for n in range(4)]

        assert [lines_of(worker) for worker in workers] == [["ready"]] * 4
    assert {worker.returncode for worker in workers} == {0}


@pytest.mark.parametrize("kill_after", [1, 7, 23])
def test_a_process_killed_while_it_commits_leaves_whole_commits(folder: Path, kill_after: int) -> None:
    path = folder / "ledger.db"
    fresh_ledger(folder).close()
    process = start_process("attest", path, "w1")
    acknowledged = [read_line(process) for _ in range(kill_after)]

    process.send_signal(signal.SIGKILL)
    acknowledged += lines_of(process)

    assert process.returncode == -signal.SIGKILL
    with closing(open_ledger(path)) as ledger:
        by_id = {job.id: job for job in ledger.jobs(JobQuery(limit=10_000))}
        for line in acknowledged:
            assert by_id[JobId(line)].state is JobState.ATTESTED
        for job in by_id.values():
            assert_whole(ledger, job, by_id)
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def assert_whole(ledger: Ledger, job: Job, by_id: dict[JobId, Job]) -> None:
    """A job at position 0 is attested with all that its attestation demanded, or with nothing of it."""
    if job.position == 1:
        return
    is_attested = job.state is JobState.ATTESTED
    kinds = [(d.kind, len(d.body)) for d in ledger.deliveries(order_id=job.order_id)]
    names = [line.name for line in ledger.events(order_id=job.order_id)]
    assert len(ledger.receipts(job.order)) == (1 if is_attested else 0)
    assert kinds == ([("report", 20_000), ("handoff", len(handoff().body))] if is_attested else [])
    assert (JobId(f"{job.order_id}.1") in by_id) is is_attested
    assert ("job.attested" in names) is is_attested


def test_everything_is_there_after_a_restart(folder: Path) -> None:
    with closing(fresh_ledger(folder)) as ledger:
        received(ledger, "one", position=2)
        ledger.redirect(received(ledger, "two"), NOW, next_agent=PEER, delivery=handoff())
        ledger.keep_log(running(ledger, "three"), "train", b"\x00log\xff")
        done = attested(ledger, report(b"\x00\xff" * 1000), handoff(), name="four")
        first, second = ledger.unrung(at(2), 10).deliveries[-2:]
        ledger.acknowledge(first, at(2))
        ledger.bury(second, at(3), "refused", deliveries=[report()])
        ledger.record_event("roster.changed", at(4), values={"entries": 3})
        before = everything_in(ledger)

    with closing(open_ledger(folder / "ledger.db")) as ledger:
        assert everything_in(ledger) == before
        assert ledger.job(done.id) == done
        assert ledger.deliveries(state=DeliveryState.DEAD)[0].body == handoff().body
