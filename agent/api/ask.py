"""What a handler is asked, by whom: a plain value, the same from both doors, so that handlers need no request."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import msgspec
from starlette.requests import Request

from agent.api.claims import Claim
from agent.domain.ids import Digest, OrderId, parse_digest, parse_order_id
from agent.domain.nonces import Nonce
from agent.domain.prepared import prepared
from agent.domain.traces import HEADER, TraceId, parse_traceparent
from agent.errors import BadQuery, NotFound, UnsignedRequest
from agent.trust.http_signatures import VerifiedRequest

Q = TypeVar("Q", bound=msgspec.Struct)

MAX_QUERY_FIELDS = 50


class Unsigned(Enum):
    """Who sent a request that nobody signed."""

    OPERATOR = "operator"  # came by the Unix socket
    STRANGER = "stranger"


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `caller` is who signed it; the operator and strangers sign nothing.

    `uid`: the user at the other end of the operator's socket; None where the kernel does not tell. `trace`: the one that
    the caller gave and signed; the operator signs nothing. `last_event_id`: of the stream that this request takes up again;
    nobody signs it, and it only says where to begin. `claim`: the request's nonce, for a handler that keeps it with what it
    records.
    """

    caller: VerifiedRequest | Unsigned
    path: Mapping[str, str]
    query: tuple[tuple[str, str], ...]
    body: bytes = b""
    uid: int | None = None
    trace: TraceId | None = None
    last_event_id: str | None = None
    claim: Claim | None = None

    @classmethod
    def of(
        cls,
        caller: VerifiedRequest | Unsigned,
        request: Request,
        body: bytes = b"",
        claim: Claim | None = None,
    ) -> "Ask":
        """The request as its handler sees it."""
        path = {name: str(value) for name, value in request.path_params.items()}
        uid = request.scope.get("state", {}).get("peer_uid")
        query = tuple(request.query_params.multi_items())
        last = request.headers.get("last-event-id")
        return cls(caller, path, query, body, uid, _trace(caller, request), last, claim)

    @property
    def nonce(self) -> Nonce | None:
        """What is to be recorded with what the handler records; None where it is kept already."""
        return None if self.claim is None else self.claim.nonce

    @property
    def is_operator(self) -> bool:
        return self.caller is Unsigned.OPERATOR

    @property
    def signer(self) -> VerifiedRequest | None:
        """Who signed it; None is the operator. Raises: UnsignedRequest for a stranger."""
        if isinstance(self.caller, VerifiedRequest):
            return self.caller
        if self.caller is Unsigned.STRANGER:
            raise UnsignedRequest("this call is answered to signed requests only")
        return None

    @property
    def order_id(self) -> OrderId:
        """The order that the path names. Raises: NotFound when it cannot be one."""
        try:
            return parse_order_id(self.path["id"])
        except ValueError as cause:
            raise NotFound(f"there is no order {self.path['id'][:80]!r}") from cause

    @property
    def image(self) -> Digest:
        """The image that the path names. Raises: NotFound when it cannot be one."""
        try:
            return parse_digest(self.path["digest"])
        except ValueError as cause:
            raise NotFound(f"there is no image {self.path['digest'][:80]!r}") from cause

    def query_as(self, kind: type[Q]) -> Q:
        """The query as the fields of `kind`; a field that holds a tuple may stand several times. Raises: BadQuery."""
        if len(self.query) > MAX_QUERY_FIELDS:
            raise BadQuery(f"the query has more than {MAX_QUERY_FIELDS} fields")
        told: dict[str, list[str]] = {}
        for name, value in self.query:
            told.setdefault(name, []).append(value)
        lists = {field.name for field in msgspec.structs.fields(kind) if field.default == ()}
        twice = [name for name, values in told.items() if len(values) > 1 and name not in lists]
        if twice:
            raise BadQuery(f"`{twice[0][:80]}` stands twice in the query")
        values = {name: given if name in lists else given[0] for name, given in told.items()}
        try:
            return msgspec.convert(values, prepared(kind), strict=False)
        except msgspec.ValidationError as cause:
            raise BadQuery(f"the query: {cause}") from cause


def _trace(caller: VerifiedRequest | Unsigned, request: Request) -> TraceId | None:
    if isinstance(caller, VerifiedRequest):
        return caller.trace
    told = request.headers.getlist(HEADER)
    return parse_traceparent(told[0]) if caller is Unsigned.OPERATOR and len(told) == 1 else None


def no_query(ask: Ask) -> None:
    """Refuse a query where none is known: a misspelt filter must not widen an answer. Raises: BadQuery."""
    if ask.query:
        raise BadQuery(f"this call takes no query, not even {ask.query[0][0][:80]!r}")
