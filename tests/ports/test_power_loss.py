"""Power loss and kills: a ledger that is cut off at any moment holds every order that was acknowledged before.

A power cut is one moment for all files. Here the writers are stopped (SIGSTOP) while their files are copied, so the copy is of
one moment too. On top comes what a disk may do with writes that nobody synced yet:

  the log     up to the frame that SQLite's shared index names last everything was synced, for it names a commit only after
              the sync of FULL. What stands behind may be there, cut short anywhere, or there in some sectors only.
  the file    pages that a checkpoint writes may be old or new, each by itself, until it syncs; the log is begun anew only
              after that.
  the index   (-shm) is never synced: it may be missing, old, or anything.

Files that are copied one after the other from a ledger that lives are no such moment: between the two reads the log may be
folded into the file and begun anew. That is why `dc-compute backup` exists.
"""

import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Barrier, Lock, Thread

import pytest

from agent.domain.ids import OrderId
from agent.ports.ledger_sqlalchemy import open_ledger
from agent.ports.ledger_sqlalchemy_file import BURST, POOLED, open_file
from tests.fsck.stage import findings_in
from tests.ports.ledger_stage import fresh_ledger
from tests.ports.test_ledger_sqlite import start_process

WRITERS = 3
MOMENTS = 8  # of each seed
KILLS = 6
SECTOR = 512
WAL_HEADER, FRAME_HEADER = 32, 24


