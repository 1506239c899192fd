"""Requests that prove who sent them: between Starlette and `trust/http_signatures.py`, for the agent's API and the devkit.

A handler is a plain function of a `Call` (or an `Upload`), run in a thread. Before it runs, in this order: the announced
length and type are the route's, the signature holds, the route admits the caller's role, the nonce is new, the body was read
and matches its digest. So nothing of a body is taken from somebody unknown.

Source: docs/contracts/http.md, "Signed requests" and "Signed answers".
"""

import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from agent.api.bodies import arrived, judged_body, read, spool
from agent.api.callers import Guard, admit, http_request_of
from agent.api.claims import Claim, Claims
from agent.api.flocks import Flock
from agent.api.problems import problem
from agent.api.threads import in_thread
from agent.domain.ids import Digest, digest_from_hex
from agent.domain.nonces import Nonce, replayed
from agent.errors import (
    AgentError,
    JustRestored,
    ReplayedRequest,
    TooLarge,
    WrongMediaType,
    WrongRole,
)
from agent.log import bound, get_logger
from agent.trust.http_signatures import (
    HttpAnswer,
    VerifiedRequest,
    content_digest,
    sign_answer,
)
from agent.trust.roster import Role

log = get_logger(__name__)

W = TypeVar("W")
R = TypeVar("R")

JSON_TYPE = "application/json"
BYTES_TYPE = "application/octet-stream"


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
    together: "Together[Any, Any] | None" = None,
) -> Endpoint:
    """An endpoint for requests with a body of at most `limit_bytes` held in memory; 0: a body is refused.

    `roles`: who may call. `signs_answer`: sign what is answered to a known caller, refusals too. `keeps_nonce`: the handler
    records the nonce with what it records, and says so in the call's claim. `together`: how calls of one moment whose body lies
    here already are worked on together; the handler serves the others.
    """
    claims = guard.claims if keeps_nonce else None
    gate = _Gate(guard, claims, roles, limit_bytes, media_type, signs_answer)

    async def endpoint(request: Request) -> Response:
        def handled(body: bytes, caller: VerifiedRequest, claim: Claim | None) -> Response:
            return handler(Call(caller, request, body, claim=claim))

        async def serve(caller: VerifiedRequest, claim: Claim | None) -> Response:
            body = await read(request, caller, limit_bytes)
            handle = partial(handled, body, caller, claim)
            return await in_thread(_settled, handle, claim, guard)

        def serve_at_once(pieces: Sequence[bytes], caller: VerifiedRequest, claim: Claim | None) -> Response:
            def judged() -> Response:
                return handled(judged_body(pieces, caller, limit_bytes), caller, claim)

            return _settled(judged, claim, guard)

        async def meet(pieces: Sequence[bytes]) -> _Met:
            if together is not None:
                return await together.flock.join(_InFlock(request, gate, pieces, together))
            return await in_thread(_meet, request, gate, partial(serve_at_once, pieces))

        return await _guarded(request, gate, serve, meet)

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

        gate = _Gate(guard, None, roles, limit_bytes, media_type, signs_answer)
        return await _guarded(request, gate, serve)

    return endpoint


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


Serve = Callable[[VerifiedRequest, Claim | None], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Together(Generic[W, R]):
    """How calls of one moment are worked on together: each judged, what they want recorded at once, each answered.

    `judge`: what a call wants recorded, or its answer where that is nothing. `answer`: of what came of it; it is given an error
    too, and raises it.
    """

    flock: Flock[W, R]
    judge: Callable[[Call], W | Response]
    answer: Callable[[Call, R | Exception], Response]


@dataclass(slots=True)
class _Met:
    """A known caller, and how far the request came: to a claim, to an answer, or to why it is refused."""

    caller: VerifiedRequest
    claim: Claim | None = None
    answer: Response | None = None
    refusal: AgentError | None = None


MeetAtOnce = Callable[[Sequence[bytes]], Awaitable[_Met]]


async def _guarded(
    request: Request, gate: _Gate, serve: Serve, meet_at_once: MeetAtOnce | None = None
) -> Response:
    """Serve a request that passes; answer a refusal of a known caller signed, where answers are.

    A body that lies here already is judged and handled in the same trip into a thread as the signature: by the same checks in
    the same order, and nothing waits for a stranger's body.
    """
    guard, caller = gate.guard, None
    try:
        _check_announced(request, gate.limit_bytes, gate.media_type)
        # Looking takes the body out of the request: only for who takes it so.
        pieces = None if meet_at_once is None else await arrived(request)
        if pieces is None or meet_at_once is None:
            met = await in_thread(_meet, request, gate, None)
        else:
            met = await meet_at_once(pieces)
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
        _check_caller(met, gate, now)
        if at_once is not None:
            with bound(trace=met.caller.trace):
                met.answer = at_once(met.caller, met.claim)
    except AgentError as refusal:
        met.refusal = refusal
    return met


def _check_caller(met: _Met, gate: _Gate, now: datetime) -> None:
    """Whether who signed may call here, and does so for the first time: in this order, whichever way the call goes on."""
    _check_role(met.caller, gate.roles)
    met.claim = _check_nonce(met.caller, gate.guard, gate.claims, now)


class _InFlock(Generic[W, R]):
    """A request that comes as far as it does among others: the same checks in the same order as of `_meet`."""

    def __init__(
        self, request: Request, gate: _Gate, pieces: Sequence[bytes], together: Together[W, R]
    ) -> None:
        self._request = request
        self._gate = gate
        self._pieces = pieces
        self._together = together
        self._met: _Met | None = None
        self._call: Call | None = None  # once it was judged, or answered
        self._answer: Response | None = None

    def begin(self) -> W | None:
        now = self._gate.guard.now()
        met = self._met = _Met(admit(self._request, self._gate.guard, now))
        _check_caller(met, self._gate, now)
        body = judged_body(self._pieces, met.caller, self._gate.limit_bytes)
        call = Call(met.caller, self._request, body, claim=met.claim)
        with bound(trace=met.caller.trace):
            judged = self._together.judge(call)
        self._call = call
        if not isinstance(judged, Response):
            return judged
        self._answer = judged
        return None

    def end(self, outcome: R | Exception | None) -> _Met:
        """Raises: what `admit` raises, of a caller whom nobody knows."""
        met = self._met
        if met is None:
            raise outcome if isinstance(outcome, Exception) else AssertionError(outcome)
        try:
            met.answer = _settled(partial(self._answered, outcome), met.claim, self._gate.guard)
        except AgentError as refusal:
            met.refusal = refusal
        return met

    def _answered(self, outcome: R | Exception | None) -> Response:
        if self._answer is not None:
            return self._answer
        if self._call is None or outcome is None:  # it was not judged
            raise outcome if isinstance(outcome, Exception) else AssertionError(outcome)
        return self._together.answer(self._call, outcome)


async def _served(met: _Met, gate: _Gate, serve: Serve) -> Response:
    """The answer to a request whose body is still to come."""
    try:
        with bound(trace=met.caller.trace):
            return await serve(met.caller, met.claim)
    finally:  # where the body did not come to its handler
        if met.claim is not None and gate.claims is not None and not met.claim.is_settled:
            await in_thread(gate.claims.settle, met.claim, gate.guard.now())


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
