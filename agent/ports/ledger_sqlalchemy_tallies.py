"""What is counted, on the caller's open writing transaction: tallies that grow, and the phases of an attempt that ends."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, text

from agent.domain.jobs import Job, JobState
from agent.domain.measures import PHASES_MOST, Tally, added_up, observed_phases
from agent.errors import QueueFull
from agent.ports.ledger_schema import job_counts, phases, tallies

WAITING: Final = (JobState.RECEIVED, JobState.HELD, JobState.QUEUED)  # what the queue's limit counts

_GROW: Final = text(
    "INSERT INTO tallies (name, labels, value) VALUES (:name, :labels, :value)"
    " ON CONFLICT (name, labels) DO UPDATE SET value = tallies.value + excluded.value"
)


def count(tx: Connection, grown: Sequence[Tally]) -> None:
    """Let these numbers grow."""
    rows = [
        {"name": one.name, "labels": msgspec.json.encode(one.labels).decode(), "value": one.value}
        for one in added_up(grown)
        if one.value > 0
    ]
    if rows:
        tx.execute(_GROW, rows)


def put_phases(tx: Connection, job: Job, seconds: Mapping[str, float]) -> None:
    """How long the phases of the job's attempt took, which ends in this transaction."""
    told = dict(list(seconds.items())[:PHASES_MOST])
    rows = [
        {"job_id": job.id, "attempt": job.attempt, "n": n, "phase": phase, "seconds": took}
        for n, (phase, took) in enumerate(told.items())
    ]
    if rows:
        tx.execute(delete(phases).where(phases.c.job_id == job.id, phases.c.attempt == job.attempt))
        tx.execute(insert(phases), rows)
        count(tx, observed_phases(job.kind, told))


def read_tallies(tx: Connection) -> tuple[Tally, ...]:
    """Every number, by name and labels."""
    rows = tx.execute(select(tallies).order_by(tallies.c.name, tallies.c.labels)).mappings()
    return tuple(
        Tally(row["name"], msgspec.json.decode(row["labels"], type=tuple[str, ...]), row["value"])
        for row in rows
    )


def require_room(tx: Connection, queue_limit: int) -> None:
    """Raises: QueueFull when that many jobs wait, by the sums that triggers keep."""
    waiting = select(func.sum(job_counts.c.count_)).where(job_counts.c.state.in_(WAITING))
    if (tx.execute(waiting).scalar() or 0) >= queue_limit:
        raise QueueFull(f"{queue_limit} jobs wait on this host already")
