"""The part of the port to the ledger that knows it may be an old one: put back from a backup."""

from datetime import datetime, timedelta
from typing import Protocol

from agent.domain.backups import Restore


class RestoresLedger(Protocol):
    """A ledger that was put back from a backup."""

    def mark_restored(
        self,
        now: datetime,
        *,
        backup_made_at: datetime,
        skew: timedelta,
        generation: int = 0,
        uid: int | None = None,
    ) -> Restore:
        """Make this ledger one that was put back just now: its mode is RESTORED, and nobody has anything of it in hand.

        Every lease is over, of jobs and of deliveries, and claims and the numbers of reports go on beyond any that the lost
        ledger can have given, whose `generation` this was. Records an event `ledger.restored`.
        """
        ...

    def restores(self) -> tuple[Restore, ...]:
        """Each time that this ledger was put back, the last one first."""
        ...
