"""The port to orchestrators: shares of dataset keys, durable reports, results, and how orders stand there."""

from typing import Protocol

from agent.domain.ids import KeyId, OrderId
from agent.domain.standings import StandingsPage, WholeStanding


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

    def open_orders(self, orchestrator: KeyId, after: OrderId | None = None) -> StandingsPage:
        """A page of its open orders that it takes this agent to have."""
        ...

    def standing(self, orchestrator: KeyId, order_id: OrderId) -> WholeStanding | None:
        """How one order stands there, with what was signed of it; None when it says that it issued no such order.

        Raises: PeerRefused when it tells this agent nothing of it.
        """
        ...

    def check(self, orchestrator: KeyId) -> None:
        """Ask whether it is there."""
        ...
