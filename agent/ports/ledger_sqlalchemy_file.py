"""The ledger's file: made with its modes, brought to the newest schema, opened, and its two kinds of transactions.

Every error of SQLAlchemy and SQLite becomes LedgerUnavailable here and nowhere else; that the disk is full, LedgerFull.
"""

import errno
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from agent.errors import LedgerFull, LedgerUnavailable
from agent.ports.ledger_schema import HEAD
from agent.ports.ledger_sqlalchemy_group import Group, told
from agent.ports.ledger_sqlalchemy_use import use

T = TypeVar("T")

BUSY_S: Final = 15.0  # how long one transaction waits for another process to finish its own
POOLED: Final = 8  # connections kept open; a burst may open more for its own time
BURST: Final = 56

STEP_PAGES: Final = 256  # given back in one transaction, so that no writer waits long
CHECKPOINT_S: Final = 1.0  # how long the log's end may be waited for: a reader of a moment, not a long one
REBUILD_FACTOR: Final = 3  # of a file's size: the new one, the log it comes through, and something left
NEARLY_NOTHING: Final = (
    1 << 16
)  # bytes: with less than this free, what SQLite calls an I/O error is a full disk

# Free pages can be given back step by step only in a file that was made so: it must be said before the first page is written.
AUTO_VACUUM: Final = "PRAGMA auto_vacuum = INCREMENTAL"
INCREMENTAL: Final = 2

# One commit is one fsync of the log: measured, a power cut took nothing that was acknowledged under FULL and all of it
# under NORMAL. The log file shrinks again after a large hand-off. What is in it is brought over to the file every 16 MiB: with
# SQLite's own 4 MiB a busy intake wrote the same pages over and over, and flushed both files each time.
PRAGMAS: Final = (
    "PRAGMA synchronous = FULL",
    "PRAGMA foreign_keys = ON",
    f"PRAGMA journal_size_limit = {64 << 20}",
    "PRAGMA wal_autocheckpoint = 4096",
)


