"""The ledger's file as it lies, for `fsck`: rows and not values, because a row may be no value any more. Nothing is written.

One read transaction shows one moment of a ledger that lives.
"""

import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from agent.domain.approvals import Verdict
from agent.domain.control import Mode
from agent.domain.images import ImageAbout, ImageEntry
from agent.domain.jobs import JobState
from agent.domain.prepared import prepared
from agent.errors import LedgerUnavailable
from agent.ports.ledger_schema import HEAD
from agent.ports.ledger_sqlalchemy_file import BUSY_S, translated
from agent.ports.ledger_sqlalchemy_rows import Plain
from agent.ports.ledger_sqlalchemy_shape import differences, revision_of

Row = dict[str, Any]

MOST_COMPLAINTS: Final = 20
_BY_ORDER: Final = (
    "SELECT * FROM jobs WHERE order_id = :id ORDER BY position",
    "SELECT * FROM receipts WHERE order_digest = :digest ORDER BY position",
    "SELECT deliveries.*, bodies.body FROM deliveries LEFT JOIN bodies ON bodies.delivery = deliveries.id"
    " WHERE order_id = :id ORDER BY deliveries.seq",
)


class LedgerLook:
    """One moment of the file. Raises everywhere: LedgerUnavailable when SQLite cannot read on."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path

    head = HEAD

    def damage(self) -> tuple[str, ...]:
        """What SQLite finds wrong in the file, empty when it is whole."""
        query = f"PRAGMA integrity_check({MOST_COMPLAINTS})"
        try:
            told = tuple(str(row[0]) for row in self._connection.execute(query))
        except sqlite3.DatabaseError as cause:  # it may be too damaged to be looked through
            return (str(cause),)
        return () if told == ("ok",) else told

    def references(self) -> tuple[str, ...]:
        """Rows that refer to others that are not there."""
        with translated(self._path):
            rows = self._connection.execute("PRAGMA foreign_key_check").fetchmany(MOST_COMPLAINTS)
        return tuple(f"row {row[1]} of {row[0]} refers to one of {row[2]} that is not there" for row in rows)

    def revision(self) -> str | None:
        """The schema's revision."""
        with translated(self._path):
            return revision_of(self._connection)

    def differences(self) -> tuple[str, ...]:
        """What the schema has otherwise than this program's."""
        with translated(self._path):
            return differences(self._connection)

    def orders(self) -> Iterator[tuple[Row, list[Row], list[Row], list[Row]]]:
        """Every order with its jobs, its receipts, and its deliveries with their bodies."""
        with translated(self._path):
            for order in self._rows("SELECT * FROM orders ORDER BY received_at, id"):
                jobs, receipts, deliveries = (list(self._rows(query, order)) for query in _BY_ORDER)
                yield order, jobs, receipts, deliveries

    def running(self) -> dict[str, int]:
        """The attempt of each job that runs."""
        with translated(self._path):
            query = "SELECT id, attempt FROM jobs WHERE state = ?"
            return dict(self._connection.execute(query, (JobState.RUNNING,)).fetchall())

    def names(self) -> set[str]:
        """The ids of all jobs and deliveries."""
        with translated(self._path):
            query = "SELECT id FROM jobs UNION ALL SELECT id FROM deliveries"
            return {str(row[0]) for row in self._connection.execute(query)}

    def odd_rows(self) -> Iterator[tuple[str, str]]:
        """(where, what) for each row of the smaller tables of which nothing can be made."""
        with translated(self._path):
            for row in self._rows('SELECT seq, "values" AS told FROM events'):
                yield from _odd(f"event {row['seq']}", row["told"], dict[str, Plain])
            for row in self._rows("SELECT seq, verdict FROM rulings"):
                if row["verdict"] not in set(Verdict):
                    yield f"ruling {row['seq']}", f"its verdict is {row['verdict']!r}"
            for row in self._rows("SELECT image, about FROM descriptions WHERE about IS NOT NULL"):
                yield from _odd(f"description of {row['image']}", row["about"], ImageAbout)
            for row in self._rows("SELECT image, page, entries FROM listings"):
                where = f"listing of {row['image']}, page {row['page']}"
                try:
                    plain = zlib.decompress(row["entries"])
                except (zlib.error, TypeError) as cause:
                    yield where, str(cause)
                else:
                    yield from _odd(where, plain, tuple[ImageEntry, ...])
            for row in self._rows("SELECT id, mode FROM control"):
                if row["mode"] not in set(Mode):
                    yield "control", f"its mode is {row['mode']!r}"

    def _rows(self, query: str, values: Row | None = None) -> Iterator[Row]:
        cursor = self._connection.execute(query, values or {})
        names = [column[0] for column in cursor.description]
        for cells in cursor:
            yield dict(zip(names, cells, strict=True))


@contextmanager
def look_into(path: Path) -> Iterator[LedgerLook]:
    """The ledger at `path` as it is at this moment. Raises: LedgerUnavailable."""
    url = f"file:{quote(str(path))}?mode=rw"  # a log that was left has to be read, which takes writing beside it
    with translated(path):
        if not path.is_file():
            raise LedgerUnavailable(f"there is no ledger at {path}")
        connection = sqlite3.connect(url, uri=True, timeout=BUSY_S, isolation_level=None)
    with closing(connection):
        with translated(path):
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield LedgerLook(connection, path)


def _odd(where: str, data: Any, kind: Any) -> Iterator[tuple[str, str]]:
    try:
        msgspec.json.decode(data, type=prepared(kind))
    except (msgspec.MsgspecError, TypeError, UnicodeError) as cause:
        yield where, str(cause)[:200]
