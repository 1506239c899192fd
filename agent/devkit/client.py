"""Signed HTTPS for people at a desk: owners who upload datasets, orchestrators that send orders and ask where data lie.

The agent's own client is `agent/ports/https.py`; this one is what another program needs to speak the contracts, and no more.
"""

import secrets
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import httpx

from agent.domain.strict_json import parse
from agent.domain.traces import HEADER, TraceId, traceparent
from agent.errors import BadAnswer, DigestMismatch, OrderError, PeerRefused, PeerUnavailable
from agent.trust.http_signatures import (
    ContentDigest,
    HttpAnswer,
    HttpRequest,
    check_body,
    sign_request,
    verify_answer,
)
from agent.trust.keys import SigningKey
from agent.trust.roster import Roster, RosterEntry

MAX_ANSWER_BYTES = 32 << 20
PIECE_BYTES = 1 << 20
TIMEOUT_S = 30.0
IDLE_S = 4.0  # a connection is kept for: less than servers keep theirs


class Connections:
    """Connections that stay open between calls, by address and authority. Safe to use from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[tuple[str | None, str | None], httpx.Client] = {}

    def of(self, to: RosterEntry) -> httpx.Client:
        """Those to the holder of this entry."""
        with self._lock:
            key = to.address, to.tls_ca
            if key not in self._open:
                self._open[key] = _http(to)
            return self._open[key]

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            for http in self._open.values():
                http.close()
            self._open.clear()


@dataclass(frozen=True, slots=True)
class Client:
    """Calls to others of the roster, signed with one key. `connections`: where they are kept; else each call opens its own."""

    key: SigningKey
    roster: Callable[[], Roster]
    now: Callable[[], datetime]
    skew: timedelta = timedelta(seconds=30)
    connections: Connections | None = field(default=None, repr=False)

    @contextmanager
    def keeping(self) -> Iterator["Client"]:
        """The same, with its connections kept while the block runs: for who calls often."""
        connections = Connections()
        try:
            yield replace(self, connections=connections)
        finally:
            connections.close()

    def send(
        self,
        to: RosterEntry,
        method: str,
        target: str,
        body: bytes | Path | None = None,
        *,
        is_answer_signed: bool,
        trace: TraceId | None = None,
    ) -> bytes:
        """The body of a 2xx answer. `target`: path and query. `body`: JSON, or a file that is streamed. `trace`: of the call.

        Raises: PeerRefused with the other side's code, PeerUnavailable; BadAnswer for a 2xx that should be signed and is not.
        """
        base = address_of(to)
        try:
            with self._opened(to) as http, _opened(body) as content:
                fields = _fields_of(body)
                if trace is not None:  # before it is signed: one that is not covered counts for nothing
                    fields[HEADER] = traceparent(trace, secrets.token_hex(8))
                request = http.build_request(method, base + target, headers=fields, content=content)
                sent = self._sign(request, has_body=body is not None)
                response = http.send(request)
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as cause:
            raise PeerUnavailable(f"{to.name} at {base}: {cause}") from cause
        if not response.is_success:
            raise _refusal(to, response)
        if is_answer_signed:
            self._verify(to, sent, response)
        return response.content

    @contextmanager
    def _opened(self, to: RosterEntry) -> Iterator[httpx.Client]:
        if self.connections is not None:
            yield self.connections.of(to)
        else:
            with _http(to) as http:
                yield http

    def _sign(self, request: httpx.Request, *, has_body: bool) -> HttpRequest:
        url = f"https://{request.headers['host']}{request.url.raw_path.decode('ascii')}"
        plain = HttpRequest(request.method, url, tuple(request.headers.multi_items()))
        request.headers.update(sign_request(plain, self.key, now=self.now(), has_body=has_body))
        return HttpRequest(request.method, url, tuple(request.headers.multi_items()))

    def _verify(self, to: RosterEntry, sent: HttpRequest, response: httpx.Response) -> None:
        verified = verify_answer(
            HttpAnswer(response.status_code, tuple(response.headers.multi_items())),
            sent,
            self.roster(),
            expected=to.keyid,
            now=self.now(),
            skew=self.skew,
        )
        digest = ContentDigest()
        digest.update(response.content)
        try:
            check_body(verified, digest)
        except DigestMismatch as cause:  # of the other side's answer, not of what we were asked
            raise BadAnswer(f"the answer of {to.name} is refused: {cause.detail}") from cause


def address_of(entry: RosterEntry) -> str:
    """The base URL at which the holder of this entry answers in its own role. Raises: PeerUnavailable."""
    if entry.address is None:
        raise PeerUnavailable(f"the roster gives no address for {entry.name}")
    return entry.address


def _http(to: RosterEntry) -> httpx.Client:
    context = ssl.create_default_context(cadata=to.tls_ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return httpx.Client(
        verify=context,
        trust_env=False,
        timeout=TIMEOUT_S,
        limits=httpx.Limits(keepalive_expiry=IDLE_S),
        headers={"Accept-Encoding": "identity"},
    )


@contextmanager
def _opened(body: bytes | Path | None) -> Iterator[bytes | BinaryIO | None]:
    if isinstance(body, Path):
        with body.open("rb") as file:
            yield file
    else:
        yield body


def _fields_of(body: bytes | Path | None) -> dict[str, str]:
    """The fields that a request with this body needs before it can be signed. A file is read once for its digest."""
    if body is None:
        return {}
    digest = ContentDigest()
    if isinstance(body, bytes):
        digest.update(body)
    else:
        with body.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
    kind = "application/json" if isinstance(body, bytes) else "application/octet-stream"
    return {"Content-Type": kind, "Content-Length": str(digest.length), "Content-Digest": digest.header}


def _refusal(to: RosterEntry, response: httpx.Response) -> PeerRefused | PeerUnavailable:
    try:
        told = parse(response.content, limit_bytes=MAX_ANSWER_BYTES, what="the answer")
    except OrderError:
        told = None
    code = told.get("code") if isinstance(told, dict) else None
    detail = told.get("detail") if isinstance(told, dict) else None
    message = f"{to.name} answers {response.status_code} ({code}): {detail}"
    return PeerRefused(message, str(code)) if 400 <= response.status_code < 500 else PeerUnavailable(message)
