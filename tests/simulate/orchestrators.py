"""The fake orchestrators, made for many orders: how one stands is known without looking at all others."""

from collections import defaultdict
from typing import Any

import msgspec
from msgspec.structs import replace

from agent.domain.ids import KeyId, OrderId
from agent.domain.orders import SignedOrder
from agent.domain.reports import ReportState
from agent.domain.standings import PAGE_ORDERS, OrderState, StandingsPage, WholeStanding
from tests.checker import ENDS
from tests.fakes.orchestrators import MemoryOrchestrators, Place


class Orchestrators(MemoryOrchestrators):
    """See `MemoryOrchestrators`. `ended`: orders that nobody waits for any more; `tellers`: who told each result.

    A place that was reported done is closed, and so is every place of an order that was taken back.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.ended: set[OrderId] = set()
        self.tellers: dict[OrderId, KeyId] = {}
        self.cancelled: set[OrderId] = set()
        self._of_order: dict[OrderId, dict[Place, bytes]] = defaultdict(dict)
        self._at: dict[OrderId, tuple[int, KeyId]] = {}  # position and holder of what is open
        self._with: dict[KeyId, dict[OrderId, None]] = defaultdict(dict)  # what is open, by holder

    # ---- what happens

    def issue(self, order: SignedOrder, agent: KeyId) -> None:
        """It writes down that the order goes there."""
        self.issued.setdefault(order.order.id, (order, agent))
        self._move(order.order.id, 0, agent)

    def cancel(self, order: SignedOrder, tasks: int) -> None:
        """It takes the order back."""
        self.cancelled.add(order.order.id)
        self.closed |= {(order.order.id, position) for position in range(tasks)}
        self._end(order.order.id)

    def note(self, place: Place, body: bytes) -> None:
        """It acknowledged a report."""
        order_id, position, reporter, _ = place
        self._of_order[order_id][place] = body
        told = msgspec.json.decode(body)  # which was parsed when it was acknowledged
        at, _ = self._at.get(order_id, (0, reporter))
        match ReportState(told["state"]):
            case ReportState.STARTED if position >= at:
                self._move(order_id, at, reporter)
            case ReportState.DONE:
                self.closed.add((order_id, position))
                if position >= at:
                    self._move(order_id, position + 1, told.get("next_agent") or reporter)
            case state if state in ENDS:
                self.ended.add(order_id)
                self._end(order_id)
            case ReportState.HANDOFF_RETRIED:
                self._move(order_id, at, self.issued[order_id][1])

    def note_result(self, order_id: OrderId, teller: KeyId) -> None:
        """It acknowledged a result."""
        self.tellers[order_id] = teller
        self.ended.add(order_id)
        self._end(order_id)

    def _move(self, order_id: OrderId, position: int, holder: KeyId) -> None:
        if order_id in self.ended or order_id in self.cancelled:
            return
        self._end(order_id)
        self._at[order_id] = (position, holder)
        self._with[holder][order_id] = None

    def _end(self, order_id: OrderId) -> None:
        _, holder = self._at.pop(order_id, (0, None))
        if holder is not None:
            self._with[holder].pop(order_id, None)

    # ---- what it tells

    def standing(self, order_id: OrderId, asker: KeyId) -> WholeStanding:
        signer = self.issued[order_id][0].signer
        everything, self.reports = self.reports, {signer: self._of_order[order_id]}
        try:
            whole = super().standing(order_id, asker)
        finally:
            self.reports = everything
        if order_id in self.cancelled and whole.standing.state is OrderState.OPEN:
            return replace(whole, standing=replace(whole.standing, state=OrderState.CANCELLED))
        return whole

    def open_orders(self, orchestrator: KeyId, agent: KeyId, after: OrderId | None) -> StandingsPage:
        """A page of its open orders that it takes this agent to have."""
        mine = [each for each in self._with[agent] if self.issued[each][0].signer == orchestrator]
        first = 0 if after is None or after not in mine else mine.index(after) + 1
        page = mine[first : first + PAGE_ORDERS]
        told = tuple(self.standing(order_id, agent).standing for order_id in page)
        return StandingsPage(orders=told, next=page[-1] if len(mine) > first + len(page) else None)
