"""Signed HTTPS to others of the roster: what the adapters of storage, orchestrators and peers share. No route is known here.

TLS 1.3 by the entry's own authority; redirects are not followed; the environment's proxies are ignored; every call has a
connect, a read and a total timeout, and every answer a size limit. `_translated` alone makes foreign exceptions ours.

One rule for refusals: **a refusal is final only when who refuses signed it.** An unsigned 4xx may come from anything between
here and there, so it counts as "not available" and is tried again.
"""

import secrets
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import BinaryIO

import httpx

from agent import __version__
from agent.domain.ids import KeyId
from agent.domain.reports import SignedRefusal
from agent.domain.strict_json import encode, parse
from agent.domain.traces import HEADER, TraceId, traceparent
from agent.errors import BadAnswer, DigestMismatch, OrderError, OutsideError, TrustError
from agent.log import bound_trace
from agent.ports.http_dates import moment, rest_asked
from agent.ports.https_body import RawBody
from agent.ports.punctual import PunctualSocket, deadline
from agent.trust.http_messages import field_of
from agent.trust.http_signatures import (
    ContentDigest,
    HttpAnswer,
    HttpRequest,
    check_body,
    content_digest,
    sign_request,
    verify_answer,
)
from agent.trust.keys import SigningKey
from agent.trust.roster import Roster, RosterEntry

MAX_PROBLEM_BYTES = 16 << 10
CONNECTIONS_PER_PEER = 16
KEEP_ALIVE_S = 15.0  # shorter than a server's, so that it is we who close an idle connection

JSON_TYPE = "application/json"
BYTES_TYPE = "application/octet-stream"

