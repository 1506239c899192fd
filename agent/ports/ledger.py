"""The port to the ledger: the truth about orders, jobs, receipts, deliveries and used nonces.

Every method is one transaction, durable when it returns. Every change of a job is a compare-and-set on (state, attempt, claim)
against `domain.jobs.TRANSITIONS`; who lost the race gets LostRace and stops. Raises everywhere: LedgerUnavailable.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NewType, Protocol

from msgspec import Struct

from agent.domain.chain import TaskKind
from agent.domain.ids import Digest, JobId, KeyId, OrderId
from agent.domain.jobs import Job, JobEvent, JobState
from agent.domain.orders import SignedOrder
from agent.domain.receipts import SignedReceipt
from agent.ports.ledger_attempts import AttemptsLedger
from agent.ports.ledger_images import ImagesLedger

ATTEMPT_FAILED = (
    "attempt.failed"  # the event of an attempt that ended badly; its values tell `attempt` and `code`
)

DeliveryId = NewType("DeliveryId", str)  # "<job id>.<kind>.<n>"


class DeliveryKind(StrEnum):
    """What must reach the outside."""

    HANDOFF = "handoff"
    REPORT = "report"
    RESULT = "result"


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    ACKNOWLEDGED = "acknowledged"
    DEAD = "dead"  # refused for good, or expired: a person decides


class NewDelivery(Struct, frozen=True):
    """A delivery demanded by a change. `expires_at`: a hand-off ends with its order; reports and results never."""

    kind: DeliveryKind
    target: KeyId
    body: bytes
    expires_at: datetime | None = None


class Delivery(Struct, frozen=True, kw_only=True):
    """A delivery of the outbox. `n` counts reports of one (order, position) from 1 and never changes, nor does `body`."""

    id: DeliveryId
    job: JobId
    order: Digest
    order_id: OrderId
    position: int
    kind: DeliveryKind
    n: int
    target: KeyId
    body: bytes
    state: DeliveryState
    attempts: int
    next_try_at: datetime
    created_at: datetime
    expires_at: datetime | None = None
    acknowledged_at: datetime | None = None
    lease_until: datetime | None = None
    last_error: str | None = None


class Arrival(Struct, frozen=True, kw_only=True):
    """A verified order as it reached this host: fresh from its orchestrator (no receipts) or handed over by a peer.

    `sender` is who sent it; `received_kind` the kind of the task at its position.
    """

    order: SignedOrder
    receipts: tuple[SignedReceipt, ...]
    kind: TaskKind
    sender: KeyId

    @property
    def position(self) -> int:
        return len(self.receipts)

    @property
    def last_receipt(self) -> Digest | None:
        return self.receipts[-1].digest if self.receipts else None


class Admission(Struct, frozen=True):
    """The answer to an arrival: the job, and whether it was there before."""

    job: Job
    is_repeat: bool


class OrderRecord(Struct, frozen=True):
    """An order this host knows."""

    digest: Digest
    id: OrderId
    payload_type: str
    signer: KeyId
    envelope: bytes
    expires: datetime
    received_at: datetime
    sender: KeyId


class Successor(Struct, frozen=True):
    """The next job of the same order on this same host, queued in the transaction of the receipt before it."""

    position: int
    kind: TaskKind


class JobQuery(Struct, frozen=True, kw_only=True):
    """A filter for listings, newest first. `after` is the id of the last job of the page before."""

    states: frozenset[JobState] = frozenset()
    order_id: OrderId | None = None
    signer: KeyId | None = None
    after: JobId | None = None
    limit: int = 100


class EventRecord(Struct, frozen=True):
    """One line of the log of events: what happened to which order, with plain values. Never payloads, never keys."""

    seq: int
    at: datetime
    name: str
    order_id: OrderId | None
    position: int | None
    values: dict[str, str | int | float | None]


class Ledger(AttemptsLedger, ImagesLedger, Protocol):
    """The truth."""

    # ---- intake

    def admit(self, arrival: Arrival, now: datetime, *, max_attempts: int, queue_limit: int) -> Admission:
        """Record the order, its receipts and a RECEIVED job, or find the same one recorded.

        `queue_limit` counts jobs that wait here: RECEIVED, HELD, QUEUED; a repeat is answered whatever it says.
        Raises: OrderConflict (same id, other digest), HandoffConflict (same place, other last receipt; another receipt recorded
        for an earlier place; or the receipt of this very place recorded, so that it would run twice), QueueFull.
        """
        ...

    def digest_of_order(self, order_id: OrderId) -> Digest | None:
        """The digest recorded under this order id."""
        ...

    def recorded_last_receipt(self, order: Digest, position: int) -> tuple[JobId, Digest | None] | None:
        """The job recorded for this place and the last receipt it arrived with, or None when there is no job."""
        ...

    def remember_nonce(self, keyid: KeyId, nonce: str, keep_until: datetime, now: datetime) -> bool:
        """Whether this (keyid, nonce) is new; from then until `keep_until` it is not."""
        ...

    # ---- reading

    def job(self, job: JobId) -> Job:
        """The job as it is now. Raises: NotFound."""
        ...

    def jobs(self, query: JobQuery) -> tuple[Job, ...]:
        """A page of jobs. Raises: NotFound when `after` names no job."""
        ...

    def order(self, order_id: OrderId) -> OrderRecord:
        """The order. Raises: NotFound."""
        ...

    def receipts(self, order: Digest) -> tuple[SignedReceipt, ...]:
        """Every receipt recorded for this order, by position: those that came with it and our own, failed ones too."""
        ...

    def deliveries(
        self, *, order_id: OrderId | None = None, state: DeliveryState | None = None
    ) -> tuple[Delivery, ...]:
        """Deliveries by order or state, oldest first."""
        ...

    def events(
        self, *, order_id: OrderId | None = None, after: int = 0, limit: int = 500
    ) -> tuple[EventRecord, ...]:
        """Events after sequence number `after`, oldest first."""
        ...

    # ---- moving

    def move(
        self,
        job: Job,
        event: JobEvent,
        now: datetime,
        *,
        reason: str | None = None,
        not_before: datetime | None = None,
        next_agent: KeyId | None = None,
        receipt: SignedReceipt | None = None,
        score: str | None = None,
        deliveries: Sequence[NewDelivery] = (),
        successor: Successor | None = None,
    ) -> Job:
        """Move the job from what the caller saw (state, attempt, claim, next agent), with everything that demands, at once.

        Records the receipt, the deliveries, the successor job and an event `job.<state>`. `reason` and `not_before` are set as
        given; `next_agent` and `score` stay when not given. An ATTEST with nothing pending settles at once. START and SETTLE
        are not the caller's. Receipts are unique by order and position: another one than ours may have come with a later
        hand-off; an ATTEST then raises HandoffConflict, a FAIL fails without its receipt and leaves an event `receipt.dropped`.
        Raises: LostRace, IllegalMove, HandoffConflict.
        """
        ...

    def start(
        self,
        job: Job,
        now: datetime,
        *,
        worker: str,
        lease_until: datetime,
        deliveries: Sequence[NewDelivery] = (),
    ) -> Job:
        """QUEUED -> RUNNING for this worker, one attempt and one claim more.

        Raises: LostRace when it is not queued as seen, or rests.
        """
        ...

    def renew(self, worker: str, lease_until: datetime) -> None:
        """Lengthen the lease of everything this worker runs."""
        ...

    def redirect(self, job: Job, now: datetime, *, next_agent: KeyId, delivery: NewDelivery) -> Job:
        """Record on a RECEIVED job that another host goes on, with the hand-off it demands. Raises: LostRace when recorded."""
        ...

    def record_event(
        self,
        name: str,
        now: datetime,
        *,
        order_id: OrderId | None = None,
        position: int | None = None,
        values: dict[str, str | int | float | None] | None = None,
    ) -> None:
        """Append one line to the log of events."""
        ...

    # ---- logs of jobs

    def keep_log(self, job: Job, run: str, log: bytes) -> None:
        """Keep a run's capped output for the operator, by (job, attempt, run): sealed bytes, for a ledger lies on a disk."""
        ...

    def logs(self, order_id: OrderId) -> tuple[tuple[JobId, int, str, bytes], ...]:
        """(job, attempt, run, sealed output) of an order's runs on this host, oldest first."""
        ...

    # ---- attempts, as the log of events tells them

    def codes_before(self, job: Job) -> tuple[str, ...]:
        """The error codes by which the attempts before `job.attempt` ended, one each, oldest first.

        From the events `attempt.failed`, which no retention takes away. An attempt that was lost with its worker has none.
        """
        ...

    # ---- outbox

    def lease_delivery(self, delivery: DeliveryId, now: datetime, lease_until: datetime) -> Delivery | None:
        """The delivery for this caller alone until then; None when it is not pending, not due, or leased by another."""
        ...

    def acknowledge(self, delivery: DeliveryId, now: datetime) -> Job:
        """It arrived. The job settles with its last pending delivery of any kind: ATTESTED -> DONE, and RECEIVED -> DONE when
        another host goes on; a FAILED, CANCELLED or EXPIRED one stays. Acknowledged already is fine. Raises: NotFound.
        """
        ...

    def postpone(self, delivery: DeliveryId, next_try_at: datetime, error: str) -> None:
        """It failed for now: one attempt more, due again then. Nothing when it is not pending."""
        ...

    def bury(
        self, delivery: DeliveryId, now: datetime, error: str, *, deliveries: Sequence[NewDelivery] = ()
    ) -> None:
        """It failed for good, and others are told by the given deliveries. Nothing when it is not pending.

        A dead delivery holds no job open; the given ones do. A RECEIVED job whose hand-off dies FAILs with `error` as reason,
        unless a new hand-off is among `deliveries`: then its target is the next agent. An ATTESTED job did its own task well
        and stays. Raises: NotFound.
        """
        ...

    # ---- the sweep

    def unrung(self, now: datetime, limit: int) -> "Unrung":
        """What should be ringing now, oldest first, at most `limit` of each: jobs RECEIVED or QUEUED and due (none that waits
        only for its hand-off), jobs HELD, jobs RUNNING whose lease ran out, deliveries that are due and not leased.
        """
        ...

    def correct_clock(self, now: datetime, *, lease: timedelta, rest: timedelta) -> int:
        """End every lease and rest that lies further ahead than any is ever given: the clock was set back. How many.

        A parked job rests; a running one has a lease.
        """
        ...

    def forget_nonces(self, now: datetime) -> int:
        """Drop nonces whose time is over; how many."""
        ...

    def counts(self) -> dict[JobState, int]:
        """Jobs by state, every state named."""
        ...

    def check(self) -> None:
        """Prove that the ledger can be written. Raises: LedgerUnavailable."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class Unrung(Struct, frozen=True):
    """What the sweep has to ring or take over."""

    jobs: tuple[Job, ...]  # RECEIVED or QUEUED, due
    held: tuple[Job, ...]  # each looks again whether it was approved, denied or ran out of time
    orphans: tuple[Job, ...]  # RUNNING under a lease that ran out
    deliveries: tuple[DeliveryId, ...]  # pending and due
