"""The part of the port to the ledger that measures: what was counted, how long phases took, since when things wait, and by
which trace an order is found. Every number is written in the transaction that makes it true, so it is the same in whichever
process it is read, and after any restart.
"""

from typing import Protocol

from agent.domain.ids import OrderId
from agent.domain.measures import Gauges, PhaseTime, Tally
from agent.domain.traces import TraceId


class MeasuresLedger(Protocol):
    """Numbers for whoever watches this host."""

    def given_trace(self, order_id: OrderId) -> TraceId | None:
        """The trace that was given with the order; None when it has its own, or is not known here."""
        ...

    def phase_times(self, order_id: OrderId) -> tuple[PhaseTime, ...]:
        """The phases of the order's attempts that ended here, by job and attempt, in the order they ran."""
        ...

    def tallies(self) -> tuple[Tally, ...]:
        """Everything that was counted since the ledger was made, or brought to the revision that counts.

        None of it ever falls, but where a ledger is put back from a backup. As quick with a million orders as with none.
        """
        ...

    def gauges(self) -> Gauges:
        """How things stand now. As quick with a million orders that ended as with none."""
        ...
