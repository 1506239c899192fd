"""Where the time of tasks went: what `orders --timings` tells, phase by phase, as their receipts have it."""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from agent.api.views import JobView, OrderView
from agent.cli.out import short, table
from agent.domain.chain import TaskKind
from agent.domain.ids import KeyId, OrderId


class Timings(Struct, frozen=True, kw_only=True):
    """One task. `took_s`: of its attempt, without the phase `wait`; `phases`: seconds by name, in the order they ran."""

    order: OrderId
    position: int
    kind: TaskKind
    agent: KeyId | None
    attempt: int | None
    took_s: float | None
    phases: dict[str, float]


def timings_of_chain(view: OrderView) -> tuple[Timings, ...]:
    """Every task of the order whose receipt this host has."""
    return tuple(
        Timings(
            order=view.id,
            position=task.position,
            kind=task.kind,
            agent=task.agent,
            attempt=task.attempt,
            took_s=task.wall_s,
            phases=task.phases,
        )
        for task in view.chain
        if task.phases
    )


def timings_of_jobs(jobs: Sequence[JobView]) -> tuple[Timings, ...]:
    """Every job that ran on this host."""
    return tuple(
        Timings(
            order=job.order,
            position=job.position,
            kind=job.kind,
            agent=None,
            attempt=job.attempt,
            took_s=round(sum(took for name, took in job.phases.items() if name != "wait"), 4),
            phases=job.phases,
        )
        for job in jobs
        if job.phases
    )


def timings_table(tasks: Sequence[Timings]) -> Any:
    """One line a task, one column a phase: milliseconds."""
    names = list(dict.fromkeys(name for task in tasks for name in task.phases))
    rows = [
        (
            *(task.order, task.position, task.kind, short(task.agent), task.attempt, _ms(task.took_s)),
            *(_ms(task.phases.get(name)) for name in names),
        )
        for task in tasks
    ]
    columns = ("order", "pos#", "task", "agent", "try#", "took#", *(f"{name}#" for name in names))
    return table(columns, rows, title="milliseconds; `took` is without `wait`")


def _ms(seconds: float | None) -> str | None:
    return (
        None if seconds is None else f"{seconds * 1000:.0f}" if seconds >= 0.01 else f"{seconds * 1000:.1f}"
    )
