"""Orchestrators in memory: the semantics of `agent.ports.orchestrators.Orchestrators`, no network.

They judge a share request by the real rules of `trust/shares.py`, and keep every report and result by the contract's rule of
repeats: the same again is fine, another body in the same place is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from agent.domain.ids import KeyId, OrderId
from agent.domain.orders import DatasetRef, SignedOrder
from agent.domain.reports import ReportBody, ResultBody, parse_report, parse_result
from agent.errors import (
    AgentError,
    OrchestratorUnavailable,
    PeerRefused,
    RecordConflict,
    ShareRefused,
    ShareWithheld,
)
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