_TRANSIENT = frozenset({408, 421, 425, 429})  # 4xx that say nothing about what was asked
_RESTING = frozenset({429, 503})  # whose Retry-After is heard


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds: for a connection, for the next bytes, for a call, for a call that moves a big body."""

    connect_s: float = 10.0
    read_s: float = 30.0
    total_s: float = 120.0
    transfer_s: float = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Identity:
    """Who calls, and how it judges answers. `roster` is asked for each call, so that a reload is seen."""

    key: SigningKey
    roster: Callable[[], Roster]
    now: Callable[[], datetime]
    skew: timedelta = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Peer:
    """Somebody to call: whose key signs its answers, its base URL, and the authorities (PEM) its TLS must lead to.

    Without `tls_ca` the system's authorities count. `unavailable`: the error that tells that it could not.
    """

    keyid: KeyId
    name: str
    url: str
    tls_ca: str | None
    unavailable: type[OutsideError]

    @classmethod
    def of(cls, entry: RosterEntry, url: str | None, unavailable: type[OutsideError]) -> "Peer":
        """The holder of this roster entry at this URL of it. Raises: `unavailable` when the entry has none."""
        if url is None:
            raise unavailable(f"the roster gives no address for {entry.name} ({entry.keyid[:16]})")
        return cls(entry.keyid, entry.name, url.rstrip("/"), entry.tls_ca, unavailable)

    def __str__(self) -> str:
        return f"{self.name} ({self.keyid[:16]}) at {self.url}"


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries: bytes, an open file, or its pieces. `digest` is the Content-Digest field over all of it."""

    content: bytes | BinaryIO | Iterable[bytes]
    length: int
    digest: str
    media_type: str

    @classmethod
    def json(cls, data: bytes) -> "Body":
        """These bytes of JSON."""
        return cls(data, len(data), content_digest(data), JSON_TYPE)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, nothing verified. `request` is what it answers, as sent."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    request: HttpRequest

    @property
    def is_success(self) -> bool:
        """Any 2xx."""
        return 200 <= self.status < 300

    @property
    def is_refusal(self) -> bool:
        """A 4xx that is about what was asked."""
        return 400 <= self.status < 500 and self.status not in _TRANSIENT

    @property
    def problem(self) -> tuple[str, str]:
        """(code, sentence) of a problem document; of anything else its status."""
        try:
            tree = parse(self.body, limit_bytes=MAX_PROBLEM_BYTES, what="the answer")
        except OrderError:
            tree = None
        if isinstance(tree, dict) and isinstance(tree.get("code"), str):
            return tree["code"][:80], str(tree.get("detail", ""))[:500]
        return f"http-{self.status}", f"HTTP status {self.status} without a problem document"

    @property
    def evidence(self) -> bytes:
        """A signed refusal as a third party can check it (SignedRefusal as JSON)."""
        refusal = SignedRefusal(
            status=self.status,
            content_digest=field_of(self.headers, "content-digest") or "",
            signature_input=field_of(self.headers, "signature-input") or "",
            signature=field_of(self.headers, "signature") or "",
            request_signature=field_of(self.request.headers, "signature") or "",
            body=self.body.decode("utf-8", "replace"),
        )
        return encode(refusal)


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer whose body is still to be read, within the call's timeouts.

    `read_into` puts the next raw bytes of it into a buffer; how many, 0 at the end of the body. It may be fewer than there is
    room for.
    """

    status: int
    headers: Mapping[str, str]
    read_into: Callable[[memoryview], int]


class HttpsClient:
    """Signed calls to anybody of the roster. Safe to use from threads; connections are kept alive, by peer."""

    def __init__(self, identity: Identity, timeouts: Timeouts) -> None:
        self.identity = identity
        self.timeouts = timeouts
        self._clients: dict[tuple[str, str | None], httpx.Client] = {}
        self._lock = threading.Lock()

    def call(
        self,
        peer: Peer,
        method: str,
        target: str,
        *,
        body: Body | None = None,
        limit_bytes: int,
        is_transfer: bool = False,
    ) -> Answer:
        """Send a signed request and take the whole answer. `target`: path and query. Raises: `peer.unavailable`."""
        with self._sent(peer, method, target, body=body, headers={}, is_transfer=is_transfer) as (
            request,
            response,
        ):
            content = _read(response, limit_bytes, peer)
        return Answer(response.status_code, tuple(response.headers.multi_items()), content, request)

    @contextmanager
    def stream(self, peer: Peer, target: str, headers: Mapping[str, str]) -> Iterator[Stream]:
        """GET with the answer's body still to be read, inside the block. Raises: `peer.unavailable`, also while reading."""
        with self._sent(peer, "GET", target, headers=headers, is_transfer=True) as (_, response):
            body = RawBody(response, self.timeouts.read_s)
            yield Stream(response.status_code, response.headers, body.read_into)

    @contextmanager
    def reading(
        self, peer: Peer, target: str, headers: Mapping[str, str], silence_s: float
    ) -> Iterator[httpx.Response]:
        """GET an answer that says something at least every `silence_s`. Raises: `peer.unavailable`, also while reading."""
        sent = self._sent(peer, "GET", target, headers=headers, is_transfer=True, silence_s=silence_s)
        with sent as (_, response):
            yield response

    def check_health(self, peer: Peer) -> datetime | None:
        """Ask for /health, unsigned. The time there to the second, None when none is told. Raises: `peer.unavailable`."""
        with self._unsigned(peer, "/health") as got:
            return moment(got.headers.get("date", ""))  # RFC 9110, 6.6.1

    def fetch(self, peer: Peer, target: str, limit_bytes: int) -> bytes:
        """The body of an unsigned GET, for what carries its own signature. Raises: `peer.unavailable`."""
        with self._unsigned(peer, target) as got:
            return _read(got, limit_bytes, peer)

    @contextmanager
    def _unsigned(self, peer: Peer, target: str) -> Iterator[httpx.Response]:
        stream = self._client(peer).stream("GET", peer.url + target)
        with _translated(peer), deadline(self.timeouts.total_s), stream as got:
            if not got.is_success:
                raise peer.unavailable(f"{peer} answers {got.status_code} when asked for {target}")
            yield got

    def verify(self, peer: Peer, answer: Answer) -> None:
        """Refuse an answer that `peer` did not sign for exactly this request, or with another body. Raises: BadAnswer."""
        identity = self.identity
        verified = verify_answer(
            HttpAnswer(answer.status, answer.headers),
            answer.request,
            identity.roster(),
            expected=peer.keyid,
            now=identity.now(),
            skew=identity.skew,
        )
        digest = ContentDigest()
        digest.update(answer.body)
        try:
            check_body(verified, digest)
        except DigestMismatch as cause:
            raise BadAnswer(f"the answer of {peer} is refused: {cause.detail}") from cause

    def is_signed(self, peer: Peer, answer: Answer) -> bool:
        """Whether `peer` signed this answer for exactly this request."""
        try:
            self.verify(peer, answer)
        except TrustError:
            return False
        return True

    def unavailable(self, peer: Peer, answer: Answer) -> OutsideError:
        """The error that tells of an answer that is neither a success nor a signed refusal."""
        code, sentence = answer.problem
        error = peer.unavailable(f"{peer} answers {answer.status} ({code}): {sentence}")
        if answer.status in _RESTING:
            error.rest_s = rest_asked(field_of(answer.headers, "retry-after"), self.identity.now())
        return error

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            clients = tuple(self._clients.values())
            self._clients.clear()
        for client in clients:
            client.close()

    @contextmanager
    def _sent(
        self,
        peer: Peer,
        method: str,
        target: str,
        *,
        body: Body | None = None,
        headers: Mapping[str, str],
        is_transfer: bool,
        silence_s: float | None = None,
    ) -> Iterator[tuple[HttpRequest, httpx.Response]]:
        total_s = self.timeouts.transfer_s if is_transfer else self.timeouts.total_s
        with _translated(peer), deadline(total_s):
            client = self._client(peer)
            request = client.build_request(
                method,
                peer.url + target,
                content=None if body is None else body.content,
                headers={**headers, **({} if body is None else _fields_of(body)), **_trace_fields()},
            )
            if silence_s is not None:
                request.extensions["timeout"] = {**request.extensions["timeout"], "read": silence_s}
            signed = self._sign(request, has_body=body is not None)
            response = client.send(request, stream=True)
            try:
                yield signed, response
            finally:
                response.close()

    def _sign(self, request: httpx.Request, *, has_body: bool) -> HttpRequest:
        """Add the signature to the request; gives the request as it will be sent."""
        url = f"https://{request.headers['host']}{request.url.raw_path.decode('ascii')}"
        plain = HttpRequest(request.method, url, tuple(request.headers.multi_items()))
        identity = self.identity
        request.headers.update(sign_request(plain, identity.key, now=identity.now(), has_body=has_body))
        return HttpRequest(request.method, url, tuple(request.headers.multi_items()))

    def _client(self, peer: Peer) -> httpx.Client:
        with self._lock:
            client = self._clients.get((peer.url, peer.tls_ca))
            if client is None:
                client = self._clients[peer.url, peer.tls_ca] = _new_client(peer, self.timeouts)
            return client


