"""Folders and containers of a self-test under way: claimed by a lock while it lives, so that a sweep knows what was abandoned.

They bear no job's name. A lock ends with its process, whatever ended that: no clock and no process id is believed.
"""

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.pipeline.workspace import remove_folder
from agent.ports.runtime import Runtime

TRIAL_LABEL = "dc-compute.selftest"  # of its containers: the name of its folder

_NAME = re.compile(r"selftest-[0-9a-f]{12}")


@contextmanager
def trial(root: Path, runtime: Runtime) -> Iterator[Path]:
    """A fresh folder under `root` for one self-test; leaving the context removes it, whatever guests left in it."""
    folder, claim = _claimed(root)
    try:
        yield folder
    finally:
        try:
            remove_folder(folder, runtime)
        finally:
            os.close(claim)


def is_under_way(name: str, root: Path) -> bool:
    """Whether somebody still holds the folder of this name."""
    if not _NAME.fullmatch(name):
        return False
    try:
        claim = os.open(root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _lock(claim)
    finally:
        os.close(claim)


def abandoned(root: Path) -> tuple[Path, ...]:
    """Folders of self-tests whose process is gone."""
    return tuple(
        path
        for path in sorted(root.iterdir())
        if _NAME.fullmatch(path.name) and not path.is_symlink() and not is_under_way(path.name, root)
    )


def _claimed(root: Path) -> tuple[Path, int]:
    while True:
        folder = root / f"selftest-{secrets.token_hex(6)}"
        folder.mkdir(mode=0o700)
        claim = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        if _lock(claim) and folder.exists():  # else a sweep was quicker than the lock
            return folder, claim
        os.close(claim)


def _lock(claim: int) -> bool:
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
