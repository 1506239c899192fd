"""Podman's REST socket: calls through podman-py's client, its errors translated here, the guest's streams read raw.

podman-py's own container calls lose parts of the cage (notes in ARCHITECTURE.md), so only its client is used.
"""

import contextlib
import io
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import podman.errors
from podman.api.client import APIClient

from agent.errors import RuntimeUnavailable

API_VERSION = "4.0.0"  # the oldest whose answers are read here; newer engines still speak it
TIMEOUT_S = 60.0
LOAD_TIMEOUT_S = 1800.0
STDOUT = 1


class ApiRefusal(Exception):
    """Podman answered no: its HTTP status and its own words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class PodmanApi:
    """One service's socket. Safe to share between threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kept = threading.local()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """While the context lasts, this thread's calls go one after the other over one connection."""
        self._knock()
        with contextlib.closing(APIClient(f"http+unix://{self.path}", version=API_VERSION)) as client:
            self._kept.client = client
            try:
                yield
            finally:
                self._kept.client = None

    def get(self, path: str, **params: str) -> Any:
        """The JSON of a GET. Raises: ApiRefusal, RuntimeUnavailable."""
        return self._call("get", path, params=params)

    def post(self, path: str, document: Any = None, **params: str) -> Any:
        """The JSON of a POST, None when there is none. Raises: ApiRefusal, RuntimeUnavailable."""
        if document is None:
            return self._call("post", path, params=params)
        headers = {"Content-Type": "application/json"}
        return self._call("post", path, params=params, data=json.dumps(document), headers=headers)

    def upload(self, path: str, blocks: Iterable[bytes]) -> Any:
        """The JSON of a POST whose body is sent block by block, none of them empty. Raises: ApiRefusal, RuntimeUnavailable."""
        headers = {"Content-Type": "application/x-tar"}
        return self._call("post", path, data=blocks, headers=headers, timeout=LOAD_TIMEOUT_S)

    def download(self, path: str, target: Path, limit_bytes: int, **params: str) -> None:
        """The body of a GET in a new file. Raises: ApiRefusal, also when it is longer; RuntimeUnavailable; OSError."""
        self._knock()
        with contextlib.closing(APIClient(f"http+unix://{self.path}", version=API_VERSION)) as client:
            with _translated(self.path):
                answer = client.get(path, params=params, stream=True, timeout=LOAD_TIMEOUT_S)
                if answer.status_code >= 400:
                    raise ApiRefusal(answer.status_code, _words(answer.text))
                blocks = answer.iter_content(1 << 20)
            with target.open("xb") as file:
                while True:
                    with _translated(self.path):
                        block = next(blocks, b"")
                    if not block:
                        return
                    if file.tell() + len(block) > limit_bytes:
                        raise ApiRefusal(413, f"Podman gives more than {limit_bytes >> 20} MiB")
                    file.write(block)

    def delete(self, path: str, **params: str) -> None:
        """A DELETE. Raises: ApiRefusal, RuntimeUnavailable."""
        self._call("delete", path, params=params)

    def service_pid(self) -> int:
        """A process of Podman in its user namespace: the service itself, or the one that holds the namespace open.

        Raises: RuntimeUnavailable when neither is found.
        """
        with _translated(self.path), socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(self.path))
            pid, _, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if _is_mapped(pid):
            return int(pid)
        # The socket is another's: systemd passed it on.
        run_root = Path(self.get("/info")["store"]["runRoot"])
        with contextlib.suppress(OSError, ValueError):
            pause = int((run_root.parent / "libpod/tmp/pause.pid").read_text())
            if _is_mapped(pause):
                return pause
        raise RuntimeUnavailable(f"no process of the service at {self.path} was found in its user namespace")

    def attach(self, container: str) -> "Frames":
        """The container's stdout and stderr until it ends.

        Raises: RuntimeUnavailable.
        """
        query = "stream=true&stdout=true&stderr=true&stdin=false&logs=false"
        line = f"POST /v{API_VERSION}/libpod/containers/{container}/attach?{query} HTTP/1.1"
        with contextlib.ExitStack() as unless_done:
            stream = unless_done.enter_context(socket.socket(socket.AF_UNIX))
            with _translated(self.path):
                stream.settimeout(TIMEOUT_S)
                stream.connect(str(self.path))
                stream.sendall(f"{line}\r\nHost: podman\r\nContent-Length: 0\r\n\r\n".encode())
                head = _read_head(stream)
                stream.settimeout(None)
            if not re.match(rb"HTTP/1\.1 (200|101) ", head):
                raise RuntimeUnavailable(f"Podman gives no output of {container}: {head[:80]!r}")
            unless_done.pop_all()
        return Frames(stream)

    def _knock(self) -> None:
        """Connect and hang up: podman-py leaks the socket of a connection that is refused. Raises: RuntimeUnavailable."""
        with _translated(self.path), socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(self.path))

    def _call(self, method: str, path: str, **options: Any) -> Any:
        """A client of its own for each call that is not one of several: none leaves a connection."""
        options.setdefault("timeout", TIMEOUT_S)
        with contextlib.ExitStack() as stack:
            client = getattr(self._kept, "client", None)
            if client is None:
                stack.enter_context(self.kept())
                client = self._kept.client
            else:  # the service may have ended meanwhile, and its client leaves a socket open that does not connect
                self._knock()
            stack.enter_context(_translated(self.path))
            answer = getattr(client, method)(path, **options)
            if answer.status_code >= 400:
                raise ApiRefusal(answer.status_code, _words(answer.text))
            return answer.json() if answer.content.strip() else None


class Frames:
    """Implements `Output`: frames of an attached connection, each a head of eight bytes and a block."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream

    def read(self, take: Callable[[bytes, bool], None]) -> None:
        """As the protocol says."""
        with (
            contextlib.suppress(OSError),
            io.BufferedReader(self._stream.makefile("rb", buffering=0), 1 << 16) as file,
        ):
            while len(head := file.read(8)) == 8:
                kind, left = head[0], int.from_bytes(head[4:], "big")
                while left > 0 and (block := file.read1(left)):
                    left -= len(block)
                    take(block, kind == STDOUT)

    def close(self) -> None:
        """As the protocol says."""
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._stream.close()


def _is_mapped(pid: int) -> bool:
    """Whether the process lives in a user namespace with subordinate ids: more than one line of ids."""
    try:
        return len(Path(f"/proc/{pid}/uid_map").read_text().splitlines()) > 1
    except OSError:
        return False


def _read_head(stream: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n") and len(head) < 1 << 14:
        byte = stream.recv(1)  # one by one: what follows belongs to the guest
        if not byte:
            break
        head += byte
    return head


def _words(text: str) -> str:
    """Podman's message out of its JSON answer, on one line."""
    with contextlib.suppress(ValueError, AttributeError):
        text = str(json.loads(text).get("message", text))
    return " ".join(text.split())[:500]


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """requests' errors are OSErrors, podman-py's own are PodmanErrors; an answer that is no JSON is a ValueError."""
    try:
        yield
    except (OSError, podman.errors.PodmanError, ValueError) as cause:
        raise RuntimeUnavailable(f"Podman at {path} does not answer: {cause}") from cause
