"""Signed requests and signed answers (RFC 9421, RFC 9530): the rules by which a message counts as somebody's.

Which components and parameters must be there, how long a signature lives, whose key counts and what time it
is, is decided here; `http_signature_base.py` does the bytes. What lives elsewhere: the memory of nonces
(ledger), the headers of a web framework (api, ports), the body (its reader, with `ContentDigest` and
`check_body`).

Source: docs/contracts/http.md, "Signed requests" and "Signed answers".
"""

import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime, timedelta

from msgspec import Struct

from agent.domain.ids import KeyId, parse_keyid
from agent.domain.traces import HEADER as TRACEPARENT
from agent.domain.traces import TraceId, parse_traceparent
from agent.errors import (
    BadAnswer,
    BadRequestSignature,
    DigestMismatch,
    StaleRequest,
    TrustError,
    UnknownKey,
    UnsignedRequest,
)
from agent.trust.http_messages import (
    ContentDigest,
    Fields,
    HttpAnswer,
    HttpRequest,
    WireFields,
    announces_body,
    authority_of,
    content_digest,
    field_of,
    lines_of,
)
from agent.trust.http_signature_base import TAG, SoundSignature, sign_message, verify_signature
from agent.trust.keys import PublicKey, SigningKey
from agent.trust.roster import Role, Roster, RosterEntry

__all__ = [  # with the messages that a caller needs beside
    "ContentDigest",
    "HttpAnswer",
    "HttpRequest",
    "VerifiedAnswer",
    "VerifiedRequest",
    "WireFields",
    "authority_of",
    "check_body",
    "content_digest",
    "lines_of",
    "sign_answer",
    "sign_request",
    "verify_answer",
    "verify_request",
]

MAX_LIFETIME_S = 120
MAX_SIGNATURE_FIELD_BYTES = 8 << 10

REQUEST_COMPONENTS = ("@method", "@authority", "@path", "@query")
BODY_COMPONENTS = ("content-type", "content-length", "content-digest")
REQUEST_PARAMETERS = frozenset({"created", "expires", "nonce", "keyid", "alg", "tag"})
ANSWER_PARAMETERS = frozenset({"created", "keyid", "alg", "tag"})

_NONCE = re.compile(r"[A-Za-z0-9_-]{16,64}")
_LABEL = re.compile(r"([a-z*][a-z0-9_.*-]*)=")


class VerifiedRequest(Struct, frozen=True, kw_only=True):
    """Who sent a request, proven; (keyid, nonce) is to be kept by the ledger until `expires` plus the skew.

    `content_digest`: the signed field, which the body must match before it is acted on; None: no body. `trace`: of a
    well-formed `traceparent` that the signature covers; another one was put in by somebody on the way, and tells nothing.
    """

    keyid: KeyId
    role: Role
    nonce: str
    created: datetime
    expires: datetime
    content_digest: str | None
    trace: TraceId | None = None

    @property
    def has_digest(self) -> bool:
        """Whether a body was announced."""
        return self.content_digest is not None


class VerifiedAnswer(Struct, frozen=True):
    """Who answered, proven; the body must match `content_digest` before it is acted on."""

    keyid: KeyId
    content_digest: str


def check_body(verified: VerifiedRequest | VerifiedAnswer, digest: ContentDigest) -> None:
    """Refuse a body that is not the signed one; also one where none was announced. Raises: DigestMismatch."""
    if verified.content_digest is None:
        if digest.length:
            raise DigestMismatch("the request was signed without a body and has one")
    elif not digest.matches(verified.content_digest):
        raise DigestMismatch(f"Content-Digest does not match the body's {digest.length} bytes")


# ------------------------------------------------------------------ requests


def sign_request(
    request: HttpRequest, key: SigningKey, *, now: datetime, lifetime_s: int = 60, has_body: bool
) -> dict[str, str]:
    """The fields to add to this request: Signature-Input and Signature.

    With a body, Content-Type, Content-Length and Content-Digest must already be among its headers. A `traceparent` is covered.
    Raises: ValueError when the request is not one that a peer would accept.
    """
    if has_body != announces_body(request.headers):
        raise ValueError("the headers and `has_body` disagree on whether there is a body")
    return sign_message(
        request,
        key,
        components=_request_components(has_body) + _trace_component(request.headers),
        created=now,
        expires=now + timedelta(seconds=lifetime_s),
        nonce=secrets.token_urlsafe(18),
    )


