"""The ledger's readings for the sweep: what should be ringing, in pages that read no more than they are asked for."""

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, literal, or_, select, text, tuple_

from agent.domain.chain import TaskKind
from agent.domain.ids import JobId, KeyId
from agent.domain.jobs import WAITING, JobState
from agent.ports.ledger import DeliveryId
from agent.ports.ledger_bells import Unrung, Unsent, UnsentPage, Waiting, WaitingPage
from agent.ports.ledger_schema import IS_PENDING, IS_RECEIVED, deliveries, jobs, targets
from agent.ports.ledger_sqlalchemy_file import LedgerFile
from agent.ports.ledger_sqlalchemy_live import merged
from agent.ports.ledger_sqlalchemy_rows import job_of

PROBES: Final = 1  # deliveries that are rung for a target in trouble: one finds out whether it is back

# Each target by one look into the index: SQLite would read every pending delivery to tell which targets there are.
_TARGETS: Final = text(
    f"""
WITH RECURSIVE told (target) AS (
    SELECT min(target) FROM deliveries WHERE {IS_PENDING}
    UNION ALL
    SELECT (SELECT min(target) FROM deliveries WHERE {IS_PENDING} AND target > told.target)
    FROM told WHERE told.target IS NOT NULL
)
SELECT target FROM told WHERE target IS NOT NULL
"""  # noqa: S608 - our own words
)


class BellRecords:
    """The part of the ledger that the sweep goes through."""

    _file: LedgerFile

    def unrung(self, now: datetime, limit: int) -> Unrung:
        lapsed = select(jobs).where(jobs.c.state == JobState.RUNNING, jobs.c.lease_until <= now)
        with self._file.reading() as tx:
            orphans = tx.execute(lapsed.order_by(jobs.c.lease_until, jobs.c.seq).limit(limit))
            return Unrung(
                orphans=tuple(job_of(row) for row in orphans.mappings()), deliveries=send_by(tx, now, limit)
            )

    def waiting(self, now: datetime, *, after: int = 0, limit: int) -> WaitingPage:
        some = (jobs.c.seq, jobs.c.id, jobs.c.kind, jobs.c.state, jobs.c.next_agent, jobs.c.not_before)
        page = merged(WAITING, [jobs.c.seq > after], limit, newest_first=False).with_only_columns(*some)
        with self._file.reading() as tx:
            rows = tx.execute(page).all()
        due = (
            Waiting(JobId(row.id), TaskKind(row.kind), JobState(row.state))
            for row in rows
            if row.next_agent is None and (row.not_before is None or row.not_before <= now)
        )
        return WaitingPage(tuple(due), rows[-1].seq if len(rows) == limit else None)

    def is_placing(self, now: datetime, within: timedelta) -> bool:
        fresh = (jobs.c.changed_at > now - within, jobs.c.changed_at < now + within)
        query = select(jobs.c.seq).where(text(IS_RECEIVED), *fresh, jobs.c.next_agent.is_(None))
        query = query.with_hint(
            jobs, "INDEXED BY jobs_placing", "sqlite"
        )  # it would take all that are received
        with self._file.reading() as tx:
            return tx.execute(query.limit(1)).first() is not None

    def unsent(self, now: datetime, *, after: Unsent | None = None, limit: int) -> UnsentPage:
        d = deliveries.c
        place = (d.target, d.next_try_at, d.seq)
        query = select(*place, d.id, d.lease_until).where(text(IS_PENDING))
        if after is not None:
            moment = literal(
                after.next_try_at, d.next_try_at.type
            )  # a tuple does not tell its parts what they are
            query = query.where(tuple_(*place) > tuple_(after.target, moment, after.seq))
        with self._file.reading() as tx:
            rows = tx.execute(query.order_by(*place).limit(limit)).all()
            in_trouble = set(tx.execute(select(targets.c.target)).scalars())
        due = (
            DeliveryId(row.id)
            for row in rows
            if row.target not in in_trouble
            and row.next_try_at <= now
            and (row.lease_until is None or row.lease_until <= now)
        )
        last = None if len(rows) < limit else Unsent(KeyId(rows[-1][0]), rows[-1][1], rows[-1][2])
        return UnsentPage(tuple(due), last)


def send_by(tx: Connection, now: datetime, limit: int) -> tuple[DeliveryId, ...]:
    """What should be sent now, soonest first: a backlog for one who is away keeps nothing for others from its turn."""
    in_trouble = {row.target: row.rests_until for row in tx.execute(select(targets))}
    found, probes = [], []
    for target in sorted(tx.execute(_TARGETS).scalars()):
        if target not in in_trouble:
            found += due_to(tx, target, now, limit)
        elif in_trouble[target] <= now:
            probes += due_to(tx, target, now, PROBES)
    found.sort(key=lambda row: (row.next_try_at, row.seq))
    return tuple(DeliveryId(row.id) for row in (*found[:limit], *probes))


def due_to(tx: Connection, target: KeyId, now: datetime, limit: int) -> list[Any]:
    """(id, next_try_at, seq) of what should be sent to one target now, soonest first."""
    d = deliveries.c
    is_free = or_(d.lease_until.is_(None), d.lease_until <= now)
    query = select(d.id, d.next_try_at, d.seq).where(
        text(IS_PENDING), d.target == target, d.next_try_at <= now, is_free
    )
    return list(tx.execute(query.order_by(d.next_try_at, d.seq).limit(limit)).all())
