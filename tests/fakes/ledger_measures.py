"""The part of the ledger in memory that measures."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from agent.domain.audit import CHECKPOINT
from agent.domain.ids import OrderId
from agent.domain.jobs import Job
from agent.domain.measures import PHASES_MOST, Gauges, PhaseTime, Tally, observed_phases
from agent.domain.traces import TraceId
from agent.ports.ledger import DeliveryState


class MemoryMeasures:
    """See `MeasuresLedger`. `_reading` gives the books."""

    _reading: Callable[[], AbstractContextManager[Any]]

    def given_trace(self, order_id: OrderId) -> TraceId | None:
        with self._reading() as books:
            record = books.orders.get(order_id)
        found: TraceId | None = None if record is None else record.trace
        return found

    def phase_times(self, order_id: OrderId) -> tuple[PhaseTime, ...]:
        with self._reading() as books:
            mine = [
                (books.jobs[job].position, attempt, job, took)
                for (job, attempt), took in books.phases.items()
                if books.jobs[job].order_id == order_id
            ]
        return tuple(
            PhaseTime(job=job, attempt=attempt, phase=phase, seconds=seconds)
            for _, attempt, job, took in sorted(mine, key=lambda one: one[:2])
            for phase, seconds in took.items()
        )

    def tallies(self) -> tuple[Tally, ...]:
        with self._reading() as books:
            return tuple(
                Tally(name, labels, value) for (name, labels), value in sorted(books.tallies.items())
            )

    def gauges(self) -> Gauges:
        with self._reading() as books:
            open_jobs = [job for job in books.jobs.values() if not job.is_final]
            waiting = {job.state: job.received_at for job in reversed(open_jobs)}
            pending = [d.created_at for d in books.deliveries.values() if d.state is DeliveryState.PENDING]
            signed = max((event.seq for event in books.events if event.name == CHECKPOINT), default=0)
            return Gauges(
                waiting=waiting,
                unsent=min(pending, default=None),
                resting=len(books.targets),
                lines=len(books.events),
                unsigned=next((event.at for event in books.events if event.seq > signed), None),
                ledger_bytes=0,
            )


def grow(books: Any, tallies: Iterable[Tally]) -> None:
    """Let these numbers grow."""
    for tally in tallies:
        if tally.value > 0:
            key = (tally.name, tally.labels)
            books.tallies[key] = books.tallies.get(key, 0.0) + tally.value


def put_phases(books: Any, job: Job, seconds: Mapping[str, float]) -> None:
    """The phases of the job's attempt, which ends."""
    if seconds:
        told = dict(list(seconds.items())[:PHASES_MOST])
        books.phases[job.id, job.attempt] = told
        grow(books, observed_phases(job.kind, told))