def verify_request(
    request: HttpRequest, roster: Roster, *, now: datetime, skew: timedelta, authorities: Collection[str]
) -> VerifiedRequest:
    """Who sent this request, when each of these holds:

    (1) it has one line each of Signature-Input and Signature, with one and the same label;
    (2) the key is in the roster and valid now;
    (3) the Ed25519 signature holds over the components it names;
    (4) its parameters are exactly created, expires, nonce, keyid, alg and tag; tag and nonce are well formed;
    (5) every required component is covered, those of a body when the headers speak of one, and stands
        once; nothing is sent with Transfer-Encoding;
    (6) it lives 120 s at most, was not made in the future and has not run out, give or take the skew;
    (7) it is an https request to one of `authorities` (as `authority_of` writes them).

    The body is not looked at (`check_body` after it was streamed), nor is the nonce (the ledger's memory).
    Raises: UnsignedRequest, BadRequestSignature, StaleRequest, UnknownKey, KeyNotValid.
    """
    # (1) one signature
    _check_signature_fields(request.headers)
    # (2) whose key, (3) the signature itself
    signature, entry = _verify_by_roster(request, roster, now)
    # (4) parameters
    nonce = _check_parameters(signature, REQUEST_PARAMETERS)
    # (5) components
    has_body = announces_body(request.headers)
    _check_covered(signature, _request_components(has_body), request.headers)
    if lines_of(request.headers, "transfer-encoding"):
        raise BadRequestSignature("a signed request has a Content-Length and no Transfer-Encoding")
    # (6) time
    created, expires = _check_lifetime(signature.parameters, now, skew)
    # (7) addressee
    _check_addressee(signature.components['"@authority"'], request.url, authorities)
    return VerifiedRequest(
        keyid=entry.keyid,
        role=entry.role,
        nonce=nonce,
        created=created,
        expires=expires,
        content_digest=field_of(request.headers, "content-digest") if has_body else None,
        trace=_trace_in(signature, request.headers),
    )


def _request_components(has_body: bool) -> tuple[str, ...]:
    names = REQUEST_COMPONENTS + (BODY_COMPONENTS if has_body else ())
    return tuple(f'"{name}"' for name in names)


def _trace_component(headers: Fields) -> tuple[str, ...]:
    return (f'"{TRACEPARENT}"',) if lines_of(headers, TRACEPARENT) else ()


def _trace_in(signature: SoundSignature, headers: Fields) -> TraceId | None:
    """The trace id that the signer told; None for a field that is not covered, stands twice or is malformed."""
    if not signature.components.keys() & set(_trace_component(headers)):
        return None
    return parse_traceparent(field_of(headers, TRACEPARENT) or "")


def _check_lifetime(
    parameters: Mapping[str, int | str], now: datetime, skew: timedelta
) -> tuple[datetime, datetime]:
    """(created, expires). Raises: StaleRequest."""
    created_s, expires_s = int(parameters["created"]), int(parameters["expires"])
    now_s, skew_s = now.timestamp(), skew.total_seconds()
    if not 0 < expires_s - created_s <= MAX_LIFETIME_S:
        raise StaleRequest(f"a signature lives 1 to {MAX_LIFETIME_S} s, this one {expires_s - created_s} s")
    if created_s > now_s + skew_s:
        raise StaleRequest("the signature was made in the future")
    if expires_s <= now_s - skew_s:
        raise StaleRequest("the signature has run out")
    return datetime.fromtimestamp(created_s, UTC), datetime.fromtimestamp(expires_s, UTC)


def _check_addressee(authority: str, url: str, authorities: Collection[str]) -> None:
    if not url.startswith("https://"):
        raise BadRequestSignature("the request's URL is not an https one")
    if authority not in authorities:
        raise BadRequestSignature(f"the request is addressed to {authority[:120]!r}, not to this host")


# ------------------------------------------------------------------ answers


def sign_answer(
    answer: HttpAnswer, request: HttpRequest, key: SigningKey, *, now: datetime
) -> dict[str, str]:
    """The fields to add to this answer: Signature-Input and Signature, bound to the request it answers.

    The answer's headers must hold Content-Digest, also for an empty body. Raises: ValueError.
    """
    return sign_message(request, key, answer=answer, components=_answer_components(request), created=now)


