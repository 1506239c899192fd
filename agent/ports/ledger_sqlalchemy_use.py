"""Who uses the ledger: each process that opened it holds a shared lock beside it, and whoever replaces it the only one.

The lock is an flock on `<ledger>.lock`, so the kernel ends it with its process, whatever ended that. What the file holds
says that a replacement was begun and not ended: until a restore ends it, nobody opens what lies there.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from agent.errors import LedgerInUse, LedgerUnavailable

SUFFIX: Final = ".lock"


def use(path: Path) -> int:
    """A shared lock on the ledger at `path`, as a descriptor that ends it when it is closed.

    Raises: LedgerUnavailable while the ledger is replaced, and after a replacement that nobody ended.
    """
    with ExitStack() as undo:
        lock = _open(path)
        undo.callback(os.close, lock)
        if not _take(lock, fcntl.LOCK_SH):
            raise LedgerUnavailable(f"the ledger {path} is being restored from a backup")
        if begun := _told(lock):
            raise LedgerUnavailable(
                f"the ledger {path} was being restored, and that was interrupted: run `dc-compute restore` again "
                f"(the former ledger is in {begun})"
            )
        undo.pop_all()
    return lock


def interrupted(path: Path) -> str:
    """What a replacement said that nobody ended; empty: there was none. Nothing is locked or made."""
    try:
        return path.with_name(path.name + SUFFIX).read_text("utf-8", "replace")
    except FileNotFoundError:
        return ""


class Replacement:
    """The right to replace the ledger, and the note of it that outlives a crash."""

    def __init__(self, lock: int) -> None:
        self._lock = lock
        self.begun = _told(lock)  # what an earlier one said that nobody ended; empty: there was none

    def begin(self, what: str) -> None:
        """From now on what lies there may be half of it: nobody opens it before `end`, also after a power cut."""
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, what.encode(), 0)
        os.fsync(self._lock)

    def end(self) -> None:
        """It is whole again."""
        os.ftruncate(self._lock, 0)
        os.fsync(self._lock)


@contextmanager
def alone(path: Path) -> Iterator[Replacement]:
    """The only user of the ledger at `path` while the block runs. Raises: LedgerInUse."""
    lock = _open(path)
    try:
        if not _take(lock, fcntl.LOCK_EX):
            raise LedgerInUse(f"a process has the ledger {path} open")
        yield Replacement(lock)
    finally:
        os.close(lock)


def _open(path: Path) -> int:
    """The lock's file, made when it is missing; root makes it for whoever owns the folder."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(path.with_name(path.name + SUFFIX), flags, 0o600)
    if os.geteuid() == 0:
        about = path.parent.stat()
        os.fchown(lock, about.st_uid, about.st_gid)
    return lock


def _take(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _told(lock: int) -> str:
    return os.pread(lock, 200, 0).decode("utf-8", "replace")
