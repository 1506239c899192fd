"""The part of the port to the ledger that keeps the audit log, beside the lines that its own changes write."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from agent.domain.audit import NewEvent, SignHead

if TYPE_CHECKING:
    from agent.ports.ledger import EventRecord


class AuditLedger(Protocol):
    """Lines that belong to no other change."""

    def record_events(self, told: Sequence[NewEvent], now: datetime) -> None:
        """Append these lines to the log of events, in one transaction; none for none."""
        ...

    def last_event(self, name: str) -> "EventRecord | None":
        """The newest line of this name that is about no order."""
        ...

    def checkpoint(self, sign: SignHead, now: datetime, *, lines: int, age: timedelta) -> bool:
        """Append a signed head of everything before it, once `lines` lines have none, or any has none for that long.

        Gives whether it did.
        """
        ...
