"""The ledger's numbers for whoever watches this host. They are written where what they count is written."""

from datetime import datetime
from typing import Final

from sqlalchemy import bindparam, func, select, text

from agent.domain.ids import JobId, OrderId
from agent.domain.jobs import FINAL, JobState
from agent.domain.measures import Gauges, PhaseTime, Tally
from agent.domain.traces import TraceId
from agent.ports.ledger_schema import IS_PENDING, deliveries, jobs, orders, phases, targets
from agent.ports.ledger_sqlalchemy_audit import oldest_unsigned
from agent.ports.ledger_sqlalchemy_file import LedgerFile
from agent.ports.ledger_sqlalchemy_lines import last_line
from agent.ports.ledger_sqlalchemy_prepared import Prepared
from agent.ports.ledger_sqlalchemy_tallies import read_tallies

_TRACE: Final = Prepared(select(orders.c.trace_id).where(orders.c.id == bindparam("id")))
_OPEN: Final = tuple(state for state in JobState if state not in FINAL)


class MeasureRecords:
    """The part of the ledger that measures."""

    _file: LedgerFile

    def given_trace(self, order_id: OrderId) -> TraceId | None:
        with self._file.looking() as driver:
            found = _TRACE.first(driver, {"id": order_id})
        return None if found is None or found[0] is None else TraceId(found[0])

    def phase_times(self, order_id: OrderId) -> tuple[PhaseTime, ...]:
        query = (
            select(phases)
            .join(jobs, jobs.c.id == phases.c.job_id)
            .where(jobs.c.order_id == order_id)
            .order_by(jobs.c.position, phases.c.attempt, phases.c.n)
        )
        with self._file.reading() as tx:
            return tuple(
                PhaseTime(
                    job=JobId(row["job_id"]),
                    attempt=row["attempt"],
                    phase=row["phase"],
                    seconds=row["seconds"],
                )
                for row in tx.execute(query).mappings()
            )

    def tallies(self) -> tuple[Tally, ...]:
        with self._file.reading() as tx:
            return read_tallies(tx)

    def gauges(self) -> Gauges:
        waiting: dict[JobState, datetime] = {}
        file_bytes, _, _ = self._file.pages()
        with self._file.reading() as tx:
            for state in _OPEN:
                first = select(jobs.c.received_at).where(jobs.c.state == state).order_by(jobs.c.seq).limit(1)
                since: datetime | None = tx.execute(first).scalar()
                if since is not None:
                    waiting[state] = since
            first_sent = select(deliveries.c.created_at).where(text(IS_PENDING)).order_by(deliveries.c.seq)
            lines, _ = last_line(tx)
            return Gauges(
                waiting=waiting,
                unsent=tx.execute(first_sent.limit(1)).scalar(),
                resting=tx.execute(select(func.count()).select_from(targets)).scalar_one(),
                lines=lines,
                unsigned=oldest_unsigned(tx),
                ledger_bytes=file_bytes,
            )