def _fields_of(body: Body) -> dict[str, str]:
    return {
        "Content-Type": body.media_type,
        "Content-Length": str(body.length),
        "Content-Digest": body.digest,
    }


def _trace_fields() -> dict[str, str]:
    """The field that takes the trace of what this thread works on to whoever is called; it is signed with the rest."""
    trace = bound_trace()
    return {} if trace is None else {HEADER: traceparent(TraceId(trace), secrets.token_hex(8))}


def _read(response: httpx.Response, limit_bytes: int, peer: Peer) -> bytes:
    """The answer's raw body. Raises: `peer.unavailable` over the limit."""
    limit = limit_bytes if response.is_success else MAX_PROBLEM_BYTES
    content = bytearray()
    for piece in response.iter_raw():
        content += piece
        if len(content) > limit:
            raise peer.unavailable(f"{peer} answers with more than {limit} bytes")
    return bytes(content)


# ------------------------------------------------------------------ the door to httpx

_FOREIGN: tuple[tuple[type[Exception], str], ...] = (  # the first that fits
    (httpx.ConnectTimeout, "no connection within the time"),
    (httpx.PoolTimeout, "too many calls under way"),
    (httpx.TimeoutException, "no answer within the time"),
    (httpx.ConnectError, "no connection"),
    (httpx.NetworkError, "the connection broke"),
    (httpx.ProtocolError, "the answer is no HTTP, or was cut short"),
    (httpx.HTTPError, "the call failed"),
    (httpx.InvalidURL, "its address is no URL"),
    (httpx.StreamError, "the answer cannot be read"),
)


@contextmanager
def _translated(peer: Peer) -> Iterator[None]:
    """Raise `peer.unavailable` for whatever goes wrong on the way there and back."""
    try:
        yield
    except tuple(kind for kind, _ in _FOREIGN) as cause:
        sentence = next(sentence for kind, sentence in _FOREIGN if isinstance(cause, kind))
        raise peer.unavailable(f"{peer}: {sentence} ({str(cause) or type(cause).__name__})") from cause


def _new_client(peer: Peer, timeouts: Timeouts) -> httpx.Client:
    return httpx.Client(
        verify=_client_tls(peer),
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(timeouts.read_s, connect=timeouts.connect_s, pool=timeouts.connect_s),
        limits=httpx.Limits(max_connections=CONNECTIONS_PER_PEER, keepalive_expiry=KEEP_ALIVE_S),
        headers={"User-Agent": f"dc-compute/{__version__}", "Accept-Encoding": "identity"},
    )


def _client_tls(peer: Peer) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        if peer.tls_ca is None:
            context.load_default_certs()
        else:
            context.load_verify_locations(cadata=peer.tls_ca)
    except (ssl.SSLError, ValueError) as cause:
        raise peer.unavailable(f"the roster's tls_ca of {peer} is no certificate in PEM") from cause
    context.sslsocket_class = PunctualSocket
    return context
