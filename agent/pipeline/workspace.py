"""The memory-backed folder of one attempt: made, reserved, and gone afterwards, also after a crash."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from agent.domain.ids import JobId
from agent.domain.jobs import Job
from agent.errors import BadOutput, LostRace, NoSpace
from agent.ports.runtime import Runtime

# Exact, for what bears such a name and is not in use is removed.
_FOLDER_NAME = re.compile(
    r"(?P<job>[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[0-9]{1,4})\.(?P<attempt>[0-9]{1,4})"
)

GUEST_READS = 0o755
GUEST_WRITES = 0o777  # the folder above is the agent's alone, so only the guest gets through by its mount


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of one attempt. Sub-folders are made on demand; what the guest wrote is never a mount's parent."""

    root: Path

    def readable(self, name: str) -> Path:
        """A fresh folder the guest may only read."""
        return self._make(name, GUEST_READS)

    def writable(self, name: str) -> Path:
        """A fresh folder that is the guest's to write in."""
        return self._make(name, GUEST_WRITES)

    def private(self, name: str) -> Path:
        """A path that no guest ever sees; its parent exists."""
        folder = self.root / "private"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / name

    def _make(self, name: str, mode: int) -> Path:
        folder = self.root / name
        folder.mkdir()
        folder.chmod(mode)
        return folder


def add_pred(folder: Path) -> None:
    """Give a folder that the guest reads the empty `pred` on which its writable one is mounted."""
    (folder / "pred").mkdir()
    (folder / "pred").chmod(GUEST_READS)


def folder_name(job: JobId, attempt: int) -> str:
    """The name of an attempt's folder: the sweep reads job and attempt back from it."""
    return f"{job}.{attempt}"


def parse_folder_name(name: str) -> tuple[JobId, int] | None:
    """(job, attempt) of a workspace folder's name, None when it is not one."""
    match = _FOLDER_NAME.fullmatch(name)
    return None if match is None else (JobId(match["job"]), int(match["attempt"]))


@contextmanager
def workspace(job: Job, root: Path, runtime: Runtime, *, reserve_bytes: int) -> Iterator[Workspace]:
    """The attempt's own folder under `root`; leaving the context removes it with everything in it.

    Raises: NoSpace when `root` has less than `reserve_bytes` free, or fills up while in use; LostRace when a
    sweep took it away.
    """
    folder = root / folder_name(job.id, job.attempt)
    check_space(root, reserve_bytes)
    folder.mkdir(mode=0o700)
    try:
        yield Workspace(folder)
    except OSError as cause:
        if cause.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpace(f"the workspace filled up: {cause.strerror}") from cause
        if not folder.exists():
            raise LostRace("the workspace is gone: a sweep gave this attempt up") from cause
        raise
    finally:
        remove_folder(folder, runtime)


def check_space(root: Path, reserve_bytes: int) -> None:
    """Refuse to begin what could not be finished. Raises: NoSpace."""
    free = shutil.disk_usage(root).free
    if free < reserve_bytes:
        raise NoSpace(f"the workspace has {free >> 20} MiB free, the task needs {reserve_bytes >> 20}")


def remove_folder(folder: Path, runtime: Runtime) -> None:
    """Remove an attempt's folder, whatever the guest left in it. Gone already is fine."""
    if not folder.exists():
        return
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return  # another sweep is at it; what it misses, the next one takes
    except (OSError, RecursionError):  # files of the guest's user, or folders too deep to walk
        with suppress(BadOutput):  # it goes, whatever it was
            runtime.reclaim(folder)
        shutil.rmtree(folder)


def set_modes(folder: Path, *, writable: bool) -> None:
    """Give every file and folder below `folder`, all the agent's own, the mode the guest needs."""
    folder_mode, file_mode = (GUEST_WRITES, 0o666) if writable else (GUEST_READS, 0o644)
    for parent, _, files in os.walk(folder):
        os.chmod(parent, folder_mode)
        for name in files:
            os.chmod(os.path.join(parent, name), file_mode, follow_symlinks=False)
