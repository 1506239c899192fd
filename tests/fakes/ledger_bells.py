"""The fake ledger's part that the sweep reads."""

from datetime import datetime, timedelta
from typing import Any

from agent.domain.jobs import WAITING, Job, JobState
from agent.ports.ledger import DeliveryState
from agent.ports.ledger_bells import Unrung, Unsent, UnsentPage, Waiting, WaitingPage
from tests.fakes.ledger_outbox import is_due, send_by


class MemoryBells:
    """See `agent.ports.ledger_bells.BellsLedger`."""

    _reading: Any

    def unrung(self, now: datetime, limit: int) -> Unrung:
        with self._reading() as books:
            lapsed = [job for job in books.jobs.values() if job.lease_until and job.lease_until <= now]
            orphans = tuple(sorted(lapsed, key=lambda job: job.lease_until or now)[:limit])
            return Unrung(orphans=orphans, deliveries=send_by(books, now, limit))

    def waiting(self, now: datetime, *, after: int = 0, limit: int) -> WaitingPage:
        with self._reading() as books:
            numbered = list(enumerate(books.jobs.values(), 1))
        page = [(seq, job) for seq, job in numbered if seq > after and job.state in WAITING][:limit]
        due = tuple(Waiting(job.id, job.kind, job.state) for _, job in page if _is_due(job, now))
        return WaitingPage(due, page[-1][0] if len(page) == limit else None)

    def is_placing(self, now: datetime, within: timedelta) -> bool:
        with self._reading() as books:
            return any(
                job.state is JobState.RECEIVED
                and job.next_agent is None
                and abs(now - job.changed_at) < within
                for job in books.jobs.values()
            )

    def unsent(self, now: datetime, *, after: Unsent | None = None, limit: int) -> UnsentPage:
        with self._reading() as books:
            numbered = list(enumerate(books.deliveries.values(), 1))
            in_trouble = set(books.targets)
        pending = [
            ((each.target, each.next_try_at, seq), each)
            for seq, each in numbered
            if each.state is DeliveryState.PENDING
        ]
        first = None if after is None else (after.target, after.next_try_at, after.seq)
        page = sorted((one for one in pending if first is None or one[0] > first), key=lambda one: one[0])
        page = page[:limit]
        due = tuple(each.id for _, each in page if is_due(each, now) and each.target not in in_trouble)
        return UnsentPage(due, Unsent(*page[-1][0]) if len(page) == limit else None)


def _is_due(job: Job, now: datetime) -> bool:
    return job.next_agent is None and (job.not_before is None or job.not_before <= now)
