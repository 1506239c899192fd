"""How long this host keeps what is over: the one rule, and what it counts. Nothing that is open is ever over.

| what | goes when |
|---|---|
| a log of a job | the job has ended, and that is `log_age` ago; below the low mark at once |
| the body of a delivery | it was acknowledged, that is `log_age` ago (below the low mark: at once), and its order expired: |
| | until then whoever lost it may ask for it again |
| an order with its receipts, jobs, deliveries, logs | it expired by more than the clocks' skew, and `order_age` ago: |
| | every job of it had ended, and every delivery was acknowledged |

What stays of an order are its events, and its id, digest and `expires`: none of it runs again, whatever a clock says.
"""

from collections.abc import Collection
from datetime import datetime, timedelta

from msgspec import Struct

from agent.domain.jobs import Job


class Retention(Struct, frozen=True, kw_only=True):
    """The moments before which things must have ended to be over now."""

    logs_before: datetime
    bodies_before: datetime
    orders_before: datetime
    expired_before: datetime  # `expires` of an order: now, less the skew


class Garbage(Struct, frozen=True, kw_only=True):
    """How much of the ledger went, or would."""

    logs: int = 0
    log_bytes: int = 0
    bodies: int = 0
    body_bytes: int = 0
    orders: int = 0

    def __add__(self, other: "Garbage") -> "Garbage":
        return Garbage(
            logs=self.logs + other.logs,
            log_bytes=self.log_bytes + other.log_bytes,
            bodies=self.bodies + other.bodies,
            body_bytes=self.body_bytes + other.body_bytes,
            orders=self.orders + other.orders,
        )


class LedgerSizes(Struct, frozen=True, kw_only=True):
    """What the ledger's file holds, in bytes of content; the rest of the file are rows' small columns and indices.

    `free_bytes`: pages that hold nothing. `can_shrink`: whether those go back to the file system step by step.
    """

    file_bytes: int
    free_bytes: int
    can_shrink: bool
    orders: int
    order_bytes: int  # envelopes of orders and receipts
    logs: int
    log_bytes: int
    bodies: int
    body_bytes: int
    pending_bytes: int  # of them, of deliveries that are not acknowledged
    events: int
    event_bytes: int  # the audit log: it only grows


def retention(now: datetime, *, skew: timedelta, log_age: timedelta, order_age: timedelta) -> Retention:
    """What is over by age."""
    return Retention(
        logs_before=now - log_age,
        bodies_before=now - log_age,
        orders_before=now - order_age,
        expired_before=now - skew,
    )


def under_pressure(by_age: Retention, now: datetime) -> Retention:
    """What goes below the low mark: logs and bodies of whatever ended, of any age. An order keeps its whole time."""
    return Retention(
        logs_before=now,
        bodies_before=now,
        orders_before=by_age.orders_before,
        expired_before=by_age.expired_before,
    )


def is_over(
    expires: datetime,
    jobs: Collection[Job],
    acknowledged_at: Collection[datetime | None],
    told: Retention,
) -> bool:
    """Whether an order with these jobs and deliveries may go. `acknowledged_at`: None for a pending or dead delivery;
    one that a person dropped is not among them."""
    ended = [job.changed_at if job.is_final else None for job in jobs] + list(acknowledged_at)
    return expires < told.expired_before and all(
        moment is not None and moment < told.orders_before for moment in ended
    )
