"""The port to the other agents of the consortium."""

from typing import Protocol

from agent.domain.ids import KeyId, OrderId
from agent.domain.standings import PeerOrder


class Peers(Protocol):
    """The other agents, named by key id."""

    def hand_off(self, agent: KeyId, body: bytes) -> None:
        """Returns once the agent has recorded the hand-off (any 2xx, signed by it).

        Raises: PeerUnavailable (retried), PeerRefused (a signed refusal; its code and sentence in the message), BadAnswer.
        """
        ...

    def cancel(self, agent: KeyId, envelope: bytes) -> None:
        """Returns once the agent has recorded the cancellation, as it came from its orchestrator. Raises: as `hand_off`."""
        ...

    def order(self, agent: KeyId, order_id: OrderId) -> PeerOrder | None:
        """The order as that agent knows it; None when it says that it does not.

        Raises: PeerUnavailable, BadAnswer; PeerRefused when it tells this agent nothing of it.
        """
        ...

    def receipts(self, agent: KeyId, order_id: OrderId) -> tuple[bytes, ...]:
        """The envelopes of an order's receipts there, by position, as far as this agent may read them: up to its own last one.

        Raises: PeerUnavailable, BadAnswer, PeerRefused.
        """
        ...

    def check(self, agent: KeyId) -> None:
        """Ask whether it is there."""
        ...
