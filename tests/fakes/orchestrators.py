"""Orchestrators in memory: the semantics of `agent.ports.orchestrators.Orchestrators`, no network.

They judge a share request by the real rules of `trust/shares.py`, and keep every report and result by the contract's rule of
repeats: the same again is fine, another body in the same place is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from agent.domain.chain import plan
from agent.domain.ids import KeyId, OrderId, digest_of
from agent.domain.orders import DatasetRef, SignedOrder
from agent.domain.receipts import MAX_RECEIPT_BYTES
from agent.domain.reports import (
    Envelope,
    ReportBody,
    ReportState,
    ResultBody,
    envelope_bytes,
    envelope_object,
    parse_report,
    parse_result,
)
from agent.domain.standings import (
    OrderState,
    ReceiptTold,
    ReportsTold,
    Standing,
    StandingsPage,
    WholeStanding,
)
from agent.errors import (
    AgentError,
    OrchestratorUnavailable,
    PeerRefused,
    RecordConflict,
    ShareRefused,
    ShareWithheld,
)
from agent.trust.envelope import parse_envelope
from agent.trust.roster import Role, Roster
from agent.trust.shares import ShareRequest, check_share_request, release_share

K = TypeVar("K")

Place = tuple[OrderId, int, KeyId, int]  # order, position, reporter, n


@dataclass
class MemoryOrchestrators:
    """Every orchestrator of a consortium. `down`: those that do not answer; `withheld`: datasets by orchestrator."""

    roster: Roster
    now: Callable[[], datetime]
    skew: timedelta = timedelta(seconds=30)
    down: set[KeyId] = field(default_factory=set)
    withheld: set[tuple[KeyId, str]] = field(default_factory=set)
    closed: set[tuple[OrderId, int]] = field(default_factory=set)  # places that somebody has finished
    shares: dict[tuple[KeyId, DatasetRef], bytes] = field(default_factory=dict)
    releases: list[tuple[KeyId, KeyId, DatasetRef]] = field(
        default_factory=list
    )  # orchestrator, agent, dataset
    reports: dict[KeyId, dict[Place, bytes]] = field(default_factory=dict)
    results: dict[KeyId, dict[OrderId, bytes]] = field(default_factory=dict)
    issued: dict[OrderId, tuple[SignedOrder, KeyId]] = field(
        default_factory=dict
    )  # with the agent it was sent to
    page_orders: int = 2
    asked: list[tuple[KeyId, KeyId, OrderId | None]] = field(
        default_factory=list
    )  # orchestrator, agent, order

    def ask(self, orchestrator: KeyId) -> KeyId:
        """This orchestrator, when the roster knows it and it answers. Raises: TrustError, OrchestratorUnavailable."""
        self.roster.require(orchestrator, role=Role.ORCHESTRATOR, at=self.now())
        if orchestrator in self.down:
            raise OrchestratorUnavailable(f"orchestrator {orchestrator[:16]}: no connection")
        return orchestrator

    def is_open(self, order: SignedOrder, position: int) -> bool:
        """Whether nobody has finished that place."""
        return (order.order.id, position) not in self.closed

    def told(self, orchestrator: KeyId) -> tuple[ReportBody, ...]:
        """The reports this orchestrator acknowledged, in order of arrival."""
        return tuple(parse_report(body) for body in self.reports.get(orchestrator, {}).values())

    def result_of(self, orchestrator: KeyId, order_id: OrderId) -> ResultBody:
        """The result this orchestrator acknowledged for an order."""
        return parse_result(self.results[orchestrator][order_id])

    def standing(self, order_id: OrderId, asker: KeyId) -> WholeStanding:
        """How an order stands by its reports and result, as the devkit's orchestrator reckons."""
        order, holder = self.issued[order_id]
        orchestrator = order.signer
        state, position, reason = OrderState.OPEN, 0, None
        receipts: dict[int, tuple[ReceiptTold, Envelope]] = {}
        counted: dict[int, int] = {}
        for (of, place, reporter, n), body in self.reports.get(orchestrator, {}).items():
            if of != order_id:
                continue
            told = parse_report(body)
            if reporter == asker:
                counted[place] = max(counted.get(place, 0), n)
            if told.receipt is not None:
                receipts[place] = _told(place, told.receipt)
            match told.state:
                case ReportState.STARTED if place >= position:
                    holder = reporter
                case ReportState.DONE if place >= position:
                    position, holder = place + 1, told.next_agent or reporter
                case ReportState.FAILED | ReportState.HANDOFF_REFUSED | ReportState.HANDOFF_EXPIRED:
                    state, reason = OrderState.FAILED, told.reason
                case ReportState.HANDOFF_RETRIED:
                    state, reason = OrderState.OPEN, None
        if order_id in self.results.get(orchestrator, {}):
            result = self.result_of(orchestrator, order_id)
            receipts = {place: _told(place, envelope) for place, envelope in enumerate(result.receipts)}
            state, position = OrderState.DONE, len(receipts)
        in_order = [receipts[place] for place in sorted(receipts)]
        return WholeStanding(
            standing=Standing(
                id=order_id,
                digest=order.digest,
                state=state,
                position=position,
                tasks=len(plan(order.order)),
                holder=holder,
                reason=reason,
                receipts=tuple(told for told, _ in in_order),
                reports=tuple(ReportsTold(position=place, n=counted[place]) for place in sorted(counted)),
            ),
            envelope=envelope_object(order.envelope),
            receipts=tuple(envelope for _, envelope in in_order),
        )


