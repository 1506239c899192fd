"""One SQLite file, safe to use from threads and from several processes; both servers remember nonces in it."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from agent.domain.ids import KeyId

_NONCES = """
CREATE TABLE IF NOT EXISTS nonces (keyid TEXT, nonce TEXT, keep_until TEXT NOT NULL, PRIMARY KEY (keyid, nonce)) STRICT;
CREATE INDEX IF NOT EXISTS nonces_by_end ON nonces (keep_until);
"""


class Database:
    """A database whose every change is a transaction, durable when it ends."""

    def __init__(self, path: Path, schema: str) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)  # -wal and -shm take its mode
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
        self._connection.row_factory = sqlite3.Row
        self._connection.executescript(
            f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {schema} {_NONCES}"
        )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block, or nothing of it."""
        with self._lock, self._connection:  # commits, or rolls back when the block raises
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """What a query finds."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def row(self, query: str, *values: object) -> sqlite3.Row | None:
        """The first of what a query finds."""
        found = self.rows(query, *values)
        return found[0] if found else None

    def remember_nonce(self, keyid: KeyId, nonce: str, keep_until: datetime, now: datetime) -> bool:
        """Whether this (keyid, nonce) is new; from then until `keep_until` it is not."""
        with self.transaction() as sql:
            sql.execute("DELETE FROM nonces WHERE keep_until < ?", (now.isoformat(),))
            added = sql.execute(
                "INSERT OR IGNORE INTO nonces VALUES (?, ?, ?)", (keyid, nonce, keep_until.isoformat())
            )
            return added.rowcount == 1

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()
