"""An agent's API over its operator's Unix socket, or over HTTPS by signed requests."""

from pathlib import Path

import httpx

from agent import __version__
from agent.errors import AgentUnreachable
from agent.ports.client import ApiAnswer
from agent.ports.https import Body, HttpsClient, Identity, Peer, Timeouts

MAX_ANSWER_BYTES = 64 << 20
JSON_TYPE = "application/json"


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

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _call(self, method: str, target: str, body: bytes | None) -> ApiAnswer:
        headers = {} if body is None else {"Content-Type": JSON_TYPE}
        if not self._path.is_socket():
            raise AgentUnreachable(f"no agent listens at {self._path}")
        try:
            answer = self._client.request(method, target, content=body, headers=headers)
        except httpx.HTTPError as cause:
            raise AgentUnreachable(
                f"no agent answers at {self._path} ({str(cause) or type(cause).__name__})"
            ) from cause
        return ApiAnswer(answer.status_code, answer.content)


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

    def close(self) -> None:
        """Close every connection."""
        self._https.close()

    def _call(self, method: str, target: str, body: Body | None) -> ApiAnswer:
        answer = self._https.call(self._peer, method, target, body=body, limit_bytes=MAX_ANSWER_BYTES)
        return ApiAnswer(answer.status, answer.body)
