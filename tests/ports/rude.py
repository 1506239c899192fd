"""A TLS server without manners: each connection is answered by a function of the test, byte by byte if it likes.

with rude_server(town, "agent-b", lambda line, heard: line.sendall(b"nonsense")) as server:
    ...
    server.heard     # every request that came, head and body
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agent.api.serving import server_tls
from agent.devkit.certificates import write_identity
from agent.trust.certificates import CertificateAuthority
from tests.devkit.town import Town

Manner = Callable[[ssl.SSLSocket, list[bytes]], object]


@dataclass
class RudeServer:
    """What it heard so far, and how many connections were made."""

    heard: list[bytes] = field(default_factory=list)
    connections: int = 0

    def header(self, name: str, request: int = -1) -> str | None:
        """A field of one of the requests."""
        for line in self.heard[request].split(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.decode().lower() == name:
                return value.strip().decode()
        return None


def answer(body: bytes = b"{}", status: int = 200, **fields: str) -> bytes:
    """An answer as bytes; `content_length="9"` and the like replace what it would say."""
    told = {"content-length": str(len(body)), "content-type": "application/json"}
    told |= {name.replace("_", "-"): value for name, value in fields.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items() if value)
    return f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode() + body


@contextlib.contextmanager
def rude_server(
    town: Town,
    name: str,
    manner: Manner,
    *,
    authority: CertificateAuthority | None = None,
    host: str = "127.0.0.1",
) -> Iterator[RudeServer]:
    """Serve in the place of the town's server of that name, which must have been asked for and not started."""
    server, listener = RudeServer(), town.listeners.pop(name)
    files = write_identity(
        town.folder / "rude", name, authority or town.authority, [host], now=datetime.now(UTC)
    )
    context = server_tls(files.certificate, files.private_key)
    open_lines: list[socket.socket] = []

    def converse(plain: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as line:
            open_lines.append(line)
            while request := _read_request(line):
                server.heard.append(request)
                if manner(line, server.heard) is not True:  # True: let us go on
                    return

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = listener.accept()
                server.connections += 1
                threading.Thread(target=converse, args=(plain,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for line in open_lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)


def _read_request(line: ssl.SSLSocket) -> bytes:
    """One request, head and body; nothing at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = line.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(value) for key, _, value in (field.partition(b":") for field in head.lower().split(b"\r\n"))
         if key == b"content-length"), 0,
    )  # fmt: skip
    while len(body) < length:
        body += line.recv(65536)
    return head + b"\r\n\r\n" + body
