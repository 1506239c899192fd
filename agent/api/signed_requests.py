"""Requests that prove who sent them: between Starlette and `trust/http_signatures.py`, for the agent's API and the devkit.

A handler is a plain function of a `Call` (or an `Upload`), run in a thread. Before it runs, in this order: the announced
length and type are the route's, the signature holds, the route admits the caller's role, the nonce is new, the body was read
and matches its digest. So nothing of a body is taken from somebody unknown.

Source: docs/contracts/http.md, "Signed requests" and "Signed answers".
"""

import re
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from agent.api.bodies import arrived, judged_body, read, spool
from agent.api.claims import Claim, Claims, RememberNonce
from agent.api.problems import problem
from agent.api.threads import ANY, OF_DISK, in_thread
from agent.domain.ids import Digest, KeyId, digest_from_hex
from agent.domain.nonces import Nonce, replayed
from agent.errors import (
    AgentError,
    BadRequestSignature,
    JustRestored,
    ReplayedRequest,
    TooLarge,
    WrongMediaType,
    WrongRole,
)
from agent.log import bound, get_logger
from agent.trust.http_signatures import (
    HttpAnswer,
    HttpRequest,
    VerifiedRequest,
    content_digest,
    sign_answer,
    verify_request,
)
from agent.trust.keys import SigningKey
from agent.trust.roster import Role, Roster

log = get_logger(__name__)

# Pasted into one URL, for that is what is signed: neither may hold what begins the next part of a URL.
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_TARGET = re.compile(r"/[!-\"$-~]*")  # visible ASCII without '#'

JSON_TYPE = "application/json"
BYTES_TYPE = "application/octet-stream"

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


@dataclass(frozen=True, slots=True)
class Call:
    """A request whose sender, digest and freshness were verified. `claim`: its nonce, where the handler may keep it."""

    caller: VerifiedRequest
    request: Request
    body: bytes
    claim: Claim | None = field(default=None, kw_only=True)

    def path(self, name: str) -> str:
        """A parameter of the path, as text."""
        return str(self.request.path_params[name])

    def query(self, name: str) -> str | None:
        """A parameter of the query; None when it is absent."""
        return self.request.query_params.get(name)


@dataclass(frozen=True, slots=True)
class Upload(Call):
    """A request whose body lies in `file`, whole and with this digest. It is deleted after the handler, unless moved away."""

    file: Path
    size_bytes: int
    digest: Digest


Endpoint = Callable[[Request], Awaitable[Response]]


def signed(
    handler: Callable[[Call], Response],
    guard: Guard,
    *,
    roles: Collection[Role] = frozenset(Role),
    limit_bytes: int = 0,
    media_type: str = JSON_TYPE,
    signs_answer: bool = False,
    keeps_nonce: bool = False,
    is_local: bool = False,
) -> Endpoint:
    """An endpoint for requests with a body of at most `limit_bytes` held in memory; 0: a body is refused.

    `roles`: who may call. `signs_answer`: sign what is answered to a known caller, refusals too. `keeps_nonce`: the handler
    records the nonce with what it records, and says so in the call's claim. `is_local`: it waits for nothing but this host's
    disk.
    """
    claims, pool = guard.claims if keeps_nonce else None, OF_DISK if is_local else ANY
    gate = _Gate(guard, claims, roles, limit_bytes, media_type, signs_answer, pool)

    async def endpoint(request: Request) -> Response:
        def handled(body: bytes, caller: VerifiedRequest, claim: Claim | None) -> Response:
            return handler(Call(caller, request, body, claim=claim))

        async def serve(caller: VerifiedRequest, claim: Claim | None) -> Response:
            body = await read(request, caller, limit_bytes)
            handle = partial(handled, body, caller, claim)
            return await in_thread(_settled, handle, claim, guard, pool=gate.pool)

        def serve_at_once(pieces: Sequence[bytes], caller: VerifiedRequest, claim: Claim | None) -> Response:
            def judged() -> Response:
                return handled(judged_body(pieces, caller, limit_bytes), caller, claim)

            return _settled(judged, claim, guard)

        return await _guarded(request, gate, serve, serve_at_once)

    return endpoint


