"""The port to an agent's own API, as its operator or an orchestrator calls it. What the answers mean is the caller's."""

from typing import Protocol

from msgspec import Struct


class ApiAnswer(Struct, frozen=True):
    """A whole answer: a document of the API, or a problem document when `status` is 400 or more."""

    status: int
    body: bytes

    @property
    def is_success(self) -> bool:
        """Any 2xx."""
        return 200 <= self.status < 300


class Client(Protocol):
    """One agent."""

    def get(self, target: str) -> ApiAnswer:
        """What it answers at this path and query. Raises: AgentUnreachable."""
        ...

    def post(self, target: str, body: bytes) -> ApiAnswer:
        """What it answers to these bytes of JSON. Raises: AgentUnreachable."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...
