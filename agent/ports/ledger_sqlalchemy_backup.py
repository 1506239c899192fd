"""The ledger as a file that is copied while it lives, and put back when nobody has it open.

A backup is one SQLite file without companions: the ledger as it was at one moment, and a table `backup` that says whose it is.
"""

import errno
import hashlib
import os
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import quote

from agent import __version__
from agent.domain.backups import Backup, BackupFile, Restore, Restored
from agent.domain.ids import KeyId, digest_from_hex
from agent.domain.jobs import FINAL
from agent.errors import BadBackup, BadSettings, LedgerInUse, LedgerUnavailable, NoSpace, NotFound
from agent.ports.ledger_schema import HEAD, TRIGGERS
from agent.ports.ledger_sqlalchemy_file import BUSY_S, open_staged, translated
from agent.ports.ledger_sqlalchemy_restores import RestoreRecords
from agent.ports.ledger_sqlalchemy_shape import differences, revision_of
from agent.ports.ledger_sqlalchemy_use import alone, use

STEP_PAGES: Final = 256  # 1 MiB: then others have the disk for as long as this took
SHORTEST_REST_S: Final = 0.002
FOLDER_MODE: Final = 0o700
COMPANIONS: Final = ("-wal", "-shm", "-journal")
STAGED: Final = ".restoring"
KEPT: Final = ".before-restore-"

_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}  # as file systems of USB sticks say

_ABOUT: Final = """
CREATE TABLE backup (agent TEXT NOT NULL, revision TEXT NOT NULL, made_at TEXT NOT NULL, made_by TEXT NOT NULL)
"""
_OPEN_JOBS: Final = "SELECT count(*) FROM jobs WHERE state NOT IN ({})".format(  # noqa: S608 - our own words
    ", ".join(f"'{state}'" for state in sorted(FINAL))
)


# ------------------------------------------------------------------ taking one


def back_up(ledger: Path, target: Path, *, agent: KeyId, now: datetime, overwrite: bool) -> BackupFile:
    """Write the ledger as it is at this moment to `target`, whole and durable, or not at all. Nobody waits for it.

    Raises: BadSettings when something lies there already, or cannot; NotFound without a ledger; LedgerUnavailable.
    """
    if target.is_dir() or (os.path.lexists(target) and not overwrite):
        raise BadSettings(f"{target} is there already: --force takes its place")
    if not ledger.exists():
        raise NotFound(f"there is no ledger at {ledger}")
    if target.exists() and any(
        near.exists() and target.samefile(near) for near in (ledger, *companions(ledger))
    ):
        raise BadSettings(f"{target} is the ledger itself")
    with ExitStack() as undo:
        with translated(ledger):
            undo.callback(os.close, use(ledger))
        with _blamed_on(target):
            _clear(target)
            beside = undo.enter_context(_new_beside(target))
            backup = _copy(ledger, beside, agent, now)
            told = _described(beside, target, backup)
            _put(beside, target, overwrite=overwrite)
    return told


def _copy(ledger: Path, beside: Path, agent: KeyId, now: datetime) -> Backup:
    """One read transaction, from the first page to the last: a writer of another process would make SQLite begin anew."""
    with (
        translated(ledger),
        _told_of_room(beside.parent),
        closing(_plain(ledger)) as source,
        closing(_plain(beside)) as target,
    ):
        source.execute("BEGIN")
        revision = revision_of(source)
        if revision is None:
            raise LedgerUnavailable(f"{ledger} holds no ledger yet")
        target.execute("PRAGMA journal_mode = OFF")
        target.execute("PRAGMA synchronous = OFF")
        source.backup(target, pages=STEP_PAGES, progress=_Rests())
        target.execute(
            "PRAGMA journal_mode = DELETE"
        )  # it comes as a file with a write-ahead log, and needs none
        backup = Backup(agent=agent, revision=revision, made_at=now, made_by=__version__)
        target.execute(_ABOUT)
        target.execute(
            "INSERT INTO backup VALUES (?, ?, ?, ?)", (agent, revision, now.isoformat(), __version__)
        )
        if wrong := damage(target):
            raise LedgerUnavailable(f"the ledger {ledger} is damaged ({wrong}): ask `dc-compute fsck`")
    return backup


@contextmanager
def _told_of_room(folder: Path) -> Iterator[None]:
    """Only the copy grows: a disk that is full is its own. Raises: NoSpace."""
    try:
        yield
    except sqlite3.Error as cause:
        if _code_of(cause) == sqlite3.SQLITE_FULL:
            raise NoSpace(f"the backup does not fit into {folder}") from cause
        raise


