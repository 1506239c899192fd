"""What an orchestrator remembers: its orders, what agents told of them, its shares of keys, and to whom it gave them."""

import json
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from sqlite3 import Connection, Row
from typing import assert_never

from msgspec import Struct

from agent.devkit.database import Database
from agent.domain.chain import plan
from agent.domain.ids import Digest, KeyId, OrderId, digest_of
from agent.domain.orders import DatasetRef, SignedOrder
from agent.domain.receipts import MAX_RECEIPT_BYTES, SignedReceipt
from agent.domain.reports import ReportBody, ReportState, parse_report
from agent.domain.standings import OrderState, ReceiptTold, ReportsTold
from agent.errors import RecordConflict
from agent.trust.envelope import parse_envelope

_SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
    id TEXT PRIMARY KEY, digest TEXT NOT NULL, envelope BLOB NOT NULL, tasks INTEGER NOT NULL, state TEXT NOT NULL,
    position INTEGER NOT NULL, holder TEXT, reason TEXT, issued_at TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS reports (
    order_id TEXT, position INTEGER, reporter TEXT, n INTEGER, digest TEXT NOT NULL, body BLOB NOT NULL,
    received_at TEXT NOT NULL, PRIMARY KEY (order_id, position, reporter, n)) STRICT;
CREATE TABLE IF NOT EXISTS receipts (
    order_id TEXT, position INTEGER, digest TEXT NOT NULL, envelope BLOB NOT NULL, PRIMARY KEY (order_id, position)) STRICT;
