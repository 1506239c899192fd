"""A ledger filled quickly: orders like one that the agent itself took in, a million in a minute, by every row that it left.

What the agent recorded of one order is read from its ledger, table by table, as the pattern; a copy is the same rows with
another order id and the digests that follow from it. The signature in a copy's envelope is the pattern's. The log of events
goes on as a chain. `tests/bench/test_scale_rows.py` holds a copy against an order that was taken in.
"""

import sqlite3
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from agent.domain.audit import Line, NewEvent, digest_of_line
from agent.domain.ids import Digest, OrderId, digest_of
from agent.domain.measures import added_up, tallies_of

AT_ONCE = 20_000  # orders in one transaction
# By which column a table's rows belong to an order; what is kept in it of a job that waits, was placed, and ended.
OWNER = {
    "orders": "id",
    "jobs": "order_id",
    "receipts": "order_digest",
    "deliveries": "order_id",
    "events": "order_id",
}
NUMBERED = {"jobs", "deliveries"}  # by the ledger, as rows come

_COUNT = """
INSERT INTO tallies VALUES (?, ?, ?) ON CONFLICT (name, labels) DO UPDATE SET value = value + excluded.value
"""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Row = dict[str, Any]


class Pattern(Struct, frozen=True):
    """What a ledger holds of one order. `rows`: by table, in the order of their keys."""

    id: OrderId
    digest: Digest
    rows: dict[str, tuple[Row, ...]]


class _Copy(Struct, frozen=True):
    """The names that stand in a copy for those of the pattern, and its envelopes by table."""

    id: OrderId
    names: tuple[tuple[str, str], ...]
    envelopes: dict[str, bytes]


class _Mould(Struct, frozen=True):
    """A row of the pattern: `columns` and their values, and which of those name the order."""

    table: str
    columns: tuple[str, ...]
    values: tuple[Any, ...]
    named: tuple[int, ...]
    envelope: int | None

    def cast(self, copy: _Copy) -> list[Any]:
        """The values as they stand in the copy."""
        told = list(self.values)
        for at in self.named:
            for old, new in copy.names:
                told[at] = told[at].replace(old, new)
        if self.envelope is not None:
            told[self.envelope] = copy.envelopes[self.table]
        return told


def order_name(number: int) -> OrderId:
    """An order id for each number, in their order: keys that come in order dirty fewer pages, and their trees are as deep."""
    return OrderId(f"{number:08x}-0000-4000-8000-000000000000")


def pattern_of(ledger: Path, order: OrderId) -> Pattern:
    """Everything that the ledger holds of this order, but for the bodies of what was delivered: those are forgotten in time."""
    with closing(sqlite3.connect(ledger)) as plain:
        plain.row_factory = sqlite3.Row
        (digest,) = plain.execute("SELECT digest FROM orders WHERE id = ?", (order,)).fetchone()
        rows = {}
        for table, column in OWNER.items():
            owner = digest if column == "order_digest" else order
            query = f"SELECT * FROM {table} WHERE {column} = ? ORDER BY rowid"  # noqa: S608 - our own words
            rows[table] = tuple(dict(row) for row in plain.execute(query, (owner,)))
    return Pattern(order, Digest(digest), rows)


def put_orders(ledger: Path, pattern: Pattern, names: Iterable[OrderId]) -> int:
    """Copies of the pattern under these ids; how many."""
    return _put(ledger, pattern, _without(pattern), names)


def end_orders(ledger: Path, before: Pattern, after: Pattern, names: Iterable[OrderId]) -> int:
    """Copies of `before`, which are there, become copies of `after`, the same order later; how many."""
    return _put(ledger, after, before, names)


# ------------------------------------------------------------------ a copy


def _without(pattern: Pattern) -> Pattern:
    return Pattern(pattern.id, pattern.digest, dict.fromkeys(pattern.rows, ()))


def _copy_of(pattern: Pattern, name: OrderId) -> _Copy:
    """An envelope is its payload in base64 between two words that stay."""
    names: list[tuple[str, str]] = [(pattern.id, name)]
    envelopes = {}
    for table in ("orders", "receipts"):
        for row in pattern.rows[table]:
            begin, payload, end = _parts(row["envelope"])
            for old, new in names:
                payload = payload.replace(old.encode(), new.encode())
            names.append((_bare(row["digest"]), _bare(digest_of(payload))))
            envelopes[table] = begin + b64encode(payload) + end
    return _Copy(name, tuple(names), envelopes)


def _bare(digest: str) -> str:
    """Its hex alone, as statements name it."""
    return digest.removeprefix("sha256:")


@cache
def _parts(envelope: bytes) -> tuple[bytes, bytes, bytes]:
    begin, mark, rest = envelope.partition(b'"payload":"')
    payload, quote, end = rest.partition(b'"')
    return begin + mark, b64decode(payload), quote + end


