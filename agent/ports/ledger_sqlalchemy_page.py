"""The ledger's reads for people: pages of orders, refusals and datasets, each found by an index, newest first."""

from collections.abc import Set
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from agent.domain.ids import Digest, JobId
from agent.domain.jobs import Job, JobState
from agent.domain.receipts import SignedReceipt
from agent.errors import NotFound
from agent.ports.ledger import EventRecord
from agent.ports.ledger_page import DatasetUse
from agent.ports.ledger_schema import dataset_lines, events, jobs, receipts
from agent.ports.ledger_sqlalchemy_file import LedgerFile
from agent.ports.ledger_sqlalchemy_rows import event_of, job_of, receipt_of


class PageRecords:
    """The part of the ledger that a person pages through."""

    _file: LedgerFile

    def newest_jobs(
        self, states: Set[JobState], *, after: JobId | None = None, limit: int = 50
    ) -> tuple[Job, ...]:
        with self._file.reading() as tx:
            before = None if after is None else _number_of(tx, after)
            if not states:
                return tuple(job_of(row) for row in _newest(tx, [], before, limit))
            # Each state's first are read from its index and then merged: SQLite would sort all jobs of all of them.
            rows = [
                row for state in sorted(states) for row in _newest(tx, [jobs.c.state == state], before, limit)
            ]
        rows.sort(key=lambda row: int(row["seq"]), reverse=True)
        return tuple(job_of(row) for row in rows[:limit])

    def receipts_from(self, order: Digest, first: int, limit: int) -> tuple[SignedReceipt, ...]:
        query = select(receipts).where(receipts.c.order_digest == order, receipts.c.position >= first)
        with self._file.reading() as tx:
            rows = tx.execute(query.order_by(receipts.c.position).limit(limit)).mappings().all()
        return tuple(receipt_of(row) for row in rows)

    def events_of_host(
        self, names: Set[str], *, before: int | None = None, limit: int = 50
    ) -> tuple[EventRecord, ...]:
        # The index by order holds the lines without one together, by number.
        query = select(events).where(events.c.order_id.is_(None), events.c.name.in_(sorted(names)))
        return self._lines(query, before, limit)

    def events_of_dataset(
        self, dataset: str, *, before: int | None = None, limit: int = 50
    ) -> tuple[EventRecord, ...]:
        return self._lines(select(events).where(events.c.dataset == dataset), before, limit)

    def datasets_used(self, *, before: int | None = None, limit: int = 50) -> tuple[DatasetUse, ...]:
        query = select(dataset_lines)
        if before is not None:
            query = query.where(dataset_lines.c.last < before)
        with self._file.reading() as tx:
            found = tx.execute(query.order_by(dataset_lines.c.last.desc()).limit(limit)).mappings().all()
            wanted = select(events).where(events.c.seq.in_([row["last"] for row in found]))
            lines = {row["seq"]: event_of(row) for row in tx.execute(wanted).mappings()}
        return tuple(
            DatasetUse(dataset=row["dataset"], lines=row["lines"], last=lines[row["last"]]) for row in found
        )

    def _lines(self, query: Any, before: int | None, limit: int) -> tuple[EventRecord, ...]:
        if before is not None:
            query = query.where(events.c.seq < before)
        with self._file.reading() as tx:
            rows = tx.execute(query.order_by(events.c.seq.desc()).limit(limit)).mappings().all()
        return tuple(event_of(row) for row in rows)


def _number_of(tx: Connection, job: JobId) -> int:
    number = tx.execute(select(jobs.c.seq).where(jobs.c.id == job)).scalar()
    if number is None:
        raise NotFound(f"no job {job}")
    return int(number)


def _newest(
    tx: Connection, conditions: list[ColumnElement[bool]], before: int | None, limit: int
) -> list[Any]:
    later = jobs.alias("later")
    is_followed = select(later.c.seq).where(later.c.order_id == jobs.c.order_id, later.c.seq > jobs.c.seq)
    query = select(jobs).where(*conditions, ~is_followed.exists())
    if before is not None:
        query = query.where(jobs.c.seq < before)
    return list(tx.execute(query.order_by(jobs.c.seq.desc()).limit(limit)).mappings())