class LedgerFile:
    """An open ledger file. Threads share it freely, and so do processes that open the same path."""

    def __init__(
        self, path: Path, lock: int | None = None, before_commit: Callable[[], None] | None = None
    ) -> None:
        self._path = path
        self._lock = lock
        self._before_commit = before_commit
        self._engine = _engine(path)
        # SQLite lets waiting writers poll. Within one process they queue up here instead, at no cost.
        self._turn = threading.Lock()
        self._looking = threading.Lock()
        self._look: sqlite3.Connection | None = None
        self._writer: Connection | None = None  # kept: whoever has the turn writes through it
        self._group = Group(self._begun)
        self._readers: list[sqlite3.Connection] = []  # at rest, the one used last at the end

    def version(self) -> int:
        """Another number whenever anybody committed since: SQLite's own, read from shared memory in a few microseconds.

        It tells of other connections only, so this one is kept for nothing else.
        """
        with translated(self._path), self._looking:
            if self._look is None:
                self._look = sqlite3.connect(
                    self._path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
                )
            return _pragma(self._look, "data_version")

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one unchanging state of the ledger."""
        with translated(self._path), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection that nobody else writes beside; what it wrote is on the disk when the block ends, or undone."""
        with translated(self._path), self._begun() as connection:
            yield connection

    def together(self, act: Callable[[Connection], T]) -> T:
        """What `act` gave; what it wrote is on the disk, in a transaction shared with others of this moment, or undone."""
        with translated(self._path):
            return self._group.write(act)

    def together_each(self, acts: Sequence[Callable[[Connection], T]]) -> list[T | Exception]:
        """What each of these gave, or why it was undone, as of `together`: all of them in one transaction."""
        return [told(partial(self._ended, outcome)) for outcome in self._group.write_all(acts)]

    def _ended(self, outcome: Callable[[], T]) -> T:
        with translated(self._path):
            return outcome()

    @contextmanager
    def looking(self) -> Iterator[sqlite3.Connection]:
        """The driver's connection for one SELECT at a time, each of which sees the newest state: for what every call asks."""
        with translated(self._path):
            try:
                reader = self._readers.pop()
            except IndexError:
                reader = self._plain(BUSY_S, shared=True)
            try:
                yield reader
            finally:
                self._readers.append(reader)

    @contextmanager
    def _begun(self) -> Iterator[Connection]:
        with self._turn, ExitStack() as failed:
            if self._writer is None:
                self._writer = self._engine.connect().execution_options(begin="BEGIN IMMEDIATE")
            failed.callback(self._drop_writer)  # whatever it was: the next one begins with another connection
            with self._writer.begin():
                yield self._writer
                if self._before_commit is not None:
                    self._before_commit()
            failed.pop_all()

    def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def give_back(self) -> int:
        """Give free pages and the log's end back to the file system; how many bytes the file is smaller.

        In steps between which others write. A file that an older version made keeps its free pages until `rebuild`.
        """
        with translated(self._path), closing(self._plain(CHECKPOINT_S)) as plain:
            before = self._path.stat().st_size
            if _pragma(plain, "auto_vacuum") == INCREMENTAL:
                while left := _pragma(plain, "freelist_count"):
                    with self._turn:
                        plain.execute(f"PRAGMA incremental_vacuum({STEP_PAGES})").fetchall()
                    if _pragma(plain, "freelist_count") >= left:
                        break
            with self._turn:
                plain.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return max(0, before - self._path.stat().st_size)

    def rebuild(self) -> None:
        """Write the file anew without free pages, so that later ones can be given back. Takes as much room again meanwhile,
        and nobody writes until it is done."""
        with translated(self._path), closing(self._plain(BUSY_S)) as plain, self._turn:
            plain.execute(AUTO_VACUUM)
            plain.execute("VACUUM")

    def pages(self) -> tuple[int, int, bool]:
        """(bytes of the file, of them free, whether free ones can be given back step by step)."""
        with translated(self._path), closing(self._plain(BUSY_S)) as plain:
            size = _pragma(plain, "page_size")
            can_shrink = _pragma(plain, "auto_vacuum") == INCREMENTAL
            return _pragma(plain, "page_count") * size, _pragma(plain, "freelist_count") * size, can_shrink

    def _plain(self, busy_s: float, *, shared: bool = False) -> sqlite3.Connection:
        """A connection beside the pool's, for what must not run inside a transaction. `shared`: threads hand it on."""
        return sqlite3.connect(self._path, timeout=busy_s, isolation_level=None, check_same_thread=not shared)

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._path

    def close(self) -> None:
        """Let go of the file, then of the lock that tells of its use."""
        with self._looking:
            if self._look is not None:
                self._look.close()
                self._look = None
        self._drop_writer()
        while self._readers:
            self._readers.pop().close()
        self._engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def open_file(path: Path, before_commit: Callable[[], None] | None = None) -> LedgerFile:
    """The ledger at `path`, made and migrated when needed, its use told by a lock. Raises: LedgerUnavailable.

    `before_commit` is called in each writing transaction after its last write; what it raises undoes them.
    """
    with translated(path):
        _make_folder(path.parent)
        lock = use(path)
    return _opened(LedgerFile(path, lock, before_commit))


def open_staged(path: Path) -> LedgerFile:
    """The same for a file that is not in its place yet, and that nobody else knows. Raises: LedgerUnavailable."""
    return _opened(LedgerFile(path))


def _opened(file: LedgerFile) -> LedgerFile:
    with ExitStack() as undo:
        undo.callback(file.close)
        with translated(file.path):
            _make(file.path)
        with file.reading() as connection:
            is_behind = _revision(connection) != HEAD
        if is_behind:
            with file.writing() as connection:
                _upgrade(connection)
            _make_shrinkable(file)
        undo.pop_all()
    return file


def _make_shrinkable(file: LedgerFile) -> None:
    """Rebuild a file of an older version, once, where there is room for it. What keeps it from that keeps no ledger shut."""
    size, _, can_shrink = file.pages()
    about = os.statvfs(file.path.parent)
    if not can_shrink and about.f_bavail * about.f_frsize > REBUILD_FACTOR * size:
        with suppress(LedgerUnavailable):  # another process writes: it stays as it is
            file.rebuild()


