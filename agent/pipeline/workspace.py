"""The memory-backed folder of one attempt: made with its bytes reserved, and gone afterwards, also after a crash.

How much a task needs is worked out here too (`bytes_needed`); whether it is there, in `space.py`.
"""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, assert_never

from agent.domain.ceilings import Ceilings
from agent.domain.chain import TaskKind
from agent.domain.ids import JobId
from agent.domain.jobs import Job
from agent.errors import (
    AgentError,
    BadOutput,
    LedgerUnavailable,
    LostRace,
    NoSpace,
    RuntimeUnavailable,
    WorkerLost,
)
from agent.log import get_logger
from agent.pipeline.space import FOLDER_NAME, lower_reservation, reserve, used_bytes
from agent.ports.runtime import Runtime

GUEST_READS = 0o755
GUEST_WRITES = 0o777  # the folder above is the agent's alone, so only the guest gets through by its mount

PAGE_BYTES = 4096  # a file or folder in memory takes whole pages
TAR_MEMBER_BYTES = 1024  # the least that one file with content takes in an archive
PACKED_MEMBER_BYTES = 4096  # the most that an archive takes for one file beside its content
ARCHIVE_END_BYTES = 10240

_NAME = re.compile(FOLDER_NAME)

log = get_logger(__name__)


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

    def drop(self, *things: Path) -> None:
        """Free what no later run needs: files, or folders whose content is the agent's own (`Runtime.reclaim`); or gone."""
        for thing in things:
            if thing.is_dir() and not thing.is_symlink():
                shutil.rmtree(thing)
            else:
                thing.unlink(missing_ok=True)

    def keep_only(self, further_bytes: int) -> None:
        """Give back what is reserved beyond what lies here now, all of it the agent's own, and so many bytes more."""
        lower_reservation(self.root, used_bytes(self.root) + further_bytes)

    def _make(self, name: str, mode: int) -> Path:
        folder = self.root / name
        folder.mkdir(
            exist_ok=True
        )  # a worker before this one may have made it for the same run of the same attempt
        folder.chmod(mode)
        return folder


