"""Peers over HTTPS: hand-offs, what became of them, and cancellations. Source: docs/contracts/chain.md."""

from agent.domain.ids import KeyId, OrderId
from agent.domain.standings import MAX_PEER_ORDER_BYTES, PeerOrder, parse_peer_order
from agent.errors import BadAnswer, NotFound, OrderError, PeerRefused, PeerUnavailable, TrustError
from agent.ports.https import Body, HttpsClient, Identity, Peer, Timeouts
from agent.trust.handoff import MAX_HANDOFF_BYTES, parse_handoff

MAX_ANSWER_BYTES = 64 << 10


class HttpsPeers:
    """The other agents at their `agent_url`."""

    def __init__(self, identity: Identity, timeouts: Timeouts) -> None:
        self._https = HttpsClient(identity, timeouts)

    def hand_off(self, agent: KeyId, body: bytes) -> None:
        """Returns once the agent has recorded the hand-off.

        Raises: PeerUnavailable; PeerRefused with its code and its signed answer as evidence; BadAnswer for a 2xx that the
        agent did not sign; UnknownKey, WrongRole, KeyNotValid when the roster does not know it as an agent.
        """
        self._post(agent, "/v1/handoffs", body, "the hand-off")

    def cancel(self, agent: KeyId, envelope: bytes) -> None:
        """Returns once the agent has recorded the cancellation. Raises: as `hand_off`."""
        self._post(agent, "/v1/cancellations", envelope, "the cancellation")

    def order(self, agent: KeyId, order_id: OrderId) -> PeerOrder | None:
        """The order as that agent knows it; None when it signs that it does not. Raises: PeerRefused."""
        body = self._ask(agent, f"/v1/orders/{order_id}", MAX_PEER_ORDER_BYTES)
        if body is None:
            return None
        try:
            return parse_peer_order(body)
        except OrderError as cause:
            raise BadAnswer(f"the answer is signed and cannot be read: {cause.detail}") from cause

    def receipts(self, agent: KeyId, order_id: OrderId) -> tuple[bytes, ...]:
        """The envelopes of an order's receipts there, by position. Raises: PeerRefused."""
        body = self._ask(agent, f"/v1/orders/{order_id}/receipts", MAX_HANDOFF_BYTES)
        try:
            return () if body is None else parse_handoff(body).receipts
        except (OrderError, TrustError) as cause:
            raise BadAnswer(f"the answer is signed and cannot be read: {cause.detail}") from cause

    def check(self, agent: KeyId) -> None:
        """Ask whether it is there. Raises: PeerUnavailable."""
        self._https.check_health(self._peer(agent))

    def close(self) -> None:
        """Close every connection."""
        self._https.close()

    def _post(self, agent: KeyId, target: str, body: bytes, what: str) -> None:
        peer = self._peer(agent)
        answer = self._https.call(peer, "POST", target, body=Body.json(body), limit_bytes=MAX_ANSWER_BYTES)
        if answer.is_success:
            self._https.verify(peer, answer)
        elif answer.is_refusal and self._https.is_signed(peer, answer):
            code, sentence = answer.problem
            raise PeerRefused(f"{peer} refuses {what} ({code}): {sentence}", code, answer.evidence)
        else:
            raise self._https.unavailable(peer, answer)

    def _ask(self, agent: KeyId, target: str, limit_bytes: int) -> bytes | None:
        """The body of a signed answer; None for a signed "not found"."""
        peer = self._peer(agent)
        answer = self._https.call(peer, "GET", target, limit_bytes=limit_bytes)
        if answer.is_success:
            self._https.verify(peer, answer)
            return answer.body
        if answer.is_refusal and self._https.is_signed(peer, answer):
            if answer.status == NotFound.status:
                return None
            code, sentence = answer.problem
            raise PeerRefused(f"{peer} refuses {target} ({code}): {sentence}", code, answer.evidence)
        raise self._https.unavailable(peer, answer)

    def _peer(self, agent: KeyId) -> Peer:
        identity = self._https.identity
        entry = identity.roster().reach(agent, identity.now())
        return Peer.of(entry, entry.agent_url, PeerUnavailable)
