"""The ledger's readings for who looks on. Nothing here writes, and nothing reads more than it gives, but for `jobs_with`."""

from collections.abc import Collection, Iterable, Sequence, Set
from typing import Any

from msgspec.structs import replace
from sqlalchemy import ColumnElement, Connection, RowMapping, Select, exists, func, or_, select, union_all

from agent.domain.ids import Digest, JobId, KeyId
from agent.domain.jobs import Job, JobState
from agent.domain.receipts import SignedReceipt
from agent.errors import NotFound
from agent.ports.ledger import JobQuery
from agent.ports.ledger_schema import events, job_counts, jobs, orders, receipts
from agent.ports.ledger_sqlalchemy_file import LedgerFile
from agent.ports.ledger_sqlalchemy_rows import job_of, receipt_of

PLACES = 400  # orders in one statement: old builds of SQLite take 999 values


class LiveRecords:
    """The part of the ledger that is read by who looks on."""

    _file: LedgerFile

    def version(self) -> int:
        return self._file.version()

    def newest_event(self) -> int:
        with self._file.reading() as tx:
            newest: int | None = tx.execute(select(func.max(events.c.seq))).scalar()
        return newest or 0

    def counts(self) -> dict[JobState, int]:
        """From the sums that triggers keep: a million finished jobs are not counted again by whoever asks."""
        with self._file.reading() as tx:
            found = {row.state: row.count_ for row in tx.execute(select(job_counts))}
        return {state: found.get(state, 0) for state in JobState}

    def receipts_at(self, places: Iterable[tuple[Digest, int]]) -> tuple[SignedReceipt, ...]:
        wanted = set(places)
        found: list[RowMapping] = []
        orders_wanted = sorted({order for order, _ in wanted})
        with self._file.reading() as tx:
            for first in range(0, len(orders_wanted), PLACES):
                # Not by pairs: for those SQLite reads the whole table.
                of_orders = receipts.c.order_digest.in_(orders_wanted[first : first + PLACES])
                at_positions = receipts.c.position.in_({position for _, position in wanted})
                found += tx.execute(select(receipts).where(of_orders, at_positions)).mappings().all()
        return tuple(receipt_of(row) for row in found if (row["order_digest"], row["position"]) in wanted)

    def jobs_with(self, agent: Collection[KeyId], query: JobQuery, among: int) -> tuple[Job, ...]:
        with self._file.reading() as tx:
            of_anybody = replace(query, signer=None, limit=among)
            newest = page_of(of_anybody, before(tx, query.after)).subquery()
            of_agent = select(jobs).where(jobs.c.seq.in_(select(newest.c.seq)), _is_party(agent))
            rows = tx.execute(of_agent.order_by(jobs.c.seq.desc()).limit(query.limit)).mappings()
            return tuple(job_of(row) for row in rows)


def before(tx: Connection, after: JobId | None) -> int | None:
    """The number below which a page begins. Raises: NotFound."""
    if after is None:
        return None
    found: int | None = tx.execute(select(jobs.c.seq).where(jobs.c.id == after)).scalar()
    if found is None:
        raise NotFound(f"no job {after}")
    return found


def page_of(query: JobQuery, below: int | None) -> Select[Any]:
    """The page of jobs that the query means, of those numbered below."""
    conditions = [] if below is None else [jobs.c.seq < below]
    if query.signer is not None:
        conditions.append(jobs.c.signer == query.signer)
    if query.order_id is not None:  # at most one job a position: few
        conditions.append(jobs.c.order_id == query.order_id)
        if query.states:
            conditions.append(jobs.c.state.in_(query.states))
    elif query.states or query.signer is not None:
        return merged(query.states or set(JobState), conditions, query.limit, newest_first=True)
    return select(jobs).where(*conditions).order_by(jobs.c.seq.desc()).limit(query.limit)


def merged(
    states: Set[JobState], conditions: Sequence[ColumnElement[bool]], limit: int, *, newest_first: bool
) -> Select[Any]:
    """The first so many jobs in these states. Each state's first are read from its index and then merged, because SQLite
    would read and sort all jobs of all the states."""

    def in_order(key: ColumnElement[int]) -> ColumnElement[int]:
        return key.desc() if newest_first else key

    first = select(jobs.c.seq).where(*conditions).order_by(in_order(jobs.c.seq)).limit(limit)
    parts = [first.where(jobs.c.state == state).subquery() for state in sorted(states)]
    merged = union_all(*[select(part.c.seq) for part in parts]).subquery()
    found = select(merged.c.seq).order_by(in_order(merged.c.seq)).limit(limit)
    return select(jobs).where(jobs.c.seq.in_(found)).order_by(in_order(jobs.c.seq))


def _is_party(agent: Collection[KeyId]) -> ColumnElement[bool]:
    """Whether the agent with these keys stands in the chain of a job's order: each is a look into an index."""
    there = jobs.alias("there")
    return or_(
        exists().where(
            orders.c.id == jobs.c.order_id, or_(orders.c.sender.in_(agent), orders.c.signer.in_(agent))
        ),
        exists().where(receipts.c.order_digest == jobs.c.order_digest, receipts.c.signer.in_(agent)),
        exists().where(there.c.order_id == jobs.c.order_id, there.c.next_agent.in_(agent)),
    )
