"""The part of the port to the ledger that a person pages through. Each answer is found by an index and is as long as `limit`
says, however long the ledger is: a page is asked for again and again, by whoever keeps it open.
"""

from collections.abc import Set
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

from agent.domain.ids import Digest, JobId
from agent.domain.jobs import Job, JobState
from agent.domain.receipts import SignedReceipt

if TYPE_CHECKING:
    from agent.ports.ledger import EventRecord


class DatasetUse(Struct, frozen=True, kw_only=True):
    """A dataset that lines of the audit log tell of: how many, and the newest of them."""

    dataset: str
    lines: int
    last: "EventRecord"


class PageLedger(Protocol):
    """What is looked at, newest first."""

    def newest_jobs(
        self, states: Set[JobState], *, after: JobId | None = None, limit: int = 50
    ) -> tuple[Job, ...]:
        """The newest job of each order, of those in these states (none: in any). `after`: the last one of the page before.

        Raises: NotFound when `after` names no job.
        """
        ...

    def receipts_from(self, order: Digest, first: int, limit: int) -> tuple[SignedReceipt, ...]:
        """The receipts recorded for this order from position `first` on, by position."""
        ...

    def events_of_host(
        self, names: Set[str], *, before: int | None = None, limit: int = 50
    ) -> "tuple[EventRecord, ...]":
        """Lines of these names that are about no order, before the line of number `before`, newest first."""
        ...

    def events_of_dataset(
        self, dataset: str, *, before: int | None = None, limit: int = 50
    ) -> "tuple[EventRecord, ...]":
        """Lines that tell of this dataset, before the line of number `before`, newest first."""
        ...

    def datasets_used(self, *, before: int | None = None, limit: int = 50) -> tuple[DatasetUse, ...]:
        """Datasets whose newest line has a number below `before`, the one that was told of last first."""
        ...
