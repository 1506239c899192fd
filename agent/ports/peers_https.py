"""Peers over HTTPS: POST /v1/handoffs and /v1/cancellations. Source: docs/contracts/chain.md, "Hand-off" and "Cancel"."""

from agent.domain.ids import KeyId
from agent.errors import PeerRefused, PeerUnavailable
from agent.ports.https import Body, HttpsClient, Identity, Peer, Timeouts
from agent.trust.roster import Role

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

    def _peer(self, agent: KeyId) -> Peer:
        identity = self._https.identity
        entry = identity.roster().require(agent, role=Role.AGENT, at=identity.now())
        return Peer.of(entry, entry.agent_url, PeerUnavailable)
