"""One at a time over all processes that share a folder. A process that is stopped meanwhile keeps the others only so long."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from agent.errors import RuntimeUnavailable

LOCK_WAIT_S = (
    300.0  # the first container of an id map copies its image meanwhile, and others may be before us
)
LOOK_S = 0.005


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Alone with this folder while the context lasts. Raises: RuntimeUnavailable when another one keeps it, or it is gone."""
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as cause:
        raise RuntimeUnavailable(f"{path} cannot be opened: {cause.strerror}") from cause
    try:
        _take(folder, path)
        yield
    finally:
        os.close(folder)


def _take(folder: int, path: Path) -> None:
    deadline_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            if time.monotonic() > deadline_s:
                raise RuntimeUnavailable(f"another process keeps {path} locked: is it stopped?") from cause
            time.sleep(LOOK_S)
        else:
            return