def bytes_needed(kind: TaskKind, *, dataset_bytes: int, model_bytes: int, ceilings: Ceilings) -> int:
    """The most that the workspace of such a task holds at any one time.

    D: the dataset in clear, by its owner's header. A: the archive of the model that comes in; M: the same, unpacked.
    O: what one run may leave, by the ceilings; R: the most that lies in the folder of a model that is trained on,
    the earlier one or what is left. P: that packed. In whole pages, as memory has them.

    | task    | when                                        | lies there        | freed after it          |
    |---------|---------------------------------------------|-------------------|-------------------------|
    | all     | the model is unpacked                       | A + M             | A                       |
    | learn   | train                                       | D + R             | D, what is not the model|
    |         | the model is packed                         | O + P             |                         |
    | test    | detarget                                    | D + M + O         |                         |
    |         | predict, on what detarget left              | D + M + O + O     | M                       |
    |         | perf, with what both left                   | D + O + O + O     |                         |
    | predict | predict; the prediction is sent as it is    | D + M + O         |                         |

    What a run leaves is taken over by renaming, never by copying.
    """
    dataset, archive = _pages(dataset_bytes, 1), _pages(model_bytes, 1)
    files_in = min(ceilings.output_files, model_bytes // TAR_MEMBER_BYTES)
    model = _pages(model_bytes, files_in) if model_bytes else 0
    output = output_bytes_needed(ceilings)
    match kind:
        case TaskKind.LEARN:
            packed = packed_bytes_needed(ceilings.output_bytes, ceilings.output_files)
            return max(archive + model, dataset + max(model, output), output + packed)
        case TaskKind.TEST:
            return max(archive + model, dataset + 2 * output + max(model, output))
        case TaskKind.PREDICT:
            return max(archive + model, dataset + model + output)
        case _:
            assert_never(kind)


def output_bytes_needed(ceilings: Ceilings) -> int:
    """The most that one run may leave."""
    return _pages(ceilings.output_bytes, ceilings.output_files)


def packed_bytes_needed(content_bytes: int, files: int) -> int:
    """The most that an archive of so much content in so many files takes."""
    return content_bytes + files * PACKED_MEMBER_BYTES + ARCHIVE_END_BYTES


def _pages(content_bytes: int, files: int) -> int:
    """What that much content takes when it lies in so many files: each may end in a page that it does not fill."""
    return content_bytes + files * PAGE_BYTES if content_bytes else 0


def add_pred(folder: Path) -> None:
    """Give a folder that the guest reads the empty `pred` on which its writable one is mounted."""
    (folder / "pred").mkdir(exist_ok=True)
    (folder / "pred").chmod(GUEST_READS)


def folder_name(job: JobId, attempt: int) -> str:
    """The name of an attempt's folder: the sweep reads job and attempt back from it."""
    return f"{job}.{attempt}"


def parse_folder_name(name: str) -> tuple[JobId, int] | None:
    """(job, attempt) of a workspace folder's name, None when it is not one."""
    match = _NAME.fullmatch(name)
    return None if match is None else (JobId(match["job"]), int(match["attempt"]))


class PutOff(Exception):
    """Leaves a workspace as it is: `cause` passes, and the attempt goes on from here later."""

    goes_on: ClassVar[bool] = True

    def __init__(self, cause: AgentError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class EndsBadly(PutOff):
    """Leaves a workspace as it is until the ledger has the end: a worker that dies before that leaves the cause to be found."""

    goes_on = False


@contextmanager
def end_is_recorded_first() -> Iterator[None]:
    """Within a workspace: what ends the attempt for good leaves as EndsBadly. What passes does not, its folder goes at once:
    by the time it is put off it may be another worker's.
    """
    try:
        yield
    except (LostRace, LedgerUnavailable):
        raise
    except AgentError as error:
        if error.is_passing:
            raise
        raise EndsBadly(error) from error


@contextmanager
def workspace(
    job: Job,
    root: Path,
    runtime: Runtime,
    *,
    reserve_bytes: int,
    keep_free: int = 0,
    is_anothers: Callable[[], bool] = lambda: False,
) -> Iterator[Workspace]:
    """The attempt's own folder under `root`, with so many bytes reserved; leaving the context removes it with everything in it.

    The reservation stands in the folder: it outlives a worker that dies, and ends with the folder. `is_anothers`: whether
    another worker has the attempt by the time this one leaves it: then the folder stays.
    Raises: NoSpace when `root` cannot hold `reserve_bytes` beside what is reserved there already, or fills up while in use;
    LostRace when a sweep took it away.
    """
    folder = root / folder_name(job.id, job.attempt)
    try:
        reserve(folder, reserve_bytes, keep_free=keep_free)
    except FileExistsError as cause:
        raise LostRace("another worker has made the workspace of this attempt") from cause
    with _leaving(folder, runtime, is_anothers):
        yield Workspace(folder)


@contextmanager
def kept_workspace(
    job: Job, root: Path, runtime: Runtime, *, is_anothers: Callable[[], bool]
) -> Iterator[Workspace]:
    """The folder as an earlier worker of the same attempt left it, with its reservation. Leaving is as with `workspace`.

    Raises: WorkerLost when it is gone; and as `workspace`.
    """
    folder = root / folder_name(job.id, job.attempt)
    if not folder.is_dir():
        raise WorkerLost(
            "the workspace is gone with the worker that filled it: the host was restarted, or it was removed"
        )
    with _leaving(folder, runtime, is_anothers):
        yield Workspace(folder)


@contextmanager
def _leaving(folder: Path, runtime: Runtime, is_anothers: Callable[[], bool]) -> Iterator[None]:
    is_kept = False
    try:
        yield
    except (
        PutOff,
        LedgerUnavailable,
    ):  # an attempt that the ledger has not heard the end of goes on from here
        is_kept = True
        raise
    except OSError as cause:
        if cause.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoSpace(f"the workspace filled up: {cause.strerror}") from cause
        if not folder.exists():
            raise LostRace("the workspace is gone: a sweep gave this attempt up") from cause
        if is_anothers():  # who stalled, and wakes up in a folder where another worker goes on
            raise LostRace("another worker goes on in this workspace") from cause
        raise
    finally:
        if not is_kept and not is_anothers():
            _remove_now_or_later(folder, runtime)


def _remove_now_or_later(folder: Path, runtime: Runtime) -> None:
    """What cannot go hides no error of the attempt: the sweep takes it, or whoever begins the attempt anew."""
    try:
        remove_folder(folder, runtime)
    except (RuntimeUnavailable, OSError) as error:
        log.error("leftover.stays", workspace=folder.name, detail=str(error))


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
