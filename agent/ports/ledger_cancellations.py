"""The part of the port to the ledger that knows of orders which end because somebody said so."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from agent.domain.cancellations import KeptCancellation
from agent.domain.ids import Digest

if TYPE_CHECKING:  # values of the port, which stands on this part of it
    from agent.ports.ledger import CancelStep, OrderRecord


class CancellationsLedger(Protocol):
    """Orders that end here, also when they come later."""

    def order_of_digest(self, order: Digest) -> "OrderRecord | None":
        """The order with this digest, when it reached this host."""
        ...

    def cancellations(self, order: Digest) -> tuple[KeptCancellation, ...]:
        """What was said about ending this order, by whomever: who reads it judges whose word counts."""
        ...

    def cancel(
        self,
        kept: KeptCancellation,
        steps: "Sequence[CancelStep]",
        now: datetime,
        *,
        most_without_order: int,
    ) -> bool:
        """Keep the cancellation and do what it does to the order's jobs, in one transaction; whether it was new.

        One source has one cancellation of an order: the first stays, and `keep_until` only ever grows. A new one leaves an
        event `order.cancelled`. Raises: LostRace when a job or a delivery is not as seen, or the steps leave out a job that
        would still go on here (the operator's leave what was handed over); QueueFull when its source has so many of orders
        that never came.
        """
        ...

    def forget_cancellations(self, now: datetime) -> int:
        """Drop those whose time is over; how many."""
        ...
