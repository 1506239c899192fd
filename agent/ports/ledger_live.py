"""The part of the port to the ledger for who looks on: what is new, and pages that cost the same however much lies here."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Protocol

from agent.domain.ids import Digest, KeyId
from agent.domain.jobs import Job
from agent.domain.receipts import SignedReceipt

if TYPE_CHECKING:
    from agent.ports.ledger import JobQuery


class LiveLedger(Protocol):
    """Readings that are asked often."""

    def version(self) -> int:
        """Another number whenever anybody, this process or another, has written since. It may be asked all the time."""
        ...

    def newest_event(self) -> int:
        """The number of the newest line of the log of events; 0 when there is none."""
        ...

    def receipts_at(self, places: Iterable[tuple[Digest, int]]) -> tuple[SignedReceipt, ...]:
        """The receipts of these (order, position), as far as there are any."""
        ...

    def jobs_with(self, agent: Collection[KeyId], query: "JobQuery", among: int) -> "tuple[Job, ...]":
        """Of the newest `among` jobs that the query means, those of orders that this agent sent here or signed, of which it
        signed a receipt, or with which it goes on. `agent`: its keys. `query.signer` is not asked.

        Raises: NotFound when `after` names no job.
        """
        ...
