"""The part of the port to the ledger that knows how long things are kept. The rule itself is `domain.retention`."""

from datetime import datetime
from typing import Protocol

from agent.domain.retention import Garbage, LedgerSizes, Retention


class KeepingLedger(Protocol):
    """What is over leaves, and never comes again."""

    def garbage(self, told: Retention) -> Garbage:
        """What is over now, and would go."""
        ...

    def collect(self, told: Retention, now: datetime, limit: int) -> Garbage:
        """Drop what is over, at most `limit` of each kind; what went. An order leaves an event `order.forgotten`, and its
        id and digest: `digest_of_order` knows them for ever, and `admit` answers a repeat with OrderExpired.
        """
        ...

    def give_back(self) -> int:
        """Give the room of what went back to the file system; how many bytes. Others write meanwhile."""
        ...

    def sizes(self) -> LedgerSizes:
        """What takes up how much. Reads through the whole ledger: for a person, not for a sweep."""
        ...
