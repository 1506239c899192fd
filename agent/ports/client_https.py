"""An agent's API over its operator's Unix socket, or over HTTPS by signed requests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from httpx_sse import EventSource, SSEError

from agent import __version__
from agent.errors import AgentUnreachable
from agent.ports.client import ApiAnswer, ServerEvent
from agent.ports.https import Body, HttpsClient, Identity, Peer, Timeouts

MAX_ANSWER_BYTES = 64 << 20
JSON_TYPE = "application/json"
STREAM_TYPE = "text/event-stream"
SILENCE_S = 30.0  # a server that lives says something three times as often


class UnixClient:
    """The agent whose operator's socket lies at `path`. The file's mode is the permission, so nothing is signed."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(path)),
            base_url="http://operator",
            timeout=timeout_s,
            trust_env=False,
            headers={"User-Agent": f"dc-compute/{__version__}"},
        )

    def get(self, target: str) -> ApiAnswer:
        """What it answers at this path and query. Raises: AgentUnreachable."""
        return self._call("GET", target, None)

    def post(self, target: str, body: bytes) -> ApiAnswer:
        """What it answers to these bytes of JSON. Raises: AgentUnreachable."""
        return self._call("POST", target, body)

    @contextmanager
    def events(self, target: str, after: str | None) -> Iterator[ApiAnswer | Iterator[ServerEvent]]:
        """The stream at this path, or the answer that is none. Raises: AgentUnreachable, also while it is read."""
        self._require_socket()
        try:
            with self._client.stream(
                "GET", target, headers=_stream_headers(after), timeout=httpx.Timeout(SILENCE_S)
            ) as got:
                yield _events_of(got)
        except (httpx.HTTPError, SSEError) as cause:
            raise self._silent(cause) from cause

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _call(self, method: str, target: str, body: bytes | None) -> ApiAnswer:
        headers = {} if body is None else {"Content-Type": JSON_TYPE}
        self._require_socket()
        try:
            answer = self._client.request(method, target, content=body, headers=headers)
        except httpx.HTTPError as cause:
            raise self._silent(cause) from cause
        return ApiAnswer(answer.status_code, answer.content)

    def _require_socket(self) -> None:
        if not self._path.is_socket():
            raise AgentUnreachable(f"no agent listens at {self._path}")

    def _silent(self, cause: Exception) -> AgentUnreachable:
        return AgentUnreachable(f"no agent answers at {self._path} ({str(cause) or type(cause).__name__})")


class SignedClient:
    """The agent `peer`, called by whoever holds the key of `identity`."""

    def __init__(self, identity: Identity, peer: Peer, timeouts: Timeouts) -> None:
        self._https = HttpsClient(identity, timeouts)
        self._peer = peer

    def get(self, target: str) -> ApiAnswer:
        """What it answers at this path and query. Raises: AgentUnreachable."""
        return self._call("GET", target, None)

    def post(self, target: str, body: bytes) -> ApiAnswer:
        """What it answers to these bytes of JSON. Raises: AgentUnreachable."""
        return self._call("POST", target, Body.json(body))

    @contextmanager
    def events(self, target: str, after: str | None) -> Iterator[ApiAnswer | Iterator[ServerEvent]]:
        """The stream at this path, or the answer that is none. Raises: AgentUnreachable, also while it is read."""
        with self._https.reading(self._peer, target, _stream_headers(after), silence_s=SILENCE_S) as got:
            yield _events_of(got)

    def close(self) -> None:
        """Close every connection."""
        self._https.close()

    def _call(self, method: str, target: str, body: Body | None) -> ApiAnswer:
        answer = self._https.call(self._peer, method, target, body=body, limit_bytes=MAX_ANSWER_BYTES)
        return ApiAnswer(answer.status, answer.body)


def _stream_headers(after: str | None) -> dict[str, str]:
    return {"Accept": STREAM_TYPE} | ({} if after is None else {"Last-Event-ID": after})


def _events_of(got: httpx.Response) -> ApiAnswer | Iterator[ServerEvent]:
    if got.status_code != httpx.codes.OK or got.headers.get("content-type", "").split(";")[0] != STREAM_TYPE:
        return ApiAnswer(got.status_code, got.read()[:MAX_ANSWER_BYTES])
    return (ServerEvent(event.event, event.id, event.data) for event in EventSource(got).iter_sse())
