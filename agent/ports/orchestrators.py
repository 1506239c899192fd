"""The port to orchestrators: shares of dataset keys, durable reports, results."""

from typing import Protocol

from agent.domain.ids import KeyId, OrderId


class Orchestrators(Protocol):
    """Every orchestrator of the roster, named by key id.

    Raises everywhere: OrchestratorUnavailable (retried), BadAnswer (not signed by that orchestrator).
    """

    def share(self, orchestrator: KeyId, request: bytes) -> bytes:
        """This orchestrator's HPKE-sealed share, taken out of its answer: the bytes that `ShareKeyPair.open` takes.

        Raises: ShareWithheld when it refuses.
        """
        ...

    def report(self, orchestrator: KeyId, order_id: OrderId, position: int, n: int, body: bytes) -> None:
        """Returns once report `n` of this place is acknowledged. Raises: PeerRefused when it is refused for good."""
        ...

    def result(self, orchestrator: KeyId, order_id: OrderId, body: bytes) -> None:
        """Returns once the order's result is acknowledged. Raises: PeerRefused when it is refused for good."""
        ...

    def check(self, orchestrator: KeyId) -> None:
        """Ask whether it is there."""
        ...
