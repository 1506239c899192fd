"""Who sent a request: its head as it came over the wire, judged by the roster.

The role, the nonce and the body are judged by `signed_requests.py`.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from starlette.requests import Request

from agent.api.claims import Claims, RememberNonce
from agent.domain.ids import KeyId
from agent.errors import AgentError, BadRequestSignature
from agent.trust.http_signatures import (
    HttpRequest,
    VerifiedRequest,
    WireFields,
    lines_of,
    verify_request,
)
from agent.trust.keys import SigningKey
from agent.trust.roster import Roster

# Pasted into one URL, for that is what is signed: neither may hold what begins the next part of a URL.
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_TARGET = re.compile(r"/[!-\"$-~]*")  # visible ASCII without '#'

NoteRefusal = Callable[[AgentError, str, str, KeyId | None], None]
"""(error, method, path, who): is told of each refusal; `who` is None while nobody's signature was verified."""


@dataclass(frozen=True, slots=True)
class Guard:
    """What a server needs to know of its callers, and of itself.

    `roster` and `authorities` are asked for each request, so that a reload is seen. `authorities`: host[:port] under which
    this server is called, as `authority_of` writes them. `key`: signs the answers that the contract wants signed.
    `signed_after`: what was signed at this moment or before is refused, for the memory of nonces begins after it; None: it
    never was lost. `claims`: for routes that keep their nonce with what they record; without it every nonce is kept first.
    """

    roster: Callable[[], Roster]
    authorities: Callable[[], Collection[str]]
    key: SigningKey
    now: Callable[[], datetime]
    skew: timedelta
    remember_nonce: RememberNonce
    note_refusal: NoteRefusal = lambda *_: None
    signed_after: datetime | None = None
    claims: Claims | None = None


def http_request_of(request: Request) -> HttpRequest:
    """The request as it came over the wire, for `trust/`.

    Raises: BadRequestSignature when it does not name one host, or its target is no path with a query.
    """
    raw = request.headers.raw
    headers = WireFields((name.decode("latin-1"), value.decode("latin-1")) for name, value in raw)
    hosts = lines_of(headers, "host")
    if len(hosts) != 1:
        raise BadRequestSignature("the field host must stand once")
    if _HOST.fullmatch(hosts[0]) is None:
        raise BadRequestSignature(f"the field host is no host[:port]: {hosts[0][:120]!r}")
    query = request.scope["query_string"].decode("latin-1")
    target = request.scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
    if _TARGET.fullmatch(target) is None:
        raise BadRequestSignature(f"the target is no path with a query: {target[:120]!r}")
    return HttpRequest(request.method, f"https://{hosts[0]}{target}", headers)


def admit(request: Request, guard: Guard, now: datetime) -> VerifiedRequest:
    """Who sent this request; the nonce and the body are not judged yet.

    Raises: UnsignedRequest, BadRequestSignature, StaleRequest, UnknownKey, KeyNotValid.
    """
    try:
        return verify_request(
            http_request_of(request),
            guard.roster(),
            now=now,
            skew=guard.skew,
            authorities=guard.authorities(),
        )
    except ValueError as cause:  # a Host field that is no host
        raise BadRequestSignature(f"the request cannot be read as signed: {cause}") from cause
