"""The file of the queues as it lies, for `fsck`, and the two mends of it: a queue is a bell, so nothing in it can be lost."""

import hashlib
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from agent.ports.broker_huey import BUSY_S, translated

COMPANIONS: Final = ("", "-wal", "-shm", "-journal")
_TABLES: Final = ("task", "schedule")


class RingRow(NamedTuple):
    """A ring that waits: its queue, its id (None: it is none of ours), and what names it as it was seen."""

    queue: str
    item: str | None
    row: str


class QueuesLook(NamedTuple):
    """What SQLite finds wrong in the file, and every ring that waits; both empty where there is no file yet."""

    complaints: tuple[str, ...]
    rings: tuple[RingRow, ...]


def look_into_queues(path: Path) -> QueuesLook:
    """The queues as they are at this moment."""
    if not path.exists():
        return QueuesLook((), ())
    try:
        with closing(_connect(path)) as connection:
            connection.execute("PRAGMA query_only = ON")
            told = tuple(str(row[0]) for row in connection.execute("PRAGMA quick_check(5)"))
            if told != ("ok",):
                return QueuesLook(told, ())
            rings = [
                RingRow(str(queue), _item(data), f"{table}/{number}/{_mark(data)}")
                for table in _TABLES
                for number, queue, data in connection.execute(f"SELECT id, queue, data FROM {table}")  # noqa: S608
            ]
    except sqlite3.Error as cause:
        return QueuesLook((str(cause),), ())
    return QueuesLook((), tuple(rings))


def drop_ring(path: Path, row: str) -> bool:
    """Take the ring of this name out; False when another stands there by now. Raises: OutsideError."""
    table, number, mark = row.split("/")
    if table not in _TABLES:
        raise ValueError(f"there is no table {table!r}")
    with translated(path), closing(_connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        found = connection.execute(f"SELECT data FROM {table} WHERE id = ?", (number,)).fetchone()  # noqa: S608
        is_it = found is not None and _mark(found[0]) == mark
        if is_it:
            connection.execute(f"DELETE FROM {table} WHERE id = ?", (number,))  # noqa: S608
        connection.execute("COMMIT")
    return is_it


def set_aside(path: Path, ending: str) -> None:
    """Give the file another name, when nobody has it open: the next start makes a new one, and the sweep rings anew."""
    with translated(path):
        for companion in COMPANIONS:
            part = path.with_name(path.name + companion)
            if part.exists():
                os.replace(part, part.with_name(f"{path.name}.{ending}{companion}"))


def _item(data: object) -> str | None:
    try:
        told = json.loads(data) if isinstance(data, bytes | str) else None
    except ValueError:
        return None
    item = told.get("id") if isinstance(told, dict) else None
    return item if isinstance(item, str) else None


def _mark(data: object) -> str:
    return hashlib.sha256(repr(data).encode()).hexdigest()[:16]


def _connect(path: Path) -> sqlite3.Connection:
    url = f"file:{quote(str(path))}?mode=rw"
    return sqlite3.connect(url, uri=True, timeout=BUSY_S, isolation_level=None)