def _mould(pattern: Pattern, table: str, row: Row, leave: Collection[str]) -> _Mould:
    """The row without the columns that are left to the ledger."""
    columns = tuple(column for column in row if column not in leave)
    values = tuple(row[column] for column in columns)
    marks = [
        pattern.id,
        *(_bare(row["digest"]) for row in (*pattern.rows["orders"], *pattern.rows["receipts"])),
    ]
    named = tuple(
        at
        for at, value in enumerate(values)
        if isinstance(value, str) and any(mark in value for mark in marks)
    )
    return _Mould(table, columns, values, named, columns.index("envelope") if "envelope" in columns else None)


# ------------------------------------------------------------------ many


def _put(ledger: Path, pattern: Pattern, there: Pattern, names: Iterable[OrderId]) -> int:
    """What the pattern has beyond what is there of each of these orders."""
    count, rest = 0, iter(names)
    new = [
        _mould(pattern, table, row, {"seq"} if table in NUMBERED else ())
        for table, rows in pattern.rows.items()
        if table != "events"
        for row in rows[len(there.rows[table]) :]
    ]
    lines = [
        _mould(pattern, "events", row, ()) for row in pattern.rows["events"][len(there.rows["events"]) :]
    ]
    moved = [_mould(pattern, "jobs", row, {"seq"}) for row in pattern.rows["jobs"] if there.rows["jobs"]]
    counted = added_up([tally for mould in lines for tally in tallies_of(_event(mould))])
    with _opened(ledger) as plain:
        while some := [_copy_of(pattern, name) for name in islice(rest, AT_ONCE)]:
            plain.execute("BEGIN IMMEDIATE")
            for mould in new:
                plain.executemany(_insert(mould), map(mould.cast, some))
            for mould in moved:
                plain.executemany(_update(mould), ([*mould.cast(copy), f"{copy.id}.0"] for copy in some))
            _tell(plain, lines, some)
            for one in counted:
                plain.execute(
                    _COUNT, (one.name, msgspec.json.encode(one.labels).decode(), one.value * len(some))
                )
            plain.execute("COMMIT")
            count += len(some)
    return count


def _insert(mould: _Mould) -> str:
    names = ", ".join(f'"{column}"' for column in mould.columns)
    return f"INSERT INTO {mould.table} ({names}) VALUES ({', '.join('?' * len(mould.columns))})"  # noqa: S608 - our own words


def _update(mould: _Mould) -> str:
    return f"UPDATE {mould.table} SET {', '.join(f'{column} = ?' for column in mould.columns)} WHERE id = ?"  # noqa: S608


def _event(mould: _Mould) -> NewEvent:
    row = dict(zip(mould.columns, mould.values, strict=True))
    return NewEvent(
        name=row["name"],
        order_id=row["order_id"],
        position=row["position"],
        dataset=row["dataset"],
        values=msgspec.json.decode(row["values"]),
    )


def _tell(plain: sqlite3.Connection, lines: Sequence[_Mould], copies: Sequence[_Copy]) -> None:
    """The lines of each copy in the log, each chained to the one before."""
    newest = plain.execute("SELECT seq, digest FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    rows = _chained(lines, copies, *(newest or (0, None)))
    plain.executemany(_insert(lines[0]), rows)


def _chained(
    lines: Sequence[_Mould], copies: Sequence[_Copy], seq: int, digest: Digest | None
) -> Iterator[list[Any]]:
    at_seq, at_at, at_values, at_digest = (
        lines[0].columns.index(name) for name in ("seq", "at", "values", "digest")
    )
    moments = [_EPOCH + timedelta(microseconds=mould.values[at_at]) for mould in lines]
    abouts = [_event(mould) for mould in lines]
    for copy in copies:
        for mould, at, about in zip(lines, moments, abouts, strict=True):
            row = mould.cast(copy)
            seq += 1
            values = msgspec.Raw(row[at_values].encode())
            digest = digest_of_line(
                Line(seq, at, about.name, copy.id, about.position, about.dataset, values, digest)
            )
            row[at_seq], row[at_digest] = seq, digest
            yield row


def _opened(ledger: Path) -> "sqlite3.Connection":
    """For writing alone, while no agent has it open, without a journal: what a bench makes it can make anew."""
    plain = _Closing(ledger, timeout=60.0, isolation_level=None)
    for pragma in (
        "locking_mode = EXCLUSIVE",
        "journal_mode = OFF",
        "synchronous = OFF",
        "cache_size = -524288",
    ):
        plain.execute(f"PRAGMA {pragma}")
    return plain


class _Closing(sqlite3.Connection):
    """A connection that closes with its block, and leaves the file as the agent keeps it."""

    def __exit__(self, *_told: object) -> None:  # type: ignore[override]
        self.execute("PRAGMA journal_mode = WAL")
        self.close()
