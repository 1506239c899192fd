"""The ledger's transactions on the audit log: lines that belong to no other change, and signed heads among them.

Most lines are written by `writes.tell` inside the transaction that they tell of. Reading is `audit_sqlite.py`.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, RowMapping, select

from agent.domain.audit import CHECKPOINT, NewEvent, SignHead
from agent.domain.ids import OrderId
from agent.ports.ledger import EventRecord
from agent.ports.ledger_schema import events
from agent.ports.ledger_sqlalchemy_file import LedgerFile
from agent.ports.ledger_sqlalchemy_lines import last_line, tell, tell_these
from agent.ports.ledger_sqlalchemy_rows import Plain, event_of


class AuditRecords:
    """The part of the ledger that keeps the audit log."""

    _file: LedgerFile

    def events(
        self, *, order_id: OrderId | None = None, after: int = 0, limit: int = 500
    ) -> tuple[EventRecord, ...]:
        query = select(events).where(events.c.seq > after).order_by(events.c.seq).limit(limit)
        if order_id is not None:
            query = query.where(events.c.order_id == order_id)
        with self._file.reading() as tx:
            return tuple(event_of(row) for row in tx.execute(query).mappings())

    def record_event(
        self,
        name: str,
        now: datetime,
        *,
        order_id: OrderId | None = None,
        position: int | None = None,
        dataset: str | None = None,
        values: dict[str, Plain] | None = None,
    ) -> None:
        with self._file.writing() as tx:
            tell(tx, name, now, order_id, position, values or {}, dataset=dataset)

    def record_events(self, told: Sequence[NewEvent], now: datetime) -> None:
        if told:
            self._file.together(lambda tx: tell_these(tx, told, now))

    def last_event(self, name: str) -> EventRecord | None:
        with self._file.reading() as tx:
            row = _last_of_host(tx, name)
        return None if row is None else event_of(row)

    def checkpoint(self, sign: SignHead, now: datetime, *, lines: int, age: timedelta) -> bool:
        with self._file.reading() as tx:
            if not _is_due(tx, now, lines, age):  # the usual answer costs no write
                return False
        with self._file.writing() as tx:
            if not _is_due(tx, now, lines, age):
                return False
            tell(tx, CHECKPOINT, now, None, None, {"head": sign(*last_line(tx))})
            return True


def oldest_unsigned(tx: Connection) -> datetime | None:
    """When the oldest line was written that no signed head covers."""
    later = select(events.c.at).where(events.c.seq > _signed_until(tx)).order_by(events.c.seq).limit(1)
    oldest: datetime | None = tx.execute(later).scalar()
    return oldest


def _is_due(tx: Connection, now: datetime, lines: int, age: timedelta) -> bool:
    newest, _ = last_line(tx)
    if newest - _signed_until(tx) >= lines:
        return True
    oldest = oldest_unsigned(tx)
    return oldest is not None and abs(now - oldest) >= age


def _signed_until(tx: Connection) -> int:
    """The number of the newest line that holds a signed head; 0 without one."""
    before = _last_of_host(tx, CHECKPOINT)
    return 0 if before is None else int(before["seq"])


def _last_of_host(tx: Connection, name: str) -> RowMapping | None:
    """The newest line of this name that is about no order. The index by order holds those together."""
    query = select(events).where(events.c.order_id.is_(None), events.c.name == name)
    return tx.execute(query.order_by(events.c.seq.desc()).limit(1)).mappings().first()
