"""The port to what processes of this host have in hand: one at a time works on a job's container and folders.

The ledger's claim fences what is recorded; this fences what lies on the host. A process that stalls keeps what it has in hand,
however long, and goes on when it wakes up; one that ends, in whatever way, lets go of everything.
"""

from contextlib import AbstractContextManager
from typing import Protocol

from agent.domain.ids import JobId


class Hands(Protocol):
    """Who on this host has which job in hand."""

    def hold(self, job: JobId) -> AbstractContextManager[bool]:
        """Whether nobody else has this job in hand; if so it is the caller's until the context ends. It does not wait.

        Raises: LedgerUnavailable when the folder beside the ledger takes no file.
        """
        ...
