"""Peers in memory: the semantics of `agent.ports.peers.Peers`, no network.

A peer is a function of (body, sender) that returns when it has recorded the hand-off and raises what it refuses with:

    peers = MemoryPeers({agent_b: lambda body, sender: receive_handoff(body, sender, host_b)})
    port = MemoryPeersPort(peers, own=agent_a)
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from agent.domain.ids import KeyId, OrderId
from agent.domain.standings import PeerOrder
from agent.errors import AgentError, PeerRefused, PeerUnavailable, UnknownKey

Door = Callable[[bytes, KeyId], object]
View = Callable[[OrderId, KeyId], tuple[PeerOrder, tuple[bytes, ...]] | None]
"""(an order as an agent knows it, its receipts' envelopes as far as the asker may read them); None when it does not know it."""


@dataclass
class MemoryPeers:
    """Every agent of a consortium. `down`: those that do not answer; `received`: (target, sender, body) of hand-offs that were
    taken; `cancelled`: (target, sender) of cancellations that were."""

    doors: dict[KeyId, Door]
    cancel_doors: dict[KeyId, Door] = field(default_factory=dict)
    down: set[KeyId] = field(default_factory=set)
    received: list[tuple[KeyId, KeyId, bytes]] = field(default_factory=list)
    cancelled: list[tuple[KeyId, KeyId]] = field(default_factory=list)
    views: dict[KeyId, View] = field(default_factory=dict)


class MemoryPeersPort:
    """See `Peers`; the port of the agent `own`."""

    def __init__(self, peers: MemoryPeers, own: KeyId) -> None:
        self._all = peers
        self._own = own

    def hand_off(self, agent: KeyId, body: bytes) -> None:
        self._call(self._ask(agent), agent, body, "the hand-off")
        self._all.received.append((agent, self._own, body))

    def cancel(self, agent: KeyId, envelope: bytes) -> None:
        self._ask(agent)
        self._call(self._all.cancel_doors[agent], agent, envelope, "the cancellation")
        self._all.cancelled.append((agent, self._own))

    def order(self, agent: KeyId, order_id: OrderId) -> PeerOrder | None:
        known = self._view(agent, order_id)
        return None if known is None else known[0]

    def receipts(self, agent: KeyId, order_id: OrderId) -> tuple[bytes, ...]:
        known = self._view(agent, order_id)
        return () if known is None else known[1]

    def check(self, agent: KeyId) -> None:
        self._ask(agent)

    def _call(self, door: Door, agent: KeyId, body: bytes, what: str) -> None:
        try:
            door(body, self._own)
        except AgentError as error:
            sentence = f"{agent[:16]} refuses {what} ({error.code}): {error.detail}"
            if 400 <= error.status < 500 and error.status not in {408, 421, 425, 429}:
                raise PeerRefused(sentence, error.code) from error
            raise PeerUnavailable(sentence) from error

    def _view(self, agent: KeyId, order_id: OrderId) -> tuple[PeerOrder, tuple[bytes, ...]] | None:
        self._ask(agent)
        try:
            return self._all.views[agent](order_id, self._own)
        except AgentError as error:
            raise PeerRefused(f"{agent[:16]} refuses ({error.code}): {error.detail}", error.code) from error

    def _ask(self, agent: KeyId) -> Door:
        if agent not in self._all.doors:
            raise UnknownKey(f"{agent} is not in the roster")
        if agent in self._all.down:
            raise PeerUnavailable(f"agent {agent[:16]}: no connection")
        return self._all.doors[agent]
