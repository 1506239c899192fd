"""The part of the port to the ledger that the sweep reads: what waits for a bell, a page at a time, however much that is."""

from datetime import datetime, timedelta
from typing import Protocol

from msgspec import Struct

from agent.domain.chain import TaskKind
from agent.domain.ids import JobId, KeyId
from agent.domain.jobs import Job, JobState
from agent.ports.ledger_outbox import DeliveryId


class Waiting(Struct, frozen=True):
    """A job that is to be rung for: no more of it than that takes."""

    id: JobId
    kind: TaskKind
    state: JobState


class WaitingPage(Struct, frozen=True):
    """Jobs that wait for a bell now, oldest first. `next`: where the page after it begins; None on the last."""

    jobs: tuple[Waiting, ...]
    next: int | None


class Unsent(Struct, frozen=True):
    """A place among the deliveries that are still to be sent: by target, then by when, then by number."""

    target: KeyId
    next_try_at: datetime
    seq: int


class UnsentPage(Struct, frozen=True):
    """Deliveries to be sent now, one target after the other. `next`: where the page after it begins; None on the last."""

    deliveries: tuple[DeliveryId, ...]
    next: Unsent | None


class Unrung(Struct, frozen=True):
    """What the sweep has to take over, and what is to be sent."""

    orphans: tuple[Job, ...]  # RUNNING under a lease that ran out
    deliveries: tuple[DeliveryId, ...]  # pending and due


class BellsLedger(Protocol):
    """What should be ringing. A page reads no more than `limit` rows of each state, whatever of it is due."""

    def unrung(self, now: datetime, limit: int) -> Unrung:
        """What should be ringing now, soonest first, at most `limit` of each: jobs RUNNING whose lease ran out, deliveries that
        are due and not leased. A target that does not answer is rung for once, when its rest is over.
        """
        ...

    def waiting(self, now: datetime, *, after: int = 0, limit: int) -> WaitingPage:
        """The jobs RECEIVED, HELD or QUEUED, and due (none that waits only for its hand-off), of the next `limit` that are in
        these states at all.
        """
        ...

    def is_placing(self, now: datetime, within: timedelta) -> bool:
        """Whether a job that is to be placed here came to RECEIVED less than so long ago, or after now by another clock."""
        ...

    def unsent(self, now: datetime, *, after: Unsent | None = None, limit: int) -> UnsentPage:
        """The deliveries that are due, not leased, and to a target that answers, of the next `limit` that are pending."""
        ...
