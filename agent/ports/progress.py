"""The port to what running tasks are doing: told by the worker that has one in hand, read by who looks on. It may be lost.

Nothing of it is recorded: it lies in memory, is gone with the task, and a worker that died is told from one that works by `at`.
"""

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from agent.domain.ids import JobId
from agent.domain.jobs import Job


class Progress(Struct, frozen=True, kw_only=True):
    """What a task is doing. `step`: part of the phase, as the role of an image that is fetched, or the name of a run.

    `done` of `total` bytes, where both are known; `limit_s`: how long the step may take. `since`: of the step. `at`: the
    worker's last sign of life.
    """

    job: JobId
    attempt: int
    phase: str
    step: str | None
    since: datetime
    done: int | None
    total: int | None
    limit_s: int | None
    at: datetime


class Meter(Protocol):
    """Where one task in hand is told of. Nothing it does can fail, or hold the task up."""

    def begin(
        self,
        phase: str,
        step: str | None = None,
        *,
        total: int | None = None,
        limit_s: int | None = None,
        since: datetime | None = None,
    ) -> None:
        """Another phase or step begins, or began at `since` under another worker; `total` bytes are to be moved in it."""
        ...

    def grows(self, path: Path) -> None:
        """What the step has done is as much as lies at `path`."""
        ...

    def moved(self, size_bytes: int) -> None:
        """So many bytes more."""
        ...


class ProgressBoard(Protocol):
    """All tasks in hand on this host."""

    def telling(self, job: Job) -> AbstractContextManager[Meter]:
        """The meter of a task while this worker has it in hand; what it told is gone afterwards."""
        ...

    def read(self, jobs: Collection[JobId] | None = None) -> tuple[Progress, ...]:
        """What was told last of these jobs, or of all."""
        ...


class NoMeter:
    """Tells nobody."""

    def begin(
        self,
        phase: str,
        step: str | None = None,
        *,
        total: int | None = None,
        limit_s: int | None = None,
        since: datetime | None = None,
    ) -> None:
        """Nothing."""

    def grows(self, path: Path) -> None:
        """Nothing."""

    def moved(self, size_bytes: int) -> None:
        """Nothing."""


class NoProgress:
    """A board that nobody reads."""

    @contextmanager
    def telling(self, job: Job) -> Iterator[Meter]:
        """A meter that tells nobody."""
        yield NoMeter()

    def read(self, jobs: Collection[JobId] | None = None) -> tuple[Progress, ...]:
        """Nothing."""
        return ()
