"""The audit log read straight from the ledger's file: opened for reading only, in one snapshot, with no schema changed.

A service may go on writing beside it: the file is in WAL mode. Rows become lines one at a time.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

from agent.domain.audit import Line
from agent.domain.ids import Digest, OrderId
from agent.errors import LedgerUnavailable
from agent.ports.audit import Recorded, Wanted

BUSY_S: Final = 15.0

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_COLUMNS = 'seq, at, name, order_id, position, dataset, "values", digest'


class SqliteAuditLog:
    """See `audit.AuditLog`. Raises: LedgerUnavailable when the file is no ledger of this version."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._translated():
            uri = f"file:{quote(str(path.absolute()))}?mode=ro"
            self._file = sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)
            try:
                self._file.execute("BEGIN")  # one state for everything that is asked
                self._file.execute(f"SELECT {_COLUMNS} FROM events LIMIT 1").fetchone()  # noqa: S608 - our own words
            except sqlite3.Error:
                self._file.close()
                raise

    def recorded(self, first: int, last: int) -> Iterator[Recorded]:
        before = self._rows("SELECT digest FROM events WHERE seq < ? ORDER BY seq DESC LIMIT 1", first)
        previous: Digest | None = next((row[0] for row in before), None)
        for row in self._rows(
            f"SELECT {_COLUMNS} FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq",  # noqa: S608
            first,
            last,
        ):
            yield Recorded(row[0], _line(row, previous), row[7])
            previous = row[7]

    def newest(self) -> int:
        return self._number("SELECT coalesce(max(seq), 0) FROM events")

    def numbered(self) -> int:
        return self._number("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'events'")

    def between(self, since: datetime | None, until: datetime | None) -> tuple[int, int]:
        first = last = None
        if since is not None:
            first = self._number("SELECT coalesce(min(seq), 0) FROM events WHERE at >= ?", _us(since))
        if until is not None:
            last = self._number("SELECT coalesce(max(seq), 0) FROM events WHERE at <= ?", _us(until))
        ends = (1 if first is None else first, self.newest() if last is None else last)
        return ends if 0 < ends[0] <= ends[1] else (1, 0)

    def orders(self, wanted: Wanted) -> Iterator[tuple[OrderId, frozenset[int]]]:
        where, value = _condition(wanted)
        found: dict[OrderId, set[int]] = {}
        query = f"SELECT order_id, position FROM events WHERE order_id IS NOT NULL AND {where} ORDER BY seq"  # noqa: S608
        for order, position in self._rows(query, value):
            places = found.setdefault(OrderId(order), set())
            if position is not None:
                places.add(position)
        yield from ((order, frozenset(places)) for order, places in found.items())

    def about(self, order: OrderId) -> tuple[Line, ...]:
        query = f"SELECT {_COLUMNS} FROM events WHERE order_id = ? ORDER BY seq"  # noqa: S608
        lines = (_line(row, None) for row in self._rows(query, order))
        return tuple(line for line in lines if line is not None)

    def elsewhere(self, wanted: Wanted) -> Iterator[Line]:
        where, value = _condition(wanted if wanted.order is None else Wanted(text=wanted.order))
        query = f"SELECT {_COLUMNS} FROM events WHERE order_id IS NULL AND {where} ORDER BY seq"  # noqa: S608
        lines = (_line(row, None) for row in self._rows(query, value))
        yield from (line for line in lines if line is not None)

    def close(self) -> None:
        self._file.close()

    # ---- below

    def _rows(self, query: str, *values: Any) -> Iterator[Any]:
        with self._translated():
            yield from self._file.execute(query, values)

    def _number(self, query: str, *values: Any) -> int:
        return int(next(self._rows(query, *values))[0])

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as cause:
            hint = "an older ledger is brought up to date when `dc-compute serve` starts"
            raise LedgerUnavailable(
                f"the audit log in {self._path} cannot be read: {cause}; {hint}"
            ) from cause


def _line(row: Any, previous: Digest | None) -> Line | None:
    """The line of a row; None when somebody wrote what is no moment or no text into it."""
    seq, at, name, order, position, dataset, values, _ = row
    try:
        moment = _EPOCH + timedelta(microseconds=at)
        return Line(seq, moment, name, order, position, dataset, msgspec.Raw(values.encode()), previous)
    except (TypeError, AttributeError, OverflowError):
        return None


def _condition(wanted: Wanted) -> tuple[str, str]:
    """The WHERE of a question and its value. A dataset and an order have an index; a text is looked for in every line."""
    if wanted.dataset is not None:
        return "dataset = ?", wanted.dataset
    if wanted.order is not None:
        return "order_id = ?", wanted.order
    return 'instr("values", ?) > 0', wanted.text or ""


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