def _settled(handle: Callable[[], Response], claim: Claim | None, guard: Guard) -> Response:
    """What is answered, once the nonce is kept. What the handler raises is told, also where the nonce was kept before that."""
    if claim is None or guard.claims is None:
        return handle()
    is_answered = False
    try:
        answer = handle()
        is_answered = True
    finally:
        with nullcontext() if is_answered else suppress(ReplayedRequest):
            guard.claims.settle(claim, guard.now())
    return answer


def uploaded(
    handler: Callable[[Upload], Response],
    guard: Guard,
    *,
    folder: Path,
    limit_bytes: int,
    roles: Collection[Role] = frozenset(Role),
    media_type: str = BYTES_TYPE,
    signs_answer: bool = False,
) -> Endpoint:
    """An endpoint for big bodies: streamed to a file in `folder`, hashed on the way, handled once the digest matched."""

    async def endpoint(request: Request) -> Response:
        async def serve(caller: VerifiedRequest, _claim: Claim | None) -> Response:
            file = folder / f".upload-{secrets.token_hex(8)}"
            try:
                seen = await spool(request, caller, file, limit_bytes)
                upload = Upload(caller, request, b"", file, seen.length, digest_from_hex(seen.hex_digest))
                return await run_in_threadpool(handler, upload)
            finally:
                await run_in_threadpool(partial(file.unlink, missing_ok=True))

        gate = _Gate(guard, None, roles, limit_bytes, media_type, signs_answer, ANY)
        return await _guarded(request, gate, serve)

    return endpoint


def http_request_of(request: Request) -> HttpRequest:
    """The request as it came over the wire, for `trust/`.

    Raises: BadRequestSignature when it does not name one host, or its target is no path with a query.
    """
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw)
    hosts = [value for name, value in headers if name == "host"]
    if len(hosts) != 1:
        raise BadRequestSignature("the field host must stand once")
    if _HOST.fullmatch(hosts[0]) is None:
        raise BadRequestSignature(f"the field host is no host[:port]: {hosts[0][:120]!r}")
    query = request.scope["query_string"].decode("latin-1")
    target = request.scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
    if _TARGET.fullmatch(target) is None:
        raise BadRequestSignature(f"the target is no path with a query: {target[:120]!r}")
    return HttpRequest(request.method, f"https://{hosts[0]}{target}", headers)


# ------------------------------------------------------------------ the order of the checks


@dataclass(frozen=True, slots=True)
class _Gate:
    """What one route asks of a request. `claims`: where its nonce is kept with what it records."""

    guard: Guard
    claims: Claims | None
    roles: Collection[Role]
    limit_bytes: int
    media_type: str
    signs_answer: bool
    pool: ThreadPoolExecutor


Serve = Callable[[VerifiedRequest, Claim | None], Awaitable[Response]]
ServeAtOnce = Callable[[Sequence[bytes], VerifiedRequest, Claim | None], Response]


@dataclass(slots=True)
class _Met:
    """A known caller, and how far the request came: to a claim, to an answer, or to why it is refused."""

    caller: VerifiedRequest
    claim: Claim | None = None
    answer: Response | None = None
    refusal: AgentError | None = None


