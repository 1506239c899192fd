"""The port to the ledger: the truth about orders, jobs, receipts, deliveries and used nonces.

Every method is one transaction, durable when it returns. Every change of a job is a compare-and-set on (state, attempt, claim)
against `domain.jobs.TRANSITIONS`; who lost the race gets LostRace and stops. Raises everywhere: LedgerUnavailable.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Protocol

from msgspec import Struct

from agent.domain.audit import NewEvent
from agent.domain.chain import TaskKind
from agent.domain.ids import Digest, JobId, KeyId, OrderId
from agent.domain.jobs import Job, JobEvent, JobState
from agent.domain.nonces import Nonce
from agent.domain.orders import SignedOrder
from agent.domain.receipts import SignedReceipt
from agent.domain.traces import TraceId
from agent.ports.ledger_attempts import AttemptsLedger
from agent.ports.ledger_audit import AuditLedger
from agent.ports.ledger_bells import BellsLedger
from agent.ports.ledger_cancellations import CancellationsLedger
from agent.ports.ledger_images import ImagesLedger
from agent.ports.ledger_keeping import KeepingLedger
from agent.ports.ledger_live import LiveLedger
from agent.ports.ledger_measures import MeasuresLedger
from agent.ports.ledger_outbox import (
    Delivery,
    DeliveryHead,
    DeliveryId,
    DeliveryKind,
    DeliveryState,
    NewDelivery,
    Outbox,
)
from agent.ports.ledger_page import PageLedger
from agent.ports.ledger_restores import RestoresLedger

ATTEMPT_FAILED = (
    "attempt.failed"  # the event of an attempt that ended badly; its values tell `attempt` and `code`
)

__all__ = [
    "ATTEMPT_FAILED",
    "Admission",
    "Arrival",
    "Candidate",
    "Delivery",
    "DeliveryHead",
    "DeliveryId",
    "DeliveryKind",
    "DeliveryState",
    "EventRecord",
    "JobQuery",
    "Ledger",
    "NewDelivery",
    "OrderRecord",
    "Outbox",
    "Successor",
]


class Arrival(Struct, frozen=True, kw_only=True):
    """A verified order as it reached this host: fresh from its orchestrator (no receipts) or handed over by a peer.

    `sender` is who sent it; `kind` that of the task at its position. `told`: so many reports on this place came from here
    already, says the orchestrator, and this ledger knows nothing of them: the next one is counted on from there. `trace`: what
    was given with it, None where that is the order's own; the first arrival's counts. `nonce`: of the request that brought it,
    where that is not kept yet. `is_placed`: storage just named this host for the task, and nobody need be asked about it: its
    job is QUEUED in the same transaction.
    """

    order: SignedOrder
    receipts: tuple[SignedReceipt, ...]
    kind: TaskKind
    sender: KeyId
    told: int = 0
    trace: TraceId | None = None
    nonce: Nonce | None = None
    is_placed: bool = False

    @property
    def position(self) -> int:
        return len(self.receipts)

    @property
    def last_receipt(self) -> Digest | None:
        return self.receipts[-1].digest if self.receipts else None


class Admission(Struct, frozen=True):
    """The answer to an arrival: the job, and whether it was there before.

    `is_cancelled`: somebody cancelled the order before it came. `keeps_nonce`: that of the arrival is kept from now on.
    """

    job: Job
    is_repeat: bool
    is_cancelled: bool = False
    keeps_nonce: bool = False


class Candidate(Struct, frozen=True):
    """An arrival that passed every check and waits to be recorded, with the limits that `Ledger.admit` holds it to."""

    arrival: Arrival
    max_attempts: int
    queue_limit: int


class OrderRecord(Struct, frozen=True):
    """An order this host knows. `trace`: as of `Arrival`."""

    digest: Digest
    id: OrderId
    payload_type: str
    signer: KeyId
    envelope: bytes
    expires: datetime
    received_at: datetime
    sender: KeyId
    trace: TraceId | None = None


class Successor(Struct, frozen=True):
    """The next job of the same order on this same host, queued in the transaction of the receipt before it."""

    position: int
    kind: TaskKind


class CancelStep(Struct, frozen=True, kw_only=True):
    """What a cancellation does to one job of its order, as the caller saw it.

    `is_ended`: it moves to CANCELLED, else it stays as it is. `withdrawn`: hand-offs, pending or dead, that nobody is to send
    any more.
    """

    job: Job
    is_ended: bool
    withdrawn: tuple[DeliveryId, ...] = ()
    deliveries: tuple[NewDelivery, ...] = ()


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
    dataset: str | None = None
    digest: Digest | None = None  # over this line and all before it; None in what was written by no ledger


class Ledger(
    AttemptsLedger,
    AuditLedger,
    BellsLedger,
    CancellationsLedger,
    ImagesLedger,
    KeepingLedger,
    LiveLedger,
    MeasuresLedger,
    Outbox,
    PageLedger,
    RestoresLedger,
    Protocol,
):
    """The truth."""

    # ---- intake

    def admit(self, arrival: Arrival, now: datetime, *, max_attempts: int, queue_limit: int) -> Admission:
        """Record the order, its receipts and a RECEIVED job, or find the same one recorded.

        `queue_limit` counts jobs that wait here: RECEIVED, HELD, QUEUED; a repeat is answered whatever it says.
        Raises: OrderConflict (same id, other digest), HandoffConflict (same place, other last receipt; another receipt recorded
        for an earlier place; or the receipt of this very place recorded, so that it would run twice), QueueFull; OrderExpired
        for one that was here and was forgotten; ReplayedRequest when the arrival's nonce is not new. Then nothing is kept, the
        nonce neither.
        """
        ...

    def admit_all(self, candidates: Sequence[Candidate], now: datetime) -> Sequence[Admission | Exception]:
        """What `admit` says of each of these, in their order, all of them in one transaction; what it would raise is given in
        its place, and undoes nothing of the others."""
        ...

    def digest_of_order(self, order_id: OrderId) -> Digest | None:
        """The digest recorded under this order id, also after the order itself was forgotten."""
        ...

    def recorded_last_receipt(self, order: Digest, position: int) -> tuple[JobId, Digest | None] | None:
        """The job recorded for this place and the last receipt it arrived with, or None when there is no job."""
        ...

    def remember_nonce(self, keyid: KeyId, nonce: str, keep_until: datetime, now: datetime) -> bool:
        """Whether this (keyid, nonce) is new; from then until `keep_until` it is not, and with that `keep_until` never."""
        ...

    def knows_nonce(self, keyid: KeyId, nonce: str, now: datetime) -> bool:
        """Whether it is kept still: what `remember_nonce` would refuse whatever its `keep_until`."""
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
        told: Sequence[NewEvent] = (),
        phases: Mapping[str, float] | None = None,
    ) -> Job:
        """Move the job from what the caller saw (state, attempt, claim, next agent), with everything that demands, at once.

        Records what is `told`, the receipt, the deliveries, the successor job and an event `job.<state>`; for an attempt that
        ends, the seconds of its `phases` in the order they ran, in the place of those recorded before. `reason` and
        `not_before` are set as given; `next_agent` and `score` stay when not given. An ATTEST or a RECALL with nothing pending
        settles at once. START and SETTLE are not the caller's. Receipts are unique by order and position: another one than
        ours may have come with a later hand-off; an ATTEST then raises HandoffConflict, a FAIL fails without its receipt and
        leaves an event `receipt.dropped`.
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

        Raises: LostRace when it is not queued as seen, or rests, or no task may start on this host now.
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
        dataset: str | None = None,
        values: dict[str, str | int | float | None] | None = None,
    ) -> None:
        """Append one line to the log of events. `dataset`: the id by which `audit query` finds it."""
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

    # ---- the sweep

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
