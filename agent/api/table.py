"""What a line of the table of routes says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

from msgspec import Struct
from starlette.responses import Response

from agent.api.ask import Ask
from agent.api.desk import Desk
from agent.ports.ledger import Candidate
from agent.trust.roster import Role

STREAM_TYPE = "text/event-stream"

Handle = Callable[[Ask, Desk], Response]

Judge = Callable[[Ask, Desk], Candidate | Response]
"""What a call wants recorded, or its answer where that is nothing."""


class Who(Enum):
    """Who may call a route: over the network, by the roles of who signs, and on the operator's socket."""

    ORCHESTRATORS = ("an orchestrator, by a signed request, or the operator", {Role.ORCHESTRATOR})
    AGENTS = ("an agent, by a signed request", {Role.AGENT})
    CANCELLERS = ("an orchestrator, or an agent that forwards, by a signed request, or the operator",
                  {Role.ORCHESTRATOR, Role.AGENT})  # fmt: skip
    READERS = ("an orchestrator or an agent of the chain, by a signed request, or the operator",
               {Role.ORCHESTRATOR, Role.AGENT})  # fmt: skip
    OPERATOR = ("the operator, on the Unix socket", set(Role))  # `routes` refuses whoever signs
    ANYBODY = ("anybody, unsigned", set[Role]())

    def __init__(self, words: str, roles: set[Role]) -> None:
        self.words = words
        self.roles = frozenset(roles)


@dataclass(frozen=True, slots=True)
class Row:
    """One route. `gives`: type of a success by its status; a type of `bytes` is a page of its own media type."""

    method: str
    path: str
    handle: Handle
    who: Who
    gives: Mapping[int, Any]
    takes: type[Struct] | None = None
    limit_bytes: int = 0
    query: type[Struct] | None = None
    signs_answer: bool = False
    keeps_nonce: bool = False  # with what it records, in one transaction
    judge: Judge | None = None  # by which calls of one moment are worked on together; None: each has a thread
    media_type: str | None = None  # of a success that is no JSON document

    @property
    def is_signed(self) -> bool:
        """Whether the network's door asks for a signature."""
        return self.who is not Who.ANYBODY

    @property
    def is_stream(self) -> bool:
        """Whether a success goes on until somebody ends it."""
        return self.media_type == STREAM_TYPE


def get(
    path: str,
    handle: Handle,
    who: Who,
    gives: Any,
    *,
    query: type[Struct] | None = None,
    signs_answer: bool = False,
    media_type: str | None = None,
    also: Mapping[int, Any] = MappingProxyType({}),
) -> Row:
    """A route that reads. `also`: other statuses whose answers are no problem documents."""
    return Row(
        "GET",
        path,
        handle,
        who,
        {200: gives, **also},
        query=query,
        signs_answer=signs_answer,
        media_type=media_type,
    )


def post(
    path: str,
    handle: Handle,
    who: Who,
    takes: type[Struct],
    limit_bytes: int,
    gives: Any,
    *,
    signs_answer: bool = False,
    keeps_nonce: bool = False,
    judge: Judge | None = None,
) -> Row:
    """A route that takes something in: 202 the first time, 200 for the same again."""
    return Row(
        "POST",
        path,
        handle,
        who,
        {202: gives, 200: gives},
        takes=takes,
        limit_bytes=limit_bytes,
        signs_answer=signs_answer,
        keeps_nonce=keeps_nonce,
        judge=judge,
    )
