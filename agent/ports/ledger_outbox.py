"""The ledger's outbox: what must reach others, where it stands, and who of them does not answer just now.

A part of the port `ledger.py`, which names all of this again: every method is one transaction. Raises everywhere:
LedgerUnavailable.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from enum import StrEnum
from typing import NewType, Protocol

from msgspec import Struct

from agent.domain.ids import Digest, JobId, KeyId, OrderId
from agent.domain.jobs import Job

DeliveryId = NewType("DeliveryId", str)  # "<job id>.<kind>.<n>"


class DeliveryKind(StrEnum):
    """What must reach the outside."""

    HANDOFF = "handoff"
    REPORT = "report"
    RESULT = "result"
    CANCELLATION = "cancellation"  # as its orchestrator signed it, for the agent that went on


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    ACKNOWLEDGED = "acknowledged"
    DEAD = "dead"  # refused for good, or expired: a person decides
    WITHDRAWN = "withdrawn"  # the order was cancelled before it arrived, for all this host knows
    DROPPED = "dropped"  # a person decided: nobody is told any more


class NewDelivery(Struct, frozen=True):
    """A delivery demanded by a change. `expires_at`: a hand-off ends with its order; reports and results never."""

    kind: DeliveryKind
    target: KeyId
    body: bytes
    expires_at: datetime | None = None


class DeliveryHead(Struct, frozen=True, kw_only=True):
    """A delivery of the outbox without what it carries.

    `n` counts the deliveries of one kind at one (order, position) from 1 and never changes. `attempts`: how often it was tried
    in vain.
    """

    id: DeliveryId
    job: JobId
    order: Digest
    order_id: OrderId
    position: int
    kind: DeliveryKind
    n: int
    target: KeyId
    state: DeliveryState
    attempts: int
    next_try_at: datetime
    created_at: datetime
    expires_at: datetime | None = None
    acknowledged_at: datetime | None = None
    lease_until: datetime | None = None
    last_error: str | None = None


class Delivery(DeliveryHead, frozen=True, kw_only=True):
    """A delivery of the outbox. `body` never changes."""

    body: bytes


class Outbox(Protocol):
    """What must reach others."""

    def lease_delivery(self, delivery: DeliveryId, now: datetime, lease_until: datetime) -> Delivery | None:
        """The delivery for this caller alone until then; None when it is not pending, not due, leased by another, or its target
        rests. A target in trouble is the caller's alone until then too: one call at a time finds out whether it is back.
        """
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

    # ---- looking

    def delivery(self, delivery: DeliveryId) -> Delivery:
        """The delivery as it is now. Raises: NotFound."""
        ...

    def outbox(self, states: Collection[DeliveryState], limit: int) -> tuple[DeliveryHead, ...]:
        """Deliveries in these states, oldest first."""
        ...

    def outbox_counts(self) -> dict[DeliveryState, int]:
        """How many are PENDING, and how many DEAD."""
        ...

    # ---- what a person decides

    def retry_delivery(
        self,
        seen: DeliveryHead,
        now: datetime,
        *,
        uid: int | None,
        deliveries: Sequence[NewDelivery] = (),
    ) -> None:
        """A PENDING or DEAD delivery is due at once, with an event `delivery.retried`; others are told by the given ones.

        No job moves: a dead delivery held none open. Raises: LostRace when it is not in the state that the caller saw.
        """
        ...

    def drop_delivery(
        self,
        seen: DeliveryHead,
        now: datetime,
        *,
        uid: int | None,
        reason: str,
        deliveries: Sequence[NewDelivery] = (),
    ) -> Job:
        """A PENDING or DEAD delivery -> DROPPED, with an event `delivery.dropped`; its job after it.

        A RECEIVED job whose pending hand-off is dropped FAILs with `reason`; any other settles when nothing else is pending.
        Raises: LostRace when it is not in the state that the caller saw, or somebody is sending it just now.
        """
        ...

    def send_again(self, delivery: DeliveryId, now: datetime, why: str) -> bool:
        """ACKNOWLEDGED -> PENDING, due at once, with an event `delivery.sent_again`: its receiver lost it. Whether it was so.

        No job moves. Raises: NotFound.
        """
        ...

    def handed_over(self, since: datetime, now: datetime, limit: int) -> tuple[DeliveryHead, ...]:
        """Hand-offs that were acknowledged since then and whose order has not ended, newest first."""
        ...

    def count_on(self, job: Job, told: int, now: datetime) -> None:
        """So many reports on the job's place reached its orchestrator, whatever this ledger knows of them: the next one has the
        next number. Recorded as one acknowledged report without a body. Nothing when it counted as far already.
        """
        ...

    # ---- targets that do not answer

    def target_failures(self, target: KeyId) -> int:
        """How often in a row this target could not be reached; 0 when it answered last."""
        ...

    def rest_target(self, target: KeyId, failures: int, until: datetime) -> None:
        """Nothing is sent there until then."""
        ...

    def target_is_back(self, target: KeyId, now: datetime, limit: int) -> tuple[DeliveryId, ...]:
        """It answered: nothing rests because of it any more. At most so many deliveries to it that are due, if it was away."""
        ...
