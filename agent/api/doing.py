"""What a running task is doing, as it is told: only of tasks that run, and marked when its worker gives no sign of life."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from msgspec import Struct

from agent.domain.ids import JobId
from agent.domain.jobs import Job, JobState
from agent.ports.progress import Progress, ProgressBoard

STALE: Final = timedelta(seconds=10)  # a worker gives a sign of life every second


class ProgressView(Struct, frozen=True, kw_only=True):
    """What a running task is doing. `done` of `total` bytes where they are known; `limit_s`: the most that the step may take.

    `since`: of the step. `is_stale`: its worker gives no sign of life since `at`; what stands here is what it told last.
    """

    phase: str
    step: str | None
    since: datetime
    done: int | None
    total: int | None
    limit_s: int | None
    at: datetime
    is_stale: bool


def view_progress(told: Progress, now: datetime) -> ProgressView:
    """The progress as it is told at this moment."""
    return ProgressView(
        phase=told.phase,
        step=told.step,
        since=told.since,
        done=told.done,
        total=told.total,
        limit_s=told.limit_s,
        at=told.at,
        is_stale=abs(now - told.at) > STALE,
    )


def doing(jobs: Iterable[Job], board: ProgressBoard, now: datetime) -> dict[JobId, ProgressView]:
    """What those of these jobs are doing that run, in the attempt that runs."""
    running = {job.id: job for job in jobs if job.state is JobState.RUNNING}
    if not running:
        return {}
    told = board.read(running.keys())
    return {one.job: view_progress(one, now) for one in told if running[one.job].attempt == one.attempt}
