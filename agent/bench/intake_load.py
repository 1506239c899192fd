"""The load of part intake, a process of its own: requests made beforehand, over kept TLS connections, one at a time on each.

    python -m agent.bench.intake_load PORT AUTHORITY.pem CONNECTIONS < requests

Standard input: each request with four bytes of length before it, the most significant first. Nothing is signed, built or
parsed here beyond an answer's status and length, for whoever makes the load takes its CPU from whoever serves it. Handshakes
come before the clock starts. Standard output: JSON, see `Load`.
"""

import json
import re
import resource
import selectors
import socket
import ssl
import struct
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import TypedDict

HOST = "127.0.0.1"
LENGTH = struct.Struct(">I")
ANSWER_S = 30.0  # for the next answer of anybody
PIECE = 64 << 10

_LENGTH_FIELD = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class Load(TypedDict):
    """What was seen. `latency_s`: from the first byte sent to the last one of the answer, in the order of the answers."""

    wall_s: float
    cpu_s: float  # of this process
    latency_s: list[float]
    statuses: dict[str, int]


class Line:
    """One kept connection, with one request under way at most."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        plain = socket.create_connection((HOST, port), ANSWER_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(plain, server_hostname=HOST)
        self.socket.setblocking(False)  # a request is far smaller than a socket's buffer: it goes out whole
        self._began_s = 0.0
        self._seen = bytearray()

    def send(self, request: bytes) -> None:
        self._began_s = time.perf_counter()
        self._seen.clear()
        if self.socket.send(request) != len(request):
            raise ConnectionError("a request did not fit into the socket's buffer")

    def answer(self) -> tuple[int, float] | None:
        """(status, seconds) once the answer is there whole. Raises: ConnectionError when the server closed."""
        while True:
            try:
                piece = self.socket.recv(PIECE)
            except ssl.SSLWantReadError:
                return self._whole()
            if not piece:
                raise ConnectionError("the server closed a connection")
            self._seen += piece

    def _whole(self) -> tuple[int, float] | None:
        head = self._seen.find(b"\r\n\r\n")
        told = _LENGTH_FIELD.search(self._seen, 0, max(head, 0))
        if told is None or len(self._seen) < head + 4 + int(told[1]):
            return None
        return int(self._seen[9:12]), time.perf_counter() - self._began_s


def main() -> None:
    """Send every request of standard input."""
    port, authority, connections = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    context = ssl.create_default_context(cafile=str(authority))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    waiting = deque(requests_in(sys.stdin.buffer.read()))
    lines = [Line(port, context) for _ in range(min(connections, len(waiting)))]
    json.dump(run(lines, waiting), sys.stdout)


def run(lines: list[Line], waiting: deque[bytes]) -> Load:
    """Every request sent and answered."""
    latency_s: list[float] = []
    statuses: Counter[str] = Counter()
    selector = selectors.DefaultSelector()
    for line in lines:
        selector.register(line.socket, selectors.EVENT_READ, line)
    cpu_s, began_s = cpu(), time.perf_counter()
    for line in lines:
        line.send(waiting.popleft())
    under_way = len(lines)
    while under_way:
        ready = selector.select(ANSWER_S)
        if not ready:
            raise TimeoutError(f"no answer within {ANSWER_S:.0f} s")
        for key, _ in ready:
            answer = key.data.answer()
            if answer is None:
                continue
            statuses[str(answer[0])] += 1
            latency_s.append(answer[1])
            if waiting:
                key.data.send(waiting.popleft())
            else:
                under_way -= 1
    return Load(
        wall_s=time.perf_counter() - began_s,
        cpu_s=cpu() - cpu_s,
        latency_s=latency_s,
        statuses=dict(statuses),
    )


def requests_in(data: bytes) -> list[bytes]:
    """The requests that `framed` wrote one after the other."""
    found, at = [], 0
    while at < len(data):
        (length,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        found.append(data[at : at + length])
        at += length
    return found


def framed(request: bytes) -> bytes:
    """A request as standard input carries it."""
    return LENGTH.pack(len(request)) + request


def cpu() -> float:
    """Seconds of CPU that this process has taken."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
