"""The ledger's records of attempts under way: who has one in hand, how far it came, and whether any may begin."""

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, RowMapping, delete, insert, or_, select, update

from agent.domain.audit import NewEvent
from agent.domain.control import Control, Mode
from agent.domain.jobs import Job, JobState
from agent.errors import LostRace
from agent.ports import ledger_sqlalchemy_writes as writes
from agent.ports.ledger_attempts import Step
from agent.ports.ledger_schema import control, jobs, steps
from agent.ports.ledger_sqlalchemy_file import LedgerFile
from agent.ports.ledger_sqlalchemy_lines import tell, tell_these
from agent.ports.ledger_sqlalchemy_prepared import Prepared, driver_of
from agent.ports.ledger_sqlalchemy_rows import told_of

_ROW: Final = 1  # of `control`
_CONTROL: Final = Prepared(
    select(control.c.mode, control.c.since, control.c.until, control.c.reason, control.c.uid).where(
        control.c.id == _ROW
    )
)


class AttemptRecords:
    """The part of the ledger that attempts are made with."""

    def __init__(self, file: LedgerFile) -> None:
        self._file = file

    # ---- whose it is

    def adopt(self, job: Job, now: datetime, *, worker: str, lease_until: datetime) -> Job:
        with self._file.writing() as tx:
            _require_running(job)
            current = writes.read_job(tx, job.id)
            if current.lease_until is not None and current.lease_until > now:
                raise LostRace(f"job {job.id} is leased until {current.lease_until.isoformat()}")
            columns = {"worker": worker, "lease_until": lease_until, "claim": job.claim + 1, "reason": None}
            adopted = writes.change(tx, job, **columns)
            tell(tx, "job.adopted", now, job.order_id, job.position, told_of(adopted))
            return adopted

    def park(self, job: Job, now: datetime, *, until: datetime, reason: str) -> Job:
        with self._file.writing() as tx:
            _require_running(job)
            columns = {"worker": None, "lease_until": until, "claim": job.claim + 1, "reason": reason}
            parked = writes.change(tx, job, **columns)
            tx.execute(update(steps).where(*_of(job), steps.c.ended_at.is_(None)).values(tries=0))
            tell(tx, "job.parked", now, job.order_id, job.position, told_of(parked))
            return parked

    def release(self, process: str, now: datetime) -> int:
        mine = or_(jobs.c.worker == process, jobs.c.worker.startswith(f"{process}-", autoescape=True))
        query = update(jobs).where(jobs.c.state == JobState.RUNNING, mine, jobs.c.lease_until > now)
        with self._file.writing() as tx:
            return tx.execute(query.values(lease_until=now)).rowcount

    # ---- how far it came

    def begin_step(self, job: Job, name: str, now: datetime, *, told: Sequence[NewEvent] = ()) -> Step:
        here = (*_of(job), steps.c.name == name)
        with self._file.writing() as tx:
            writes.require_claim(tx, job)
            again = {"tries": steps.c.tries + 1, "begun_at": now, "ended_at": None, "outcome": None}
            if tx.execute(update(steps).where(*here).values(**again)).rowcount == 0:
                tx.execute(insert(steps), _row(job, name, tries=1, begun_at=now))
            tell_these(tx, told, now)
            return _step(tx.execute(select(steps).where(*here)).mappings().one())

    def end_step(
        self,
        job: Job,
        name: str,
        now: datetime,
        outcome: bytes,
        *,
        log: tuple[str, bytes] | None = None,
        told: Sequence[NewEvent] = (),
    ) -> None:
        here = (*_of(job), steps.c.name == name)
        ended = {"ended_at": now, "outcome": outcome}
        with self._file.writing() as tx:
            writes.require_claim(tx, job)
            if tx.execute(update(steps).where(*here).values(**ended)).rowcount == 0:
                tx.execute(insert(steps), _row(job, name, tries=1, begun_at=now) | ended)
            if log is not None:
                writes.put_log(tx, job, *log)
            tell_these(tx, told, now)

    def steps(self, job: Job) -> tuple[Step, ...]:
        query = select(steps).where(*_of(job)).order_by(steps.c.begun_at, steps.c.name)
        with self._file.reading() as tx:
            return tuple(_step(row) for row in tx.execute(query).mappings())

    # ---- what the host does

    def control(self) -> Control:
        with self._file.looking() as driver:
            return _read_control(driver)

    def set_control(self, said: Control, now: datetime) -> None:
        with self._file.writing() as tx:
            put_control(tx, said, now)


def put_control(tx: Connection, said: Control, now: datetime) -> None:
    """The one row, in the place of what was said before, with its event."""
    row = {
        "id": _ROW,
        "mode": said.mode,
        "since": said.since,
        "until": said.until,
        "reason": said.reason,
        "uid": said.uid,
    }
    tx.execute(delete(control))
    tx.execute(insert(control), row)
    tell(tx, f"host.{said.mode}", now, None, None, {"reason": said.reason, "uid": said.uid})


def require_may_start(tx: Connection) -> None:
    """Raises: LostRace while no task may start here: said in the transaction of the start, a pause misses none."""
    said = _read_control(driver_of(tx))
    if not said.may_start:
        raise LostRace(f"no task starts on this host: it is {said.mode}")


def _read_control(driver: sqlite3.Connection) -> Control:
    row = _CONTROL.first(driver, {})
    if row is None:
        return Control()
    mode, since, until, reason, uid = row
    return Control(mode=Mode(mode), since=since, until=until, reason=reason, uid=uid)


def _require_running(job: Job) -> None:
    """Raises: LostRace."""
    if job.state is not JobState.RUNNING:
        raise LostRace(f"job {job.id} is {job.state}")


def _of(job: Job) -> tuple[Any, Any]:
    return steps.c.job_id == job.id, steps.c.attempt == job.attempt


def _row(job: Job, name: str, *, tries: int, begun_at: datetime) -> dict[str, Any]:
    return {"job_id": job.id, "attempt": job.attempt, "name": name, "tries": tries, "begun_at": begun_at}


def _step(row: RowMapping) -> Step:
    return Step(
        name=row["name"],
        tries=row["tries"],
        begun_at=row["begun_at"],
        ended_at=row["ended_at"],
        outcome=row["outcome"],
    )