def verify_answer(
    answer: HttpAnswer,
    request: HttpRequest,
    roster: Roster,
    *,
    expected: KeyId,
    now: datetime,
    skew: timedelta,
) -> VerifiedAnswer:
    """Refuse an answer that `expected` did not sign for this request (headers as sent, signature and all).

    (1) one line each of Signature-Input and Signature, as in a request;
    (2) the key is in the roster, valid now, and the expected one or another of the same agent;
    (3) the Ed25519 signature holds over the components it names;
    (4) its parameters are exactly created, keyid, alg and tag;
    (5) the status, Content-Digest and the request's signature are covered;
    (6) it was made 120 s ago at most and not in the future, give or take the skew.

    The body is not looked at: `check_body` after it was streamed. Raises: BadAnswer.
    """
    try:
        return _verify_answer(answer, request, roster, expected, now, skew)
    except (TrustError, ValueError) as cause:
        raise BadAnswer(f"the answer of {expected[:16]} is refused: {cause}") from cause


def _verify_answer(
    answer: HttpAnswer,
    request: HttpRequest,
    roster: Roster,
    expected: KeyId,
    now: datetime,
    skew: timedelta,
) -> VerifiedAnswer:
    # (1) one signature
    _check_signature_fields(answer.headers)
    # (2) whose key, (3) the signature itself
    signature, entry = _verify_by_roster(request, roster, now, answer=answer)
    if not roster.is_same_agent(entry.keyid, expected):
        raise BadRequestSignature(f"it is signed by {entry.keyid[:16]}")
    # (4) parameters
    _check_parameters(signature, ANSWER_PARAMETERS)
    # (5) components
    _check_covered(signature, _answer_components(request), answer.headers)
    # (6) time
    age_s = now.timestamp() - int(signature.parameters["created"])
    if not -skew.total_seconds() <= age_s <= MAX_LIFETIME_S + skew.total_seconds():
        raise StaleRequest(f"its signature is {age_s:.0f} s old")
    return VerifiedAnswer(entry.keyid, signature.components['"content-digest"'])


def _answer_components(request: HttpRequest) -> tuple[str, ...]:
    """What an answer's signature covers; the request's signature by its label (RFC 9421 section 2.4)."""
    label = _LABEL.match(field_of(request.headers, "signature") or "")
    if label is None:
        raise ValueError("the request carries no signature to answer to")
    return '"@status"', '"content-digest"', f'"signature";req;key="{label[1]}"'


# ------------------------------------------------------------------ what both have in common


def _check_signature_fields(headers: Fields) -> None:
    for name in ("signature-input", "signature"):
        lines = lines_of(headers, name)
        if not lines:
            raise UnsignedRequest(f"the field {name} is missing")
        if len(lines) > 1 or len(lines[0]) > MAX_SIGNATURE_FIELD_BYTES:
            raise BadRequestSignature(f"the field {name} must stand once and within 8 KiB")


def _verify_by_roster(
    request: HttpRequest, roster: Roster, now: datetime, *, answer: HttpAnswer | None = None
) -> tuple[SoundSignature, RosterEntry]:
    """The signature that holds, with the roster's entry of its key."""
    found: list[RosterEntry] = []
    refusals: list[TrustError] = []

    def find(keyid: str) -> PublicKey | None:
        try:
            found.append(roster.require(parse_keyid(keyid), role=None, at=now))
        except ValueError:
            refusals.append(UnknownKey("the signature's keyid is not a key id"))
            return None
        except TrustError as refusal:
            refusals.append(refusal)
            return None
        return found[0].public_key

    try:
        return verify_signature(request, find, answer=answer), found[0]
    except BadRequestSignature:
        if refusals:  # why the library got no key; it would swallow that
            raise refusals[0] from None
        raise


def _check_parameters(signature: SoundSignature, expected: frozenset[str]) -> str:
    """The nonce, when one is expected."""
    told = signature.parameters
    if told.keys() != expected:
        raise BadRequestSignature(f"it lacks or adds parameters: {', '.join(sorted(told.keys() ^ expected))}")
    if told["tag"] != TAG:
        raise BadRequestSignature(f"the signature's tag is not {TAG}")
    nonce = str(told.get("nonce", ""))
    if "nonce" in expected and not _NONCE.fullmatch(nonce):
        raise BadRequestSignature("the nonce is not 16 to 64 characters of A-Z a-z 0-9 _ -")
    return nonce


def _check_covered(signature: SoundSignature, components: Iterable[str], headers: Fields) -> None:
    for component in components:
        if component not in signature.components:
            raise BadRequestSignature(f"the signature does not cover {component}")
        name = component.strip('"')
        if name in BODY_COMPONENTS and len(lines_of(headers, name)) != 1:
            raise BadRequestSignature(f"the field {name} must stand once")
