"""Backups of the real ledger: taken while others write, put back while nobody has it open, whole after a kill at any call."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from agent.domain.backups import BackupFile, Restored
from agent.domain.control import Mode
from agent.domain.ids import JobId, digest_of
from agent.domain.jobs import JobEvent, JobState
from agent.errors import BadBackup, BadSettings, LedgerInUse, LedgerUnavailable, LostRace, NoSpace, NotFound
from agent.ports import ledger_sqlalchemy_backup
from agent.ports.ledger import DeliveryState
from agent.ports.ledger_sqlalchemy import SqlAlchemyLedger, open_ledger
from agent.ports.ledger_sqlalchemy_backup import back_up, restore
from agent.ports.ledger_sqlalchemy_file import LedgerFile
from tests.builders import NOW, SKEW
from tests.ports.ledger_stage import (
    LEASE,
    WORLD,
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
from tests.ports.test_ledger_sqlite import everything_in, read_line, start_process

ROOT = Path(__file__).resolve().parents[2]
ME = WORLD.agent("a").keyid
LATER = at(60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def path(folder: Path) -> Path:
    """Where the ledger lies."""
    return folder / "ledger.db"


@pytest.fixture
def ledger(folder: Path) -> Iterator[SqlAlchemyLedger]:
    with closing(fresh_ledger(folder)) as opened:
        yield opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where backups go."""
    return tmp_path / "away" / "monday.backup"


@pytest.fixture(autouse=True)
def _away(file: Path) -> None:
    file.parent.mkdir()


def taken(path: Path, file: Path, *, overwrite: bool = False) -> BackupFile:
    return back_up(path, file, agent=ME, now=NOW, overwrite=overwrite)


def put_back(path: Path, file: Path) -> Restored:
    with file.open("rb") as opened:
        return restore(path, opened, me=(ME,), now=LATER, skew=SKEW, uid=7)


# ------------------------------------------------------------------ taking one


def test_a_backup_is_one_closed_file_of_the_agents_own_that_says_whose_it_is(
    ledger: SqlAlchemyLedger, path: Path, file: Path
) -> None:
    received(ledger)
    before = os.umask(0)
    try:
        told = taken(path, file)
    finally:
        os.umask(before)

    assert [name.name for name in file.parent.iterdir()] == [file.name]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert (told.backup.agent, told.orders, told.open_jobs) == (ME, 1, 1)
    assert (told.size_bytes, told.digest) == (file.stat().st_size, digest_of(file.read_bytes()))
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as plain:
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert plain.execute("SELECT agent FROM backup").fetchone() == (ME,)


def test_a_backup_holds_all_that_was_acknowledged_before_it_began_and_nothing_by_half(
    folder: Path, path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_sqlalchemy_backup, "STEP_PAGES", 8)
    fresh_ledger(folder).close()
    with start_process("attest", path, "w") as writer:
        before = [read_line(writer) for _ in range(20)]
        taken(path, file)
        after = [read_line(writer) for _ in range(20)]
        writer.kill()

    put_back(path, file)

    with closing(open_ledger(path)) as ledger:
        done = ledger.counts()[JobState.ATTESTED]
        assert all(ledger.job(JobId(job)).state is JobState.ATTESTED for job in before)
        assert done >= len(before)
        assert len(ledger.deliveries(state=DeliveryState.PENDING)) == 2 * done
    assert len(after) == 20


def test_writers_go_on_while_a_backup_is_taken_and_do_not_make_it_begin_anew(
    folder: Path, path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_sqlalchemy_backup, "STEP_PAGES", 8)
    left: list[int] = []
    written: list[str] = []
    with closing(fresh_ledger(folder)) as ledger:
        ledger.keep_log(running(ledger), "train", bytes(400_000))

    with start_process("attest", path, "w") as writer:

        def rest(_status: int, remaining: int, _total: int) -> None:
            left.append(remaining)
            written.append(read_line(writer))  # one more order, in another process, between any two steps

        monkeypatch.setattr(ledger_sqlalchemy_backup, "_Rests", lambda: rest)
        taken(path, file)
        writer.kill()

    assert len(left) > 10
    assert left == sorted(left, reverse=True)
    assert len(written) == len(left)


