"""The floor under part intake, a process of its own: what a server gives that checks nothing.

    python -m agent.bench.intake_floor HOME PORT

The agent's own server, protocol and TLS, and the same requests; an application that takes a body, writes it down as one row and
answers 202 once that is on the disk (WAL, `synchronous = FULL`), bodies of one moment in one commit. No routing, signature,
nonce, order, policy, audit line or bell, and an answer as long as the agent's.
"""

import sqlite3
import sys
import threading
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from agent.api.flocks import Flock
from agent.api.serving import listen, server_tls, serving, wait_for_signal

HOST: Final = "127.0.0.1"
ANSWER: Final = b"." * 640
HEADERS: Final = [
    (b"content-type", b"application/json"),
    (b"content-length", b"%d" % len(ANSWER)),
    (b"cache-control", b"no-store"),
    (b"location", b"/v1/orders/" + b"." * 36),
]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Rows:
    """A table, written by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection: Final = connection
        self._turn: Final = threading.Lock()
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS bodies (id INTEGER PRIMARY KEY, body BLOB)")

    def put(self, bodies: Sequence[bytes]) -> Sequence[bytes]:
        """Each of these as a row, all in one commit that is on the disk when this returns."""
        with self._turn:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT INTO bodies (body) VALUES (?)", [(body,) for body in bodies])
            self._connection.execute("COMMIT")
        return bodies


class Body:
    """An errand of a flock: a body that is to be a row."""

    def __init__(self, body: bytes) -> None:
        self._body: Final = body

    def begin(self) -> bytes:
        return self._body

    def end(self, outcome: bytes | Exception | None) -> None:
        if isinstance(outcome, Exception):
            raise outcome


class Floor:
    """The application."""

    def __init__(self, rows: Rows) -> None:
        self._flock: Final = Flock[bytes, bytes](rows.put)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        pieces, more = [], True
        while more:
            message = await receive()
            pieces.append(message["body"])
            more = message["more_body"]
        await self._flock.join(Body(b"".join(pieces)))
        await send({"type": "http.response.start", "status": 202, "headers": HEADERS})
        await send({"type": "http.response.body", "body": ANSWER, "more_body": False})


def main() -> None:
    """Serve until told to stop."""
    home, port = Path(sys.argv[1]), int(sys.argv[2])
    tls = server_tls(home / "tls.crt", home / "tls.key")
    opened = sqlite3.connect(home / "floor.sqlite", isolation_level=None, check_same_thread=False)
    with closing(opened) as connection, serving(Floor(Rows(connection)), listen(HOST, port), tls=tls):
        wait_for_signal()


if __name__ == "__main__":
    main()
