"""Orchestrators over HTTPS: shares of keys, reports, results, how orders stand.

Source: docs/contracts/http.md, "Asked of orchestrators".
"""

from collections.abc import Callable
from typing import TypeVar

from agent.domain.ids import KeyId, OrderId
from agent.domain.standings import (
    MAX_PAGE_BYTES,
    MAX_STANDING_BYTES,
    StandingsPage,
    WholeStanding,
    parse_standing,
    parse_standings,
)
from agent.errors import (
    BadAnswer,
    BadShare,
    NotFound,
    OrchestratorUnavailable,
    OrderError,
    PeerRefused,
    ShareWithheld,
)
from agent.ports.https import Answer, Body, HttpsClient, Identity, Peer, Timeouts
from agent.trust.roster import Role
from agent.trust.shares import MAX_ANSWER_BYTES as MAX_SHARE_BYTES
from agent.trust.shares import ShareAnswer

T = TypeVar("T")

MAX_ACKNOWLEDGEMENT_BYTES = 64 << 10


class HttpsOrchestrators:
    """Every orchestrator of the roster, at its `orchestrator_url`.

    Raises everywhere: OrchestratorUnavailable; BadAnswer for a 2xx that it did not sign; UnknownKey, WrongRole, KeyNotValid
    when the roster does not know it as an orchestrator.
    """

    def __init__(self, identity: Identity, timeouts: Timeouts) -> None:
        self._https = HttpsClient(identity, timeouts)

    def share(self, orchestrator: KeyId, request: bytes) -> bytes:
        """The sealed share, as `trust.shares.ShareKeyPair.open` takes it. Raises: ShareWithheld for a signed refusal."""
        peer = self._peer(orchestrator)
        answer = self._https.call(
            peer, "POST", "/v1/shares", body=Body.json(request), limit_bytes=MAX_SHARE_BYTES
        )
        if self._is_signed_refusal(peer, answer):
            code, sentence = answer.problem
            raise ShareWithheld(f"{peer} keeps its share ({code}): {sentence}")
        self._require_acknowledged(peer, answer)
        try:
            return ShareAnswer.parse(answer.body).sealed
        except (OrderError, BadShare) as cause:
            raise BadAnswer(f"{peer} signs an answer without a share: {cause.detail}") from cause

    def report(self, orchestrator: KeyId, order_id: OrderId, position: int, n: int, body: bytes) -> None:
        """Returns once report `n` of this place is acknowledged. Raises: PeerRefused for a signed refusal."""
        self._tell(orchestrator, f"/v1/orders/{order_id}/tasks/{position}/reports/{n}", body)

    def result(self, orchestrator: KeyId, order_id: OrderId, body: bytes) -> None:
        """Returns once the order's result is acknowledged. Raises: PeerRefused for a signed refusal."""
        self._tell(orchestrator, f"/v1/orders/{order_id}/result", body)

    def open_orders(self, orchestrator: KeyId, after: OrderId | None = None) -> StandingsPage:
        """A page of its open orders that it takes this agent to have."""
        page = "" if after is None else f"&after={after}"
        target = f"/v1/orders?agent={self._https.identity.key.keyid}&state=open{page}"
        body = self._ask(orchestrator, target, MAX_PAGE_BYTES)
        return _parsed(parse_standings, b"" if body is None else body)

    def standing(self, orchestrator: KeyId, order_id: OrderId) -> WholeStanding | None:
        """How one order stands there; None when it signs that it knows no such order. Raises: PeerRefused."""
        body = self._ask(orchestrator, f"/v1/orders/{order_id}", MAX_STANDING_BYTES)
        if body is None:
            return None
        told = _parsed(parse_standing, body)
        if told.standing.id != order_id:
            raise BadAnswer(f"asked for order {order_id}, it tells of {told.standing.id}")
        return told

    def check(self, orchestrator: KeyId) -> None:
        """Ask whether it is there."""
        self._https.check_health(self._peer(orchestrator))

    def close(self) -> None:
        """Close every connection."""
        self._https.close()

    def _tell(self, orchestrator: KeyId, target: str, body: bytes) -> None:
        peer = self._peer(orchestrator)
        limit = MAX_ACKNOWLEDGEMENT_BYTES
        answer = self._https.call(peer, "PUT", target, body=Body.json(body), limit_bytes=limit)
        if self._is_signed_refusal(peer, answer):
            code, sentence = answer.problem
            raise PeerRefused(f"{peer} refuses {target} ({code}): {sentence}", code, answer.evidence)
        self._require_acknowledged(peer, answer)

    def _ask(self, orchestrator: KeyId, target: str, limit_bytes: int) -> bytes | None:
        """The body of a signed answer; None for a signed "not found"."""
        peer = self._peer(orchestrator)
        answer = self._https.call(peer, "GET", target, limit_bytes=limit_bytes)
        if self._is_signed_refusal(peer, answer):
            code, sentence = answer.problem
            if answer.status == NotFound.status:
                return None
            raise PeerRefused(f"{peer} refuses {target} ({code}): {sentence}", code, answer.evidence)
        self._require_acknowledged(peer, answer)
        return answer.body

    def _is_signed_refusal(self, peer: Peer, answer: Answer) -> bool:
        return answer.is_refusal and self._https.is_signed(peer, answer)

    def _require_acknowledged(self, peer: Peer, answer: Answer) -> None:
        """Return only for a 2xx that the orchestrator signed. Raises: OrchestratorUnavailable, BadAnswer."""
        if not answer.is_success:
            raise self._https.unavailable(peer, answer)
        self._https.verify(peer, answer)

    def _peer(self, orchestrator: KeyId) -> Peer:
        identity = self._https.identity
        entry = identity.roster().require(orchestrator, role=Role.ORCHESTRATOR, at=identity.now())
        return Peer.of(entry, entry.orchestrator_url, OrchestratorUnavailable)


def _parsed(parse: Callable[[bytes], T], body: bytes) -> T:
    """Raises: BadAnswer for a signed answer of another shape."""
    try:
        return parse(body)
    except OrderError as cause:
        raise BadAnswer(f"the answer is signed and cannot be read: {cause.detail}") from cause
