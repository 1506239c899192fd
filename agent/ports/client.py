"""The port to an agent's own API, as its operator or an orchestrator calls it. What the answers mean is the caller's."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
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


class ServerEvent(Struct, frozen=True):
    """One event of a stream. `id`: the number of the last one that had any; empty before."""

    name: str
    id: str
    data: str


class Client(Protocol):
    """One agent."""

    def get(self, target: str) -> ApiAnswer:
        """What it answers at this path and query. Raises: AgentUnreachable."""
        ...

    def post(self, target: str, body: bytes) -> ApiAnswer:
        """What it answers to these bytes of JSON. Raises: AgentUnreachable."""
        ...

    def events(
        self, target: str, after: str | None
    ) -> AbstractContextManager[ApiAnswer | Iterator[ServerEvent]]:
        """The stream at this path, behind the event of that number: its events until it ends, or the answer that is none.

        A signature is made for each call. Raises: AgentUnreachable, also while it is read.
        """
        ...

    def close(self) -> None:
        """Close every connection."""
        ...