class _Rests:
    """Rests after each step as long as the step took, so that half of the disk's time is left to others."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, _status: int, _remaining: int, _total: int) -> None:
        time.sleep(max(SHORTEST_REST_S, time.monotonic() - self._last))
        self._last = time.monotonic()


def _described(beside: Path, target: Path, backup: Backup) -> BackupFile:
    """What was written, its pages forced to the disk first."""
    with beside.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with closing(_plain(beside)) as copy:
        (orders,) = copy.execute("SELECT count(*) FROM orders").fetchone()
        (open_jobs,) = copy.execute(_OPEN_JOBS).fetchone()
    return BackupFile(
        backup=backup,
        path=str(target),
        size_bytes=beside.stat().st_size,
        digest=digest_from_hex(digest),
        orders=orders,
        open_jobs=open_jobs,
    )


@contextmanager
def _new_beside(target: Path) -> Iterator[Path]:
    """A new file of mode 0600 in the folder of `target`, gone after the block unless it was moved away."""
    beside = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.new")
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    try:
        yield beside
    finally:
        for left in (beside, *companions(beside)):
            left.unlink(missing_ok=True)


def _clear(target: Path) -> None:
    """Remove what backups to this place left whose process is gone: it holds what a backup holds."""
    for left in target.parent.glob(f".{target.name}.*.new*"):
        process = left.name.removeprefix(f".{target.name}.").partition("-")[0]
        if process.isdigit() and not Path("/proc", process).exists():
            left.unlink(missing_ok=True)


def _put(beside: Path, target: Path, *, overwrite: bool) -> None:
    try:
        if not overwrite:
            os.link(beside, target)  # unlike rename, link fails when the name was taken meanwhile
    except OSError as cause:
        if cause.errno not in _NO_LINKS or os.path.lexists(target):
            raise
        overwrite = True
    if overwrite:
        os.replace(beside, target)
    sync_folder(target.parent)


@contextmanager
def _blamed_on(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        raise BadSettings(f"{target} cannot be written: {cause.strerror}") from cause


# ------------------------------------------------------------------ putting one back


def restore(
    ledger: Path, file: BinaryIO, *, me: tuple[KeyId, ...], now: datetime, skew: timedelta, uid: int | None
) -> Restored:
    """Put the backup in `file` in the ledger's place, marked as restored. What lies there now is kept in a folder beside it.

    Raises: LedgerInUse while a process has the ledger open; BadBackup for what is no whole backup of this agent that this
    version can read; LedgerUnavailable. Until it returns, either nothing has changed or nobody opens what lies there.
    """
    with translated(ledger):
        ledger.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        with alone(ledger) as replacement, _staged(ledger, file) as staged:
            former = _finish_keeping(ledger, replacement.begun)
            generation = _look_at_former(former)
            backup = _examine(staged, me, now + skew)
            done, open_jobs, pending = _mark(staged, backup, now, skew, generation, uid)
            kept = _folder_to_keep(ledger, now)
            replacement.begin(kept.name)
            _keep(ledger, kept)
            os.replace(staged, ledger)
            sync_folder(ledger.parent)
            replacement.end()
            is_kept = _is_kept(kept)
    return Restored(
        backup=backup,
        restore=done,
        kept=str(kept) if is_kept else None,
        open_jobs=open_jobs,
        pending_deliveries=pending,
    )


@contextmanager
def _staged(ledger: Path, file: BinaryIO) -> Iterator[Path]:
    """A copy of the backup beside the ledger, on its file system; gone after the block unless it was moved away."""
    staged = ledger.with_name(ledger.name + STAGED)
    leftovers = (staged, *companions(staged))
    for left in leftovers:
        left.unlink(missing_ok=True)
    try:
        sink = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(sink, "wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
        yield staged
    finally:
        for left in leftovers:
            left.unlink(missing_ok=True)


def _look_at_former(ledger: Path) -> int:
    """The generation of the ledger that lay there, 0 when it cannot be read any more.

    Raises: LedgerInUse when somebody has it open who holds no lock of ours: `sqlite3`, or a program of before.
    """
    if not ledger.exists():
        return 0
    try:
        with closing(_plain(ledger, busy_s=0)) as former:
            former.execute("PRAGMA locking_mode = EXCLUSIVE")
            former.execute("BEGIN IMMEDIATE")
            (last,) = former.execute("SELECT coalesce(max(generation), 0) FROM restores").fetchone()
            return int(last)
    except sqlite3.Error as cause:
        if _code_of(cause) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            raise LedgerInUse(f"somebody has {ledger} open (`fuser {ledger}` tells who)") from cause
        return 0


def _examine(staged: Path, me: tuple[KeyId, ...], latest: datetime) -> Backup:
    """What the backup says of itself, once it is whole and this agent's. The note is taken out: what stays is a ledger.

    Raises: BadBackup.
    """
    try:
        with closing(_plain(staged)) as copy:
            copy.execute("PRAGMA trusted_schema = OFF")
            if wrong := damage(copy):
                raise ValueError(wrong)
            acts = copy.execute(
                "SELECT sql FROM sqlite_master WHERE type NOT IN ('table', 'index')"
            ).fetchall()
            if {sql for (sql,) in acts} - set(TRIGGERS):
                raise ValueError("it holds what acts by itself: a trigger or a view of nobody's")
            backup = _about(copy)
            copy.execute("DROP TABLE backup")
    except (sqlite3.Error, ValueError) as cause:
        raise BadBackup(f"the file is no whole backup: {cause}") from cause
    if backup.agent not in me:
        raise BadBackup(f"the backup is of agent {backup.agent}, and this is {', '.join(me)}")
    if backup.revision > HEAD:
        raise BadBackup(
            f"the backup was made by version {backup.made_by} (schema {backup.revision}), which is newer than this one"
        )
    if backup.made_at > latest:
        raise BadBackup(
            f"the backup was made at {backup.made_at.isoformat(timespec='seconds')}, later than now: look at the clock"
        )
    return backup


def _about(copy: sqlite3.Connection) -> Backup:
    """Raises: sqlite3.Error, ValueError."""
    rows = copy.execute("SELECT agent, revision, made_at, made_by FROM backup").fetchall()
    if len(rows) != 1 or not all(isinstance(cell, str) for cell in rows[0]):
        raise ValueError("it does not say whose it is")
    keyid, revision, made_at, made_by = rows[0]
    if revision != revision_of(copy):
        raise ValueError(f"it says revision {revision}, and its tables another")
    moment = datetime.fromisoformat(made_at)
    if moment.tzinfo is None:
        raise ValueError("it does not say when it was made")
    return Backup(agent=KeyId(keyid), revision=revision, made_at=moment, made_by=made_by)


def _mark(
    staged: Path, backup: Backup, now: datetime, skew: timedelta, generation: int, uid: int | None
) -> tuple[Restore, int, int]:
    """Migrate the copy, and mark it. What it did, and how many jobs and deliveries are open in it."""
    try:
        file = open_staged(staged)
    except LedgerUnavailable as cause:
        raise BadBackup(f"the backup cannot be brought to this version's schema: {cause}") from cause
    with closing(file):
        records = RestoreRecords(file)
        done = records.mark_restored(
            now, backup_made_at=backup.made_at, skew=skew, generation=generation, uid=uid
        )
    with closing(_plain(staged)) as copy:
        copy.execute("PRAGMA journal_mode = DELETE")
        if wrong := differences(copy):
            raise BadBackup(f"the backup is no ledger of this program: {wrong[0]}")
        (open_jobs,) = copy.execute(_OPEN_JOBS).fetchone()
        (pending,) = copy.execute("SELECT count(*) FROM deliveries WHERE state = 'pending'").fetchone()
    with staged.open("rb") as whole:
        os.fsync(whole.fileno())
    return done, open_jobs, pending


def _finish_keeping(ledger: Path, begun: str) -> Path:
    """Where the former ledger lies. One that was half moved when a restore was interrupted is moved whole, log and all."""
    kept = ledger.with_name(begun or "none") / ledger.name
    if not begun or ledger.exists() or not kept.exists():
        return ledger
    _keep(ledger, kept.parent)
    return kept


def _keep(ledger: Path, folder: Path) -> None:
    """Move what lies in the ledger's place into this folder, as it is."""
    for part in (ledger, *companions(ledger)):
        if os.path.lexists(part):
            os.rename(part, folder / part.name)
    sync_folder(folder)
    sync_folder(ledger.parent)


