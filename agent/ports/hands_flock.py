"""What is in hand as locks on files: the kernel lets go of the locks of a process that ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.domain.ids import JobId
from agent.errors import LedgerUnavailable

SUFFIX = ".lock"


class FlockHands:
    """Implements `Hands` for all processes that share `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def hold(self, job: JobId) -> Iterator[bool]:
        """As the protocol says."""
        path = self._folder / f"{job}{SUFFIX}"
        lock = self._lock(path)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                try:
                    path.unlink(
                        missing_ok=True
                    )  # while it is locked: whoever opened it meanwhile looks again
                finally:
                    os.close(lock)

    def _lock(self, path: Path) -> int | None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while True:
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                if not _is_locked(lock):
                    os.close(lock)
                    return None
                if _is_the_one_at(path, lock):
                    return lock
                os.close(lock)  # its holder took it away in between
        except OSError as cause:
            raise LedgerUnavailable(f"no lock can be had at {path}: {cause.strerror}") from cause


def _is_locked(lock: int) -> bool:
    """Whether it is ours now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_the_one_at(path: Path, lock: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(lock))
    except FileNotFoundError:
        return False
