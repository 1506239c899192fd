"""A Unix socket on a port of loopback, for a browser, as `ssh -L` would forward it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PIECE = 64 << 10


@contextmanager
def forwarded(path: Path) -> Iterator[str]:
    """The URL at which what listens at `path` is reached while the block runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, path), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _accept(listener: socket.socket, path: Path) -> None:
    with suppress(OSError):  # the listener was closed: it is over
        while True:
            caller, _ = listener.accept()
            there = socket.socket(socket.AF_UNIX)
            there.connect(str(path))
            for source, target in ((caller, there), (there, caller)):
                threading.Thread(target=_copy, args=(source, target), daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):  # one of them went: so does the other
        while data := source.recv(PIECE):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