def migrate(path: Path) -> None:
    """Bring the ledger at `path` to the newest schema; a new file is made. Raises: LedgerUnavailable."""
    open_file(path).close()


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Foreign errors as LedgerUnavailable. The message names no values: they may be bodies."""
    try:
        yield
    except DBAPIError as cause:
        raise _unavailable(path, cause.orig) from cause
    except SQLAlchemyError as cause:
        raise LedgerUnavailable(f"the ledger {path}: {type(cause).__name__}") from cause
    except (sqlite3.Error, OSError) as cause:
        raise _unavailable(path, cause) from cause


# What SQLite says when it finds no room: for a page, or for the log's index, which it makes and lengthens as it goes.
_OUT_OF_ROOM: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})


def _unavailable(path: Path, cause: BaseException | None) -> LedgerUnavailable:
    if _is_full(path, cause):
        return LedgerFull(f"the file system of the ledger {path} is full: {cause}")
    return LedgerUnavailable(f"the ledger {path}: {cause}")


def _is_full(path: Path, cause: BaseException | None) -> bool:
    if isinstance(cause, OSError):
        return cause.errno in {errno.ENOSPC, errno.EDQUOT}
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return True
    with suppress(OSError):
        about = os.statvfs(path.parent)
        return code in _OUT_OF_ROOM and about.f_bavail * about.f_frsize < NEARLY_NOTHING
    return False


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    return int(value)


def _make_folder(folder: Path) -> None:
    """A folder of mode 0700, or the one that is there, unless others may write in it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if stat.S_IMODE(folder.stat().st_mode) & 0o022:
        raise PermissionError(f"others may write in {folder}: chmod 700")


def _make(path: Path) -> None:
    """An empty file of mode 0600, or the one that is there, unless others may change or read it.

    `mknod` and not `open`: closing a descriptor of the file would drop the locks SQLite holds on it in this process.
    """
    try:
        os.mknod(path, 0o600 | stat.S_IFREG)
    except FileExistsError:
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            raise PermissionError("it is no regular file") from None
        if stat.S_IMODE(mode) & 0o077:
            raise PermissionError("others may read or write it: chmod 600") from None


def _engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args={"timeout": BUSY_S},
        pool_size=POOLED,
        max_overflow=BURST,
        pool_timeout=BUSY_S,
        pool_use_lifo=True,
        hide_parameters=True,
    )
    engine.dialect.statement_compiler = _Hinted
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


class _Hinted(SQLiteCompiler):
    """Says `INDEXED BY` where a statement has that as a hint: SQLite prefers the index of a whole state to one of a part."""

    def get_from_hint_text(self, table: Any, text: str | None) -> str | None:
        return text


def _prepare(connection: sqlite3.Connection, _record: Any) -> None:
    """Transactions begin and end where we say, not where the driver guesses; then the pragmas."""
    connection.isolation_level = None
    connection.execute(AUTO_VACUUM)
    _use_wal(connection)
    for pragma in PRAGMAS:
        connection.execute(pragma)


def _begin(connection: Connection) -> None:
    """Writers take their place at once: a reader that turns writer half way would fail when another one was faster."""
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))


def _use_wal(connection: sqlite3.Connection) -> None:
    """Readers and a writer side by side. The switch itself, on a new file, does not wait for others by itself."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as cause:
            if cause.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            if mode != "wal":
                raise sqlite3.OperationalError("this file system cannot hold a write-ahead log")
            return


def _revision(connection: Connection) -> str | None:
    """The schema's revision, None for an empty file."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def _upgrade(connection: Connection) -> None:
    """Run the missing revisions inside the caller's transaction. Only here is Alembic imported: services rarely need it."""
    if _revision(connection) == HEAD:  # another process was faster
        return
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", "agent.ports:migrations")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as cause:
        raise LedgerUnavailable(f"the ledger was made by another version of dc-compute: {cause}") from cause