def _told(place: int, envelope: Envelope) -> tuple[ReceiptTold, Envelope]:
    parsed = parse_envelope(envelope_bytes(envelope), limit_bytes=MAX_RECEIPT_BYTES)
    return ReceiptTold(position=place, digest=digest_of(parsed.payload), agent=parsed.keyid), envelope


class MemoryOrchestratorsPort:
    """See `Orchestrators`; the port of the agent `own`."""

    def __init__(self, orchestrators: MemoryOrchestrators, own: KeyId) -> None:
        self._all = orchestrators
        self._own = own

    def share(self, orchestrator: KeyId, request: bytes) -> bytes:
        me = self._all.ask(orchestrator)
        try:
            return self._release(me, ShareRequest.parse(request))
        except AgentError as error:
            raise ShareWithheld(
                f"{orchestrator[:16]} keeps its share ({error.code}): {error.detail}"
            ) from error

    def report(self, orchestrator: KeyId, order_id: OrderId, position: int, n: int, body: bytes) -> None:
        self._take(
            self._all.reports.setdefault(self._all.ask(orchestrator), {}),
            (order_id, position, self._own, n),
            body,
        )

    def result(self, orchestrator: KeyId, order_id: OrderId, body: bytes) -> None:
        self._take(self._all.results.setdefault(self._all.ask(orchestrator), {}), order_id, body)

    def open_orders(self, orchestrator: KeyId, after: OrderId | None = None) -> StandingsPage:
        me = self._all.ask(orchestrator)
        self._all.asked.append((me, self._own, None))
        of_mine = [order for order, (signed, _) in self._all.issued.items() if signed.signer == me]
        told = [self._all.standing(order, self._own).standing for order in of_mine]
        mine = [each for each in told if each.holder == self._own and each.state is OrderState.OPEN]
        first = 0 if after is None else [each.id for each in mine].index(after) + 1
        page = tuple(mine[first : first + self._all.page_orders])
        return StandingsPage(orders=page, next=page[-1].id if len(mine) > first + len(page) else None)

    def standing(self, orchestrator: KeyId, order_id: OrderId) -> WholeStanding | None:
        me = self._all.ask(orchestrator)
        self._all.asked.append((me, self._own, order_id))
        if order_id not in self._all.issued or self._all.issued[order_id][0].signer != me:
            return None
        return self._all.standing(order_id, self._own)

    def check(self, orchestrator: KeyId) -> None:
        self._all.ask(orchestrator)

    def _release(self, me: KeyId, request: ShareRequest) -> bytes:
        checked = check_share_request(
            request,
            asker=self._own,
            me=me,
            roster=self._all.roster,
            now=self._all.now(),
            skew=self._all.skew,
            is_open=self._all.is_open,
        )
        dataset = DatasetRef(request.dataset, request.version)
        if (me, dataset.id) in self._all.withheld:
            raise ShareRefused(f"the share of {dataset} is withheld")
        sealed = release_share(checked, self._all.shares[me, dataset])
        self._all.releases.append((me, self._own, dataset))
        return sealed

    def _take(self, table: dict[K, bytes], place: K, body: bytes) -> None:
        if table.setdefault(place, body) != body:
            raise PeerRefused("something else is recorded here", RecordConflict.code)