async def _guarded(
    request: Request, gate: _Gate, serve: Serve, serve_at_once: ServeAtOnce | None = None
) -> Response:
    """Serve a request that passes; answer a refusal of a known caller signed, where answers are.

    A body that lies here already is judged and handled in the same trip into a thread as the signature: by the same checks in
    the same order, and nothing waits for a stranger's body.
    """
    guard, caller = gate.guard, None
    try:
        _check_announced(request, gate.limit_bytes, gate.media_type)
        # Looking takes the body out of the request: only for who takes it so.
        pieces = None if serve_at_once is None else await arrived(request)
        at_once = None if pieces is None or serve_at_once is None else partial(serve_at_once, pieces)
        met = await in_thread(_meet, request, gate, at_once, pool=gate.pool)
        caller = met.caller
        if met.refusal is not None:
            raise met.refusal
        answer = met.answer or await _served(met, gate, serve)
    except AgentError as error:
        who, trace = (None, None) if caller is None else (caller.keyid, caller.trace)
        method, path = request.method, request.scope["path"]
        with bound(trace=trace):
            log.warning(
                "request.refused", method=method, path=path, who=who, code=error.code, detail=error.detail
            )
        await in_thread(guard.note_refusal, error, method, path, who)
        answer = problem(error)
    if gate.signs_answer and (caller is not None or await in_thread(_is_known, request, guard)):
        _sign(answer, request, guard)
    return answer


def _meet(
    request: Request, gate: _Gate, at_once: Callable[[VerifiedRequest, Claim | None], Response] | None
) -> _Met:
    """Who sent this request, and how far it comes in this trip.

    The signature and the nonce are judged at one moment: none runs out between the two, and with it the memory of the other.
    Raises: what `admit` raises, of a caller whom nobody knows.
    """
    now = gate.guard.now()
    met = _Met(admit(request, gate.guard, now))
    try:
        _check_role(met.caller, gate.roles)
        met.claim = _check_nonce(met.caller, gate.guard, gate.claims, now)
        if at_once is not None:
            with bound(trace=met.caller.trace):
                met.answer = at_once(met.caller, met.claim)
    except AgentError as refusal:
        met.refusal = refusal
    return met


async def _served(met: _Met, gate: _Gate, serve: Serve) -> Response:
    """The answer to a request whose body is still to come."""
    try:
        with bound(trace=met.caller.trace):
            return await serve(met.caller, met.claim)
    finally:  # where the body did not come to its handler
        if met.claim is not None and gate.claims is not None and not met.claim.is_settled:
            await in_thread(gate.claims.settle, met.claim, gate.guard.now())


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


def _is_known(request: Request, guard: Guard) -> bool:
    """Whether a request that was refused by its announced length or type comes from a caller who can check a signed refusal."""
    try:
        admit(request, guard, guard.now())
    except AgentError:
        return False
    return True


def _check_announced(request: Request, limit_bytes: int, media_type: str) -> None:
    length = _announced_length(request)
    if length > limit_bytes:
        raise TooLarge(f"the body has {length} bytes, the limit is {limit_bytes}")
    told = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if length and told != media_type:
        raise WrongMediaType(f"the body is {told[:80] or 'of no type'}, not {media_type}")


def _announced_length(request: Request) -> int:
    """Content-Length; 0 when there is none. The protocol refused what is no number, the signature asks for it with a body."""
    text = request.headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() else 0


def _check_role(caller: VerifiedRequest, roles: Collection[Role]) -> None:
    if caller.role not in roles:
        raise WrongRole(f"{caller.keyid} is no {' or '.join(sorted(roles))}, but {caller.role}")


def _check_nonce(caller: VerifiedRequest, guard: Guard, claims: Claims | None, now: datetime) -> Claim | None:
    if guard.signed_after is not None and caller.created <= guard.signed_after:
        raise JustRestored(
            f"signed at {caller.created.isoformat()}; this agent was restored and takes what is signed after "
            f"{guard.signed_after.isoformat(timespec='seconds')}"
        )
    keep_until = caller.expires + guard.skew
    if claims is not None:
        return claims.take(Nonce(keyid=caller.keyid, text=caller.nonce, keep_until=keep_until), now)
    if not guard.remember_nonce(caller.keyid, caller.nonce, keep_until, now):
        raise replayed()
    return None


def _sign(answer: Response, request: Request, guard: Guard) -> None:
    answer.headers["Content-Digest"] = content_digest(bytes(answer.body))
    told = HttpAnswer(answer.status_code, tuple(answer.headers.items()))
    answer.headers.update(sign_answer(told, http_request_of(request), guard.key, now=guard.now()))