@dataclass
class Writers:
    """Processes that admit orders, and what they were told to be done."""

    path: Path
    processes: "list[subprocess.Popen[str]]" = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    lock: Lock = field(default_factory=Lock)
    listeners: list[Thread] = field(default_factory=list)

    def start(self, name: str) -> None:
        process = start_process("admit", self.path, name)
        self.processes.append(process)
        self.listeners.append(Thread(target=self._listen, args=(process,), daemon=True))
        self.listeners[-1].start()

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self.lock:
                self.told.add(line.strip())

    def acknowledged(self) -> set[str]:
        with self.lock:
            return set(self.told)

    def wait_for(self, more: int) -> None:
        """Until so many more are acknowledged."""
        wanted, deadline = len(self.acknowledged()) + more, time.monotonic() + 60
        while len(self.acknowledged()) < wanted:
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in self.processes)
            time.sleep(0.001)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Nobody of them does anything, in no thread, while the block runs."""
        for process in self.processes:
            process.send_signal(signal.SIGSTOP)
        for process in self.processes:
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            yield
        finally:
            for process in self.processes:
                process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for listener in self.listeners:  # to the last word
            listener.join()
        for process in self.processes:
            process.communicate()
        self.processes.clear()


@contextmanager
def writing(path: Path, run: str, count: int = WRITERS) -> Iterator[Writers]:
    writers = Writers(path)
    try:
        for number in range(count):
            writers.start(f"{run} writer {number}")
        yield writers
    finally:
        writers.kill()


@dataclass(frozen=True)
class Moment:
    """The three files at one moment, and what was acknowledged before it."""

    file: bytes
    log: bytes
    index: bytes
    acknowledged: set[str]

    @property
    def page_bytes(self) -> int:
        size: int = struct.unpack(">H", self.file[16:18])[0]
        return 65536 if size == 1 else size

    @property
    def synced(self) -> int:
        """Where the part of the log ends that was synced: behind the frame that the index names (WalIndexHdr.mxFrame)."""
        frames: int = struct.unpack("=I", self.index[16:20])[0] if len(self.index) >= 20 else 0
        return WAL_HEADER + frames * (FRAME_HEADER + self.page_bytes) if frames else 0

    @property
    def salt(self) -> bytes:
        """What changes when the log is begun anew."""
        return self.log[16:24]


def copy_of(path: Path, acknowledged: set[str]) -> Moment:
    def read(suffix: str) -> bytes:
        part = path.with_name(path.name + suffix)
        return part.read_bytes() if part.exists() else b""

    return Moment(read(""), read("-wal"), read("-shm"), acknowledged)


def cut(moment: Moment, earlier: Moment | None, dice: random.Random) -> tuple[bytes, bytes, bytes | None]:
    """(file, log, index) as a disk may have them when the power comes back."""
    end = min(moment.synced, len(moment.log))
    kept, tail = moment.log[:end], bytearray(moment.log[end:])
    match dice.choice(("whole", "cut", "torn", "gone")):
        case "cut":
            del tail[dice.randrange(len(tail) + 1) :]
        case "torn":
            for start in range(0, len(tail), SECTOR):
                if dice.random() < 0.5:
                    tail[start : start + SECTOR] = bytes(len(tail[start : start + SECTOR]))
        case "gone":
            tail.clear()
    file = moment.file
    if earlier is not None and earlier.salt == moment.salt and len(earlier.file) <= len(file):
        size, mixed = moment.page_bytes, bytearray(file)
        for start in range(0, len(earlier.file), size):
            if dice.random() < 0.5:
                mixed[start : start + size] = earlier.file[start : start + size]
        file = bytes(mixed)
    index = dice.choice((None, moment.index, dice.randbytes(len(moment.index))))
    return file, kept + bytes(tail), index


def fold(path: Path) -> None:
    """What SQLite does by itself every 16 MiB, while others write: the log goes into the file, and begins anew."""
    with closing(sqlite3.connect(path, timeout=30)) as plain:
        plain.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()


def put(folder: Path, file: bytes, log: bytes, index: bytes | None) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    path = folder / "ledger.db"
    for suffix, content in (("", file), ("-wal", log), ("-shm", index)):
        if content is not None:
            part = path.with_name(path.name + suffix)
            part.write_bytes(content)
            part.chmod(0o600)
    return path


def require_everything(path: Path, acknowledged: set[str]) -> None:
    """Every acknowledged order is there, with its job, and everything agrees."""
    with closing(open_ledger(path)) as ledger:
        for order in acknowledged:
            assert ledger.order(OrderId(order)).id == order
    assert findings_in(path) == []


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_power_may_go_at_any_moment_and_takes_no_acknowledged_order(seed: int, tmp_path: Path) -> None:
    dice, path = random.Random(seed), tmp_path / "ledger" / "ledger.db"
    fresh_ledger(path.parent).close()
    moments: list[Moment] = []

    with writing(path, f"seed {seed}") as writers:
        for number in range(MOMENTS):
            if number == MOMENTS // 2:
                fold(path)
            writers.wait_for(dice.randrange(1, 60))
            before = writers.acknowledged()
            with writers.stopped():
                moments.append(copy_of(path, before))

    assert any(moment.synced for moment in moments)
    for number, moment in enumerate(moments):
        for _ in range(3):
            earlier = moments[number - 1] if number else None
            found = put(tmp_path / "after", *cut(moment, earlier, dice))
            require_everything(found, moment.acknowledged)
    assert len({moment.salt for moment in moments}) > 1, "the log was never folded into the file"


def test_the_test_sees_a_commit_that_is_lost(tmp_path: Path) -> None:
    """One frame less than was synced, and an acknowledged order is missing: so the cuts above are at the right place."""
    path = tmp_path / "ledger" / "ledger.db"
    fresh_ledger(path.parent).close()
    with writing(path, "lost", count=1) as writers:
        writers.wait_for(20)
        with writers.stopped():
            moment = copy_of(path, writers.acknowledged())

    whole = moment.log[: moment.synced]
    shorter = whole[: -(FRAME_HEADER + moment.page_bytes)]
    found = put(tmp_path / "after", moment.file, shorter, None)

    before = orders_in(put(tmp_path / "whole", moment.file, whole, None))
    assert before >= moment.acknowledged
    assert orders_in(found) < before


def orders_in(path: Path) -> set[str]:
    with closing(open_ledger(path)), closing(sqlite3.connect(path)) as plain:
        return {row[0] for row in plain.execute("SELECT id FROM orders")}


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_again_and_again_the_ledger_keeps_what_was_acknowledged(seed: int, tmp_path: Path) -> None:
    dice, path = random.Random(seed), tmp_path / "ledger" / "ledger.db"
    fresh_ledger(path.parent).close()
    acknowledged: set[str] = set()

    for kill in range(KILLS):
        with writing(path, f"seed {seed}, life {kill}") as writers:
            writers.wait_for(dice.randrange(1, 40))
            time.sleep(dice.random() / 50)  # anywhere in a commit
            writers.kill()
            acknowledged |= writers.acknowledged()
        require_everything(path, acknowledged)


def test_every_connection_syncs_before_it_says_that_a_commit_is_done(tmp_path: Path) -> None:
    """`PRAGMA synchronous = FULL` (2) in WAL mode: the log is synced at each commit. NORMAL (1) syncs at checkpoints only."""
    path = tmp_path / "ledger" / "ledger.db"
    file = open_file(path)
    seen: set[tuple[str, int, int]] = set()
    everybody = Barrier(POOLED + 8)  # more at once than the pool keeps

    def look() -> None:
        with file.reading() as tx:
            everybody.wait()
            wal = tx.exec_driver_sql("PRAGMA journal_mode").scalar_one()
            full = tx.exec_driver_sql("PRAGMA synchronous").scalar_one()
            keys = tx.exec_driver_sql("PRAGMA foreign_keys").scalar_one()
            seen.add((wal, full, keys))

    threads = [Thread(target=look) for _ in range(everybody.parties)]
    with ExitStack() as ends:
        ends.callback(file.close)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert everybody.parties <= POOLED + BURST
    assert seen == {("wal", 2, 1)}
