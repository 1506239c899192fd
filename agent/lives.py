"""Which worker processes of this host live: each holds a lock on a file of its own name, which the kernel drops when it dies.

So the task of a worker that was killed is taken over at once, not when its lease runs out.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".lock"


@contextmanager
def living(folder: Path, name: str) -> Iterator[None]:
    """Be known as alive under this name while the context lasts, and as gone whatever ends the process."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{name}{SUFFIX}"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)


def bury_the_dead(folder: Path) -> tuple[str, ...]:
    """The names of those that died since this was asked last; each is told to one caller at least."""
    dead = []
    for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else ():
        fd = _open(path)
        if fd is None:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)
        dead.append(path.name.removesuffix(SUFFIX))
    return tuple(dead)


def forget(folder: Path, name: str) -> None:
    """What the dead one had is given to others: its file goes."""
    (folder / f"{name}{SUFFIX}").unlink(missing_ok=True)


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
