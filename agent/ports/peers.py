"""The port to the other agents of the consortium."""

from typing import Protocol

from agent.domain.ids import KeyId


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

    def check(self, agent: KeyId) -> None:
        """Ask whether it is there."""
        ...
