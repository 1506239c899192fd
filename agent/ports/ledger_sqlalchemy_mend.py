"""The few mends of the ledger that lose nothing, each a compare-and-set of its own with an event `fsck.mended`."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, or_, update

from agent.domain.ids import JobId
from agent.domain.jobs import JobState
from agent.ports import ledger_sqlalchemy_writes as writes
from agent.ports.ledger_schema import jobs
from agent.ports.ledger_sqlalchemy_file import LedgerFile
from agent.ports.ledger_sqlalchemy_lines import tell


class LedgerMends:
    """See `agent/fsck/findings.py`. Each says whether it still was as it was found, and is mended now."""

    def __init__(self, file: LedgerFile) -> None:
        self._file = file

    def end_lease(self, job: str, now: datetime) -> bool:
        """A job that runs and is nobody's becomes an orphan, under a claim that nobody has: the next worker takes it over."""
        is_nobodys = or_(jobs.c.lease_until.is_(None), jobs.c.worker.is_(None) & jobs.c.reason.is_(None))
        columns = {"lease_until": now, "worker": None, "reason": "unclaimed", "claim": jobs.c.claim + 1}
        return self._change(job, now, "end-lease", columns, jobs.c.state == JobState.RUNNING, is_nobodys)

    def drop_lease(self, job: str, now: datetime) -> bool:
        """A job that does not run is leased to nobody."""
        columns = {"lease_until": None, "worker": None}
        is_leased = or_(jobs.c.lease_until.is_not(None), jobs.c.worker.is_not(None))
        return self._change(job, now, "drop-lease", columns, jobs.c.state != JobState.RUNNING, is_leased)

    def settle(self, job: str, now: datetime) -> bool:
        """A job with nobody left to be told is done."""

        def change(tx: Connection) -> bool:
            before = writes.read_job(tx, JobId(job))
            return writes.settle(tx, before, now) is not before

        return self._told(job, now, "settle", change)

    def _change(self, job: str, now: datetime, mend: str, columns: dict[str, Any], *fence: Any) -> bool:
        query = update(jobs).where(jobs.c.id == job, *fence).values(**columns)
        return self._told(job, now, mend, lambda tx: tx.execute(query).rowcount == 1)

    def _told(self, job: str, now: datetime, mend: str, change: Callable[[Connection], bool]) -> bool:
        with self._file.writing() as tx:
            if not change(tx):
                return False
            found = writes.read_job(tx, JobId(job))
            tell(tx, "fsck.mended", now, found.order_id, found.position, {"mend": mend})
            return True