def test_a_file_that_is_there_is_left_alone_unless_it_may_be_replaced(
    ledger: SqlAlchemyLedger, path: Path, file: Path
) -> None:
    file.write_text("something else")

    with pytest.raises(BadSettings, match="is there already"):
        taken(path, file)
    assert file.read_text() == "something else"
    taken(path, file, overwrite=True)

    assert file.read_bytes().startswith(b"SQLite format 3")
    assert received(ledger).state is JobState.RECEIVED


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_a_backup_takes_no_place_of_the_ledger(
    suffix: str, ledger: SqlAlchemyLedger, path: Path, tmp_path: Path
) -> None:
    job = received(ledger)
    link = tmp_path / "link"
    os.link(path.with_name(path.name + suffix), link)

    with pytest.raises(BadSettings, match="the ledger itself"):
        taken(path, link, overwrite=True)

    assert ledger.job(job.id) == job


def test_a_backup_that_does_not_fit_leaves_nothing(
    ledger: SqlAlchemyLedger, path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(ledger_sqlalchemy_backup, "_Rests", lambda: full)
    received(ledger)

    with pytest.raises(NoSpace):
        taken(path, file)

    assert list(file.parent.iterdir()) == []


def test_what_a_killed_backup_left_goes_with_the_next_one(
    ledger: SqlAlchemyLedger, path: Path, file: Path
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = file.with_name(f".{file.name}.{gone.pid}-0123abcd.new")
    other = file.with_name(f".{file.name}.{os.getpid()}-0123abcd.new")
    for each in (left, other):
        each.write_text("half")

    taken(path, file)

    assert not left.exists()
    assert other.exists()


def test_a_damaged_ledger_gives_no_backup(folder: Path, path: Path, file: Path) -> None:
    with closing(fresh_ledger(folder)) as ledger:
        received(ledger)
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute("DELETE FROM orders")

    with pytest.raises(LedgerUnavailable, match="damaged"):
        taken(path, file)

    assert list(file.parent.iterdir()) == []


def test_without_a_ledger_there_is_none(path: Path, file: Path) -> None:
    with pytest.raises(NotFound):
        taken(path, file)


# ------------------------------------------------------------------ putting one back


def test_a_restored_ledger_holds_what_the_backup_held_and_nobody_has_any_of_it_in_hand(
    folder: Path, path: Path, file: Path
) -> None:
    with closing(fresh_ledger(folder)) as ledger:
        ran, waits = running(ledger, "runs"), queued(ledger, "waits")
        done = attested(ledger, report(), handoff(), name="done")
        (first, second) = (delivery.id for delivery in ledger.deliveries())
        ledger.lease_delivery(first, at(2), at(600))
        ledger.acknowledge(second, at(2))
        taken(path, file)
        received(ledger, "after the backup")
        before = everything_in(ledger)

    told = put_back(path, file)

    with closing(open_ledger(path)) as ledger:
        control = ledger.control()
        assert (control.mode, control.since, control.uid) == (Mode.RESTORED, LATER, 7)
        assert ledger.restores() == (told.restore,)
        assert (told.open_jobs, told.pending_deliveries) == (3, 1)
        again = ledger.job(ran.id)
        assert (again.state, again.attempt, again.lease_until) == (JobState.RUNNING, 1, LATER)
        assert ledger.job(waits.id).state is JobState.QUEUED
        assert ledger.job(done.id).state is JobState.ATTESTED
        assert [orphan.id for orphan in ledger.unrung(LATER, 10).orphans] == [ran.id]
        assert ledger.lease_delivery(first, at(3), at(600)) is not None
        with pytest.raises(NotFound):
            ledger.order(order_named("after the backup").order.id)
        restored = [event.name for event in ledger.events() if "restored" in event.name]
        assert restored == ["ledger.restored", "host.restored"]
    assert told.kept is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with closing(open_ledger(Path(told.kept) / path.name)) as kept:
        assert everything_in(kept) == before


def test_who_had_a_job_in_hand_before_moves_nothing_in_the_restored_ledger(
    folder: Path, path: Path, file: Path
) -> None:
    with closing(fresh_ledger(folder)) as ledger:
        first = running(ledger)
        taken(path, file)
        taken_over = ledger.adopt(first, at(120), worker="w2", lease_until=at(180))

    put_back(path, file)

    ghost = SqlAlchemyLedger(LedgerFile(path))  # a process that knows of no lock
    with closing(ghost):
        for seen in (first, taken_over):
            with pytest.raises(LostRace):
                ghost.move(seen, JobEvent.RETRY, LATER)
            with pytest.raises(LostRace):
                ghost.begin_step(seen, "upload", LATER)
        seen = ghost.job(first.id)
        assert (
            ghost.adopt(seen, LATER, worker="w3", lease_until=LATER + LEASE).claim > taken_over.claim + 1000
        )


def test_no_number_of_a_report_is_given_twice_however_often_the_same_backup_is_put_back(
    folder: Path, path: Path, file: Path
) -> None:
    with closing(fresh_ledger(folder)) as ledger:
        job = running(ledger)
        taken(path, file)
    claims, names = set(), set()

    for _ in range(3):
        with closing(open_ledger(path)) as ledger:
            job = ledger.job(job.id)
            claims.add(job.claim)
            ledger.move(job, JobEvent.RETRY, LATER, deliveries=[report(b"{}"), report(b"[]")])
            names |= {delivery.id for delivery in ledger.deliveries()}
        put_back(path, file)

    assert len(claims) == 3
    assert len(names) == 6


def test_a_backup_of_a_host_that_has_no_ledger_yet_is_put_in_its_place(
    folder: Path, path: Path, file: Path, tmp_path: Path
) -> None:
    with closing(fresh_ledger(folder)) as ledger:
        job = received(ledger)
        taken(path, file)
    new = tmp_path / "new host" / "ledger.db"

    told = put_back(new, file)

    assert told.kept is None
    with closing(open_ledger(new)) as ledger:
        assert ledger.job(job.id).state is JobState.RECEIVED
    assert sorted(each.name for each in new.parent.iterdir()) == ["ledger.db", "ledger.db.lock"]


def test_a_damaged_ledger_is_replaced_and_kept_as_it_is(folder: Path, path: Path, file: Path) -> None:
    with closing(fresh_ledger(folder)) as ledger:
        job = received(ledger)
        taken(path, file)
    path.write_bytes(b"not a database at all" * 1000)

    told = put_back(path, file)

    with closing(open_ledger(path)) as ledger:
        assert ledger.job(job.id).state is JobState.RECEIVED
    assert told.kept is not None
    assert (Path(told.kept) / path.name).read_bytes() == b"not a database at all" * 1000


# ------------------------------------------------------------------ nobody may have it open


def test_nothing_is_put_back_while_a_process_has_the_ledger_open(
    folder: Path, path: Path, file: Path
) -> None:
    with closing(fresh_ledger(folder)) as ledger:
        received(ledger)
        taken(path, file)
        last = received(ledger, "the last")
    with start_process("attest", path, "w") as service:
        read_line(service)

        with pytest.raises(LedgerInUse):
            put_back(path, file)
        service.kill()

    with closing(open_ledger(path)) as ledger:
        assert ledger.job(last.id) == last
    assert put_back(path, file).kept is not None


def test_nor_while_somebody_has_it_open_who_holds_no_lock_of_ours(
    folder: Path, path: Path, file: Path
) -> None:
    with closing(fresh_ledger(folder)) as ledger:
        received(ledger)
        taken(path, file)
    with closing(sqlite3.connect(path)) as stranger:
        stranger.execute("SELECT count(*) FROM jobs").fetchone()

        with pytest.raises(LedgerInUse, match="fuser"):
            put_back(path, file)

    assert put_back(path, file).kept is not None


def test_nobody_opens_the_ledger_while_it_is_put_back(
    folder: Path, path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(fresh_ledger(folder)):
        taken(path, file)
    keep = ledger_sqlalchemy_backup._keep
    seen: list[str] = []

    def look(ledger: Path, kept: Path) -> None:
        keep(ledger, kept)
        with pytest.raises(LedgerUnavailable, match="being restored"):
            open_ledger(path)
        with pytest.raises(LedgerInUse):
            put_back(path, file)
        seen.append("looked")

    monkeypatch.setattr(ledger_sqlalchemy_backup, "_keep", look)
    put_back(path, file)

    assert seen == ["looked"]


# ------------------------------------------------------------------ what is no backup of this agent


def spoilt(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as plain, plain:
        plain.execute(statement)


def flip(file: Path) -> None:
    """Damage a page in the middle as a bad disk does."""
    content = bytearray(file.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 64] = bytes(64)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (flip, "no whole backup"),
        (lambda file: file.write_bytes(file.read_bytes()[:-4096]), "no whole backup"),
        (lambda file: file.write_bytes(b""), "no whole backup"),
        (lambda file: spoilt(file, "DROP TABLE backup"), "no whole backup"),
        (lambda file: spoilt(file, "DELETE FROM backup"), "whose it is"),
        (lambda file: spoilt(file, "DELETE FROM orders"), "refers to one"),
        (lambda file: spoilt(file, "UPDATE backup SET agent = upper(agent)"), "and this is"),
        (lambda file: spoilt(file, "UPDATE backup SET revision = '0002'"), "its tables another"),
        (lambda file: spoilt(file, "UPDATE backup SET made_at = '2026-03-01T12:01:31+00:00'"), "clock"),
        (lambda file: spoilt(file, "DROP TABLE listings"), "listings is missing"),
        (lambda file: spoilt(file, "CREATE TABLE more (x)"), "more is not of this program"),
        (
            lambda file: spoilt(
                file, "CREATE TRIGGER t AFTER INSERT ON restores BEGIN DELETE FROM receipts; END"
            ),
            "acts by itself",
        ),
    ],
)
def test_what_is_no_whole_backup_of_this_agent_changes_nothing(
    spoil: object, told: str, folder: Path, path: Path, file: Path
) -> None:
    assert callable(spoil)
    with closing(fresh_ledger(folder)) as ledger:
        received(ledger)
        taken(path, file)
        before = everything_in(ledger)
    spoil(file)

    with pytest.raises(BadBackup, match=told):
        put_back(path, file)

    with closing(open_ledger(path)) as ledger:
        assert everything_in(ledger) == before
    assert sorted(each.name for each in folder.iterdir()) == ["ledger.db", "ledger.db.lock"]


def test_a_backup_of_a_newer_version_is_refused_by_name(folder: Path, path: Path, file: Path) -> None:
    with closing(fresh_ledger(folder)):
        taken(path, file)
    spoilt(file, "UPDATE backup SET revision = '9999', made_by = '7.0'")
    spoilt(file, "UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(BadBackup, match=r"version 7\.0 \(schema 9999\), which is newer"):
        put_back(path, file)


def test_a_copied_ledger_is_no_backup(folder: Path, path: Path, file: Path) -> None:
    with closing(fresh_ledger(folder)) as ledger:
        received(ledger)
    shutil.copy(path, file)

    with pytest.raises(BadBackup, match="no such table: backup"):
        put_back(path, file)


# ------------------------------------------------------------------ killed at any call


KILLED = """
import os, sys
from datetime import timedelta
from pathlib import Path
from tests.ports.test_ledger_backup import ME, LATER, SKEW
from agent.ports.ledger_sqlalchemy_backup import restore

left = int(sys.argv[3])
calls = ("rename", "replace", "fsync", "ftruncate", "pwrite", "mkdir", "unlink")

def dies(call):
    def called(*arguments, **named):
        global left
        if left == 0:
            os._exit(9)
        left -= 1
        return call(*arguments, **named)
    return called

for name in calls:
    setattr(os, name, dies(getattr(os, name)))
with open(sys.argv[2], "rb") as file:
    restore(Path(sys.argv[1]), file, me=(ME,), now=LATER, skew=SKEW, uid=None)
print("done")
"""


def test_a_restore_killed_at_any_call_leaves_the_old_ledger_or_the_new_one_or_says_so(
    folder: Path, path: Path, file: Path, tmp_path: Path
) -> None:
    with closing(fresh_ledger(folder)) as ledger:
        old = received(ledger, "in the backup")
        taken(path, file)
        new = received(ledger, "after it")
        for part in folder.iterdir():  # with its log, as a power cut leaves it
            shutil.copy(part, tmp_path / part.name)
    seen = set()

    for calls in range(100):
        shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
        for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
            shutil.copy(tmp_path / name, folder)
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, path, file, str(calls)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert killed.returncode in {0, 9}, killed.stderr
        try:
            with closing(open_ledger(path)) as ledger:
                is_restored = ledger.control().mode is Mode.RESTORED
                assert ledger.job(old.id).state is JobState.RECEIVED
                assert is_restored or ledger.job(new.id).state is JobState.RECEIVED
                seen.add("restored" if is_restored else "untouched")
        except LedgerUnavailable as error:
            seen.add("told" if "run `dc-compute restore` again" in error.detail else error.detail)
        if killed.returncode == 0:
            break
        put_back(path, file)
        with closing(open_ledger(path)) as ledger:
            assert ledger.control().mode is Mode.RESTORED
        kept = [each for each in folder.glob("*.before-restore-*") if (each / path.name).exists()]
        assert any(_holds(each / path.name, new.id) for each in kept)

    assert seen == {"untouched", "told", "restored"}


def _holds(path: Path, job: JobId) -> bool:
    with closing(open_ledger(path)) as ledger:
        try:
            return ledger.job(job).state is JobState.RECEIVED
        except NotFound:
            return False


def test_a_ledger_that_was_half_moved_away_is_kept_whole(
    folder: Path, path: Path, file: Path, tmp_path: Path
) -> None:
    with closing(fresh_ledger(folder)) as ledger:
        taken(path, file)
        new = received(ledger)  # lies in the log alone
        shutil.copytree(folder, tmp_path / "moment")
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "moment", folder)
    kept = folder / "ledger.db.before-restore-1"
    kept.mkdir(mode=0o700)
    path.rename(kept / "ledger.db")
    path.with_name("ledger.db.lock").write_text(kept.name)

    put_back(path, file)

    assert [each.name for each in folder.glob("*.before-restore-*")] == [kept.name]
    assert _holds(kept / path.name, new.id)


def test_after_an_interrupted_restore_a_backup_is_refused_too(folder: Path, path: Path, file: Path) -> None:
    with closing(fresh_ledger(folder)):
        taken(path, file)
    path.with_name("ledger.db.lock").write_text("ledger.db.before-restore-1")

    with pytest.raises(LedgerUnavailable, match="interrupted"):
        taken(path, file, overwrite=True)

    assert put_back(path, file).restore.at == LATER
    taken(path, file, overwrite=True)


def test_the_moment_up_to_which_signatures_are_refused_is_a_skew_after_the_restore(
    folder: Path, path: Path, file: Path
) -> None:
    with closing(fresh_ledger(folder)):
        taken(path, file)

    assert put_back(path, file).restore.signed_after == LATER + timedelta(seconds=30)