CREATE TABLE IF NOT EXISTS results (
    order_id TEXT PRIMARY KEY, digest TEXT NOT NULL, body BLOB NOT NULL, received_at TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS shares (dataset TEXT, version TEXT, share BLOB NOT NULL, PRIMARY KEY (dataset, version)) STRICT;
CREATE TABLE IF NOT EXISTS withheld (dataset TEXT PRIMARY KEY, reason TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS releases (
    at TEXT NOT NULL, order_id TEXT NOT NULL, position INTEGER NOT NULL, dataset TEXT NOT NULL, version TEXT NOT NULL,
    agent TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS alarms (at TEXT NOT NULL, order_id TEXT NOT NULL, agent TEXT NOT NULL, what TEXT NOT NULL) STRICT;
"""


_KNOWN_REPORT = "SELECT digest FROM reports WHERE order_id = ? AND position = ? AND reporter = ? AND n = ?"
_COUNTED = """SELECT position, max(n) AS n FROM reports WHERE order_id = ? AND reporter = ? GROUP BY position
    ORDER BY position"""
_STARTED = "UPDATE orders SET holder = ? WHERE id = ? AND state = 'open' AND position <= ?"
_DONE = "UPDATE orders SET position = ?, holder = ? WHERE id = ? AND state = 'open' AND position <= ?"
_LATER = "SELECT body FROM reports WHERE order_id = ? AND position = ? AND reporter = ? AND n > ?"
_REOPENED = """UPDATE orders SET state = 'open', reason = NULL, holder = ?, position = max(position, ?)
    WHERE id = ? AND state IN ('failed', 'open') AND position <= ?"""
_FAILED = "UPDATE orders SET state = 'failed', reason = ? WHERE id = ? AND state = 'open'"
_CANCELLED = "UPDATE orders SET state = 'cancelled', reason = ? WHERE id = ? AND state = 'open'"


ON_HANDOFFS = frozenset(
    {ReportState.HANDOFF_REFUSED, ReportState.HANDOFF_EXPIRED, ReportState.HANDOFF_RETRIED}
)


class IssuedOrder(Struct, frozen=True):
    """An order of this orchestrator. `position`: the first without a receipt; `holder`: the agent said to have it."""

    id: OrderId
    digest: Digest
    envelope: bytes
    tasks: int
    state: OrderState
    position: int
    holder: KeyId | None
    reason: str | None


class Release(Struct, frozen=True):
    """A share that went out."""

    at: str
    order_id: str
    position: int
    dataset: str
    version: str
    agent: KeyId


class Alarm(Struct, frozen=True):
    """Something a person must look at: two stories about one thing."""

    at: str
    order_id: str
    agent: KeyId
    what: str


class Book:
    """The memory of one orchestrator, in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self.database = Database(path, _SCHEMA)

    # ---- orders

    def record_order(self, signed: SignedOrder, now: datetime) -> None:
        """Remember an order before it is sent. Raises: RecordConflict when its id is taken by another one."""
        tasks = len(plan(signed.order))
        values = (
            signed.order.id,
            signed.digest,
            signed.envelope,
            tasks,
            OrderState.OPEN,
            0,
            None,
            None,
            now.isoformat(),
        )
        with self.database.transaction() as sql:
            sql.execute("INSERT OR IGNORE INTO orders VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
            (digest,) = sql.execute("SELECT digest FROM orders WHERE id = ?", (signed.order.id,)).fetchone()
        if digest != signed.digest:
            raise RecordConflict(f"order id {signed.order.id} is taken by another order")

    def note_holder(self, order_id: OrderId, agent: KeyId) -> None:
        """Remember to whom an order is sent."""
        with self.database.transaction() as sql:
            sql.execute("UPDATE orders SET holder = ? WHERE id = ?", (agent, order_id))

    def order(self, order_id: str) -> IssuedOrder | None:
        """An order of this orchestrator."""
        row = self.database.row("SELECT * FROM orders WHERE id = ?", order_id)
        return None if row is None else _issued(row)

    def orders(
        self,
        *,
        agents: Collection[str] | None = None,
        state: str | None = None,
        after: str | None = None,
        limit: int = -1,
    ) -> tuple[IssuedOrder, ...]:
        """Its orders by who, by any of these keys, has them and how they stand, oldest first. `after`: the last of the page
        before."""
        keys = None if agents is None else json.dumps(sorted(agents))
        query = """SELECT * FROM orders WHERE (?1 IS NULL OR holder IN (SELECT value FROM json_each(?1)))
            AND state = ifnull(?, state) AND rowid > ifnull((SELECT rowid FROM orders WHERE id = ?), 0)
            ORDER BY rowid LIMIT ?"""
        return tuple(_issued(row) for row in self.database.rows(query, keys, state, after, limit))

    def is_open(self, order: SignedOrder, position: int) -> bool:
        """Whether, for all this orchestrator knows, nobody has finished that place yet. It knows nothing of others' orders."""
        issued = self.order(order.order.id)
        if issued is None or issued.digest != order.digest:
            return issued is None
        return issued.state is OrderState.OPEN and self.receipt(issued.id, position) is None

    # ---- what agents told

    def take_report(
        self,
        order_id: OrderId,
        reporter: KeyId,
        n: int,
        body: bytes,
        told: ReportBody,
        receipt: SignedReceipt | None,
        now: datetime,
        *,
        counts: bool,
    ) -> bool:
        """Remember a report, its receipt and, when it `counts`, what follows; False when it was remembered before.

        Raises: RecordConflict for another body under the same path, or another receipt for the same place.
        """
        place = (order_id, told.position, reporter, n)
        with self.database.transaction() as sql:
            known = sql.execute(_KNOWN_REPORT, place).fetchone()
            if known is not None:
                _require_same("report", known["digest"], digest_of(body))
                return False
            if receipt is not None:
                _keep_receipt(sql, order_id, told.position, receipt)
            sql.execute(
                "INSERT INTO reports VALUES (?, ?, ?, ?, ?, ?, ?)",
                (*place, digest_of(body), body, now.isoformat()),
            )
            if counts:
                _follow(sql, order_id, reporter, n, told)
        return True

    def take_result(
        self, order_id: OrderId, body: bytes, receipts: Sequence[SignedReceipt], now: datetime
    ) -> bool:
        """Remember an order's result and its receipts; False when it was remembered before.

        Raises: RecordConflict for another result, or another receipt for one of the places.
        """
        with self.database.transaction() as sql:
            known = sql.execute("SELECT digest FROM results WHERE order_id = ?", (order_id,)).fetchone()
            if known is not None:
                _require_same("result", known["digest"], digest_of(body))
                return False
            for position, receipt in enumerate(receipts):
                _keep_receipt(sql, order_id, position, receipt)
            sql.execute(
                "INSERT INTO results VALUES (?, ?, ?, ?)", (order_id, digest_of(body), body, now.isoformat())
            )
            sql.execute(
                "UPDATE orders SET state = ?, position = ? WHERE id = ?",
                (OrderState.DONE, len(receipts), order_id),
            )
        return True

    def receipt(self, order_id: str, position: int) -> bytes | None:
        """The receipt's envelope of that place."""
        row = self.database.row(
            "SELECT envelope FROM receipts WHERE order_id = ? AND position = ?", order_id, position
        )
        return None if row is None else row["envelope"]

    def receipts(self, order_id: str) -> tuple[bytes, ...]:
        """The receipts' envelopes of an order, by position."""
        rows = self.database.rows(
            "SELECT envelope FROM receipts WHERE order_id = ? ORDER BY position", order_id
        )
        return tuple(row["envelope"] for row in rows)

    def receipts_told(self, order_id: str) -> tuple[tuple[ReceiptTold, bytes], ...]:
        """The receipts of an order, by position, each with its envelope."""
        rows = self.database.rows("SELECT * FROM receipts WHERE order_id = ? ORDER BY position", order_id)
        return tuple((_told(row), row["envelope"]) for row in rows)

    def reports_told(self, order_id: str, reporter: KeyId) -> tuple[ReportsTold, ...]:
        """How far this agent's reports on each place of an order are counted."""
        rows = self.database.rows(_COUNTED, order_id, reporter)
        return tuple(ReportsTold(position=row["position"], n=row["n"]) for row in rows)

    def reports(self, order_id: str) -> tuple[bytes, ...]:
        """The bodies of an order's reports, as they came."""
        rows = self.database.rows("SELECT body FROM reports WHERE order_id = ? ORDER BY rowid", order_id)
        return tuple(row["body"] for row in rows)

    def result(self, order_id: str) -> bytes | None:
        """The body of an order's result."""
        row = self.database.row("SELECT body FROM results WHERE order_id = ?", order_id)
        return None if row is None else row["body"]

    # ---- shares of keys

    def keep_share(self, dataset: DatasetRef, share: bytes) -> None:
        """Keep this orchestrator's share of a dataset's key. Raises: RecordConflict when it has another one."""
        with self.database.transaction() as sql:
            sql.execute("INSERT OR IGNORE INTO shares VALUES (?, ?, ?)", (dataset.id, dataset.version, share))
        if self.share(dataset) != share:
            raise RecordConflict(f"another share of {dataset} is kept already")

    def share(self, dataset: DatasetRef) -> bytes | None:
        """This orchestrator's share of a dataset's key."""
        row = self.database.row(
            "SELECT share FROM shares WHERE dataset = ? AND version = ?", dataset.id, dataset.version
        )
        return None if row is None else row["share"]

    def withhold(self, dataset: str, reason: str | None) -> None:
        """Give out no share of this dataset any more, in no version; with no reason: give them out again."""
        with self.database.transaction() as sql:
            if reason is None:
                sql.execute("DELETE FROM withheld WHERE dataset = ?", (dataset,))
            else:
                sql.execute("INSERT OR REPLACE INTO withheld VALUES (?, ?)", (dataset, reason))

    def why_withheld(self, dataset: str) -> str | None:
        """Why no share of this dataset is given out; None when it is."""
        row = self.database.row("SELECT reason FROM withheld WHERE dataset = ?", dataset)
        return None if row is None else row["reason"]

    def note_release(
        self, order_id: str, position: int, dataset: DatasetRef, agent: KeyId, now: datetime
    ) -> None:
        """Write down that a share goes out, before it does."""
        with self.database.transaction() as sql:
            values = (now.isoformat(), order_id, position, dataset.id, dataset.version, agent)
            sql.execute("INSERT INTO releases VALUES (?, ?, ?, ?, ?, ?)", values)

    def releases(self) -> tuple[Release, ...]:
        """Every share that went out, oldest first."""
        return tuple(Release(*row) for row in self.database.rows("SELECT * FROM releases ORDER BY rowid"))

    # ---- alarms

    def raise_alarm(self, order_id: str, agent: KeyId, what: str, now: datetime) -> None:
        """Write down what a person must look at."""
        with self.database.transaction() as sql:
            sql.execute("INSERT INTO alarms VALUES (?, ?, ?, ?)", (now.isoformat(), order_id, agent, what))

    def alarms(self) -> tuple[Alarm, ...]:
        """Every alarm, oldest first."""
        return tuple(Alarm(*row) for row in self.database.rows("SELECT * FROM alarms ORDER BY rowid"))


def _issued(row: Row) -> IssuedOrder:
    return IssuedOrder(
        id=row["id"],
        digest=row["digest"],
        envelope=row["envelope"],
        tasks=row["tasks"],
        state=OrderState(row["state"]),
        position=row["position"],
        holder=row["holder"],
        reason=row["reason"],
    )


def _told(row: Row) -> ReceiptTold:
    signer = parse_envelope(row["envelope"], limit_bytes=MAX_RECEIPT_BYTES).keyid
    return ReceiptTold(position=row["position"], digest=row["digest"], agent=signer)


def _require_same(what: str, known: str, told: Digest) -> None:
    if known != told:
        raise RecordConflict(f"another {what} is recorded here: {known}")


def _keep_receipt(sql: Connection, order_id: str, position: int, receipt: SignedReceipt) -> None:
    """One receipt for each place, for ever. Raises: RecordConflict for another one."""
    values = (order_id, position, receipt.digest, receipt.envelope)
    sql.execute("INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?)", values)
    known = sql.execute(
        "SELECT digest FROM receipts WHERE order_id = ? AND position = ?", values[:2]
    ).fetchone()
    _require_same("receipt", known["digest"], receipt.digest)


def _follow(sql: Connection, order_id: str, reporter: KeyId, n: int, told: ReportBody) -> None:
    """What a report changes in an open order: where it stands, who has it, whether it is over."""
    match told.state:
        case ReportState.STARTED:
            sql.execute(_STARTED, (reporter, order_id, told.position))
        case ReportState.DONE:
            sql.execute(_DONE, (told.position + 1, told.next_agent or reporter, order_id, told.position))
        case ReportState.FAILED:
            sql.execute(_FAILED, (told.reason or told.state, order_id))
        case ReportState.CANCELLED:
            sql.execute(_CANCELLED, (told.reason or told.state, order_id))
        case ReportState.HANDOFF_REFUSED | ReportState.HANDOFF_EXPIRED:
            if not _is_overtaken(sql, order_id, reporter, n, told):
                sql.execute(_FAILED, (told.reason or told.state, order_id))
        case ReportState.HANDOFF_RETRIED:
            if not _is_overtaken(sql, order_id, reporter, n, told) and not _has_failed(sql, order_id):
                place = told.position + 1
                sql.execute(_REOPENED, (told.next_agent, place, order_id, place))
        case ReportState.ATTEMPT | ReportState.HELD:
            pass
        case _:
            assert_never(told.state)


def _is_overtaken(sql: Connection, order_id: str, reporter: KeyId, n: int, told: ReportBody) -> bool:
    """Whether a later word of this reporter on the same hand-off arrived before this one."""
    rows = sql.execute(_LATER, (order_id, told.position, reporter, n)).fetchall()
    return any(parse_report(row["body"]).state in ON_HANDOFFS for row in rows)


def _has_failed(sql: Connection, order_id: str) -> bool:
    """Whether a task of the order failed: no hand-off can mend that."""
    rows = sql.execute("SELECT body FROM reports WHERE order_id = ?", (order_id,)).fetchall()
    return any(parse_report(row["body"]).state is ReportState.FAILED for row in rows)