def _is_kept(folder: Path) -> bool:
    """Whether anything lies in it; an empty folder goes."""
    with suppress(OSError):
        folder.rmdir()
    return folder.exists()


def _folder_to_keep(ledger: Path, now: datetime) -> Path:
    wanted = ledger.with_name(f"{ledger.name}{KEPT}{now.strftime('%Y%m%dT%H%M%SZ')}")
    for number in range(1000):
        folder = wanted if number == 0 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(mode=FOLDER_MODE)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{wanted} and 999 more are there already")


# ------------------------------------------------------------------ SQLite, plainly


def damage(connection: sqlite3.Connection) -> str | None:
    """What SQLite finds wrong in the file first, or a row that refers to one that is not there; None when it is whole."""
    told = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(3)")]
    if told != ["ok"]:
        return "; ".join(told)[:300]
    row = connection.execute("PRAGMA foreign_key_check").fetchone()
    return None if row is None else f"a row of {row[0]} refers to one of {row[2]} that is not there"


def _code_of(error: sqlite3.Error) -> int:
    """SQLite's primary code; 0 for an error of Python's part alone."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def companions(ledger: Path) -> tuple[Path, ...]:
    """The files that SQLite keeps beside this one."""
    return tuple(ledger.with_name(ledger.name + suffix) for suffix in COMPANIONS)


def sync_folder(folder: Path) -> None:
    """Names that were given or taken in it are durable when this returns."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _plain(path: Path, *, busy_s: float = BUSY_S) -> sqlite3.Connection:
    """A connection that makes no file, and begins and ends no transaction by itself."""
    url = f"file:{quote(str(path))}?mode=rw"
    connection = sqlite3.connect(url, uri=True, timeout=busy_s, isolation_level=None)
    connection.execute("PRAGMA foreign_keys = ON")
    return connection
