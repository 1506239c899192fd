"""What tasks are doing, as small files in memory: one for each task in hand, written anew about every second and never synced.

One thread writes for all tasks of a process, and only while there are any. Where it cannot write, nobody is told, and no task
is held up by that.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import replace

from agent.domain.ids import JobId
from agent.domain.jobs import Job
from agent.domain.prepared import prepared
from agent.log import get_logger
from agent.ports.progress import Meter, Progress
from agent.whole_files import write_whole

log = get_logger(__name__)

EVERY_S: Final = 1.0
SUFFIX: Final = ".json"
FORGOTTEN_S: Final = 24 * 3600.0  # a file that nobody wrote for so long is removed by whoever begins next
MAX_BYTES: Final = 8 << 10

_decoder = msgspec.json.Decoder(prepared(Progress))


class FileProgress:
    """Implements `ProgressBoard` for all processes that share `folder`."""

    def __init__(self, folder: Path, now: Callable[[], datetime]) -> None:
        self._folder, self._now = folder, now
        self._lock = threading.Lock()
        self._meters: set[_FileMeter] = set()
        self._is_writing = False

    @contextmanager
    def telling(self, job: Job) -> Iterator[Meter]:
        """As the protocol says."""
        meter = _FileMeter(job, self._now)
        self._begin(meter)
        try:
            yield meter
        finally:
            with self._lock:
                self._meters.discard(meter)
                with suppress(OSError):
                    self._path(job.id).unlink(missing_ok=True)

    def read(self, jobs: Collection[JobId] | None = None) -> tuple[Progress, ...]:
        """As the protocol says. A file that says nothing is no progress."""
        paths = self._files() if jobs is None else [self._path(job) for job in jobs]
        return tuple(told for told in map(_read, paths) if told is not None)

    # ---- writing

    def _begin(self, meter: "_FileMeter") -> None:
        with self._lock:
            self._meters.add(meter)
            if not self._is_writing:
                self._is_writing = True
                threading.Thread(target=self._write_all, name="progress", daemon=True).start()
        self._clear()

    def _write_all(self) -> None:
        has_failed = False
        while True:
            with self._lock:
                if not self._meters:
                    self._is_writing = False
                    return
                for meter in self._meters:  # under the lock, so that nothing is written after its task's end
                    try:
                        self._write(meter.told())
                    except OSError as error:
                        if not has_failed:
                            log.warning("progress.not_told", folder=str(self._folder), detail=str(error))
                        has_failed = True
            time.sleep(EVERY_S)

    def _write(self, progress: Progress) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        write_whole(self._path(progress.job), msgspec.json.encode(progress))

    def _path(self, job: JobId) -> Path:
        return self._folder / f"{job}{SUFFIX}"

    def _files(self) -> list[Path]:
        try:
            return [path for path in self._folder.iterdir() if path.suffix == SUFFIX]
        except OSError:
            return []

    def _clear(self) -> None:
        """Remove what dead workers left long ago. Until then a reader sees by the job's state that it is over."""
        try:
            paths = list(self._folder.iterdir())
        except OSError:
            return
        for path in paths:
            with suppress(OSError):  # a part that was put in place just now
                if self._now().timestamp() - path.stat().st_mtime > FORGOTTEN_S:
                    path.unlink(missing_ok=True)


class _FileMeter:
    """One task's. Told by the thread that has the task in hand, read by the one that writes."""

    def __init__(self, job: Job, now: Callable[[], datetime]) -> None:
        self._now = now
        self._grows: Path | None = None
        self._told = Progress(
            job=job.id,
            attempt=job.attempt,
            phase="begin",
            step=None,
            since=now(),
            done=None,
            total=None,
            limit_s=None,
            at=now(),
        )

    def begin(
        self,
        phase: str,
        step: str | None = None,
        *,
        total: int | None = None,
        limit_s: int | None = None,
        since: datetime | None = None,
    ) -> None:
        """As the protocol says."""
        self._grows = None
        done = None if total is None else 0
        self._told = replace(
            self._told,
            phase=phase,
            step=step,
            since=since or self._now(),
            done=done,
            total=total,
            limit_s=limit_s,
        )

    def grows(self, path: Path) -> None:
        """As the protocol says."""
        self._grows = path

    def moved(self, size_bytes: int) -> None:
        """As the protocol says."""
        self._told = replace(self._told, done=(self._told.done or 0) + size_bytes)

    def told(self) -> Progress:
        """What stands now."""
        told, path = self._told, self._grows
        if path is not None:
            with suppress(OSError):
                told = replace(told, done=_size_of(path))
        return replace(told, at=self._now())


def _size_of(path: Path) -> int:
    """How much lies at this path, or while it is made beside it under a name of its own."""
    if path.exists():
        return path.stat().st_size
    return max((part.stat().st_size for part in path.parent.glob(".*.partial")), default=0)


def _read(path: Path) -> Progress | None:
    try:
        with path.open("rb") as file:
            return _decoder.decode(file.read(MAX_BYTES))
    except (OSError, msgspec.MsgspecError):
        return None
