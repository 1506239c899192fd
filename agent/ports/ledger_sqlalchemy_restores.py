"""The ledger's transactions on having been put back from a backup."""

from datetime import datetime, timedelta

import msgspec
from sqlalchemy import insert, select, update

from agent.domain.backups import CLAIMS_BETWEEN, Restore, signed_after
from agent.domain.control import Control, Mode
from agent.domain.jobs import FINAL, JobState
from agent.ports import ledger_sqlalchemy_writes as writes
from agent.ports.ledger_schema import deliveries, jobs, restores
from agent.ports.ledger_sqlalchemy_attempts import put_control
from agent.ports.ledger_sqlalchemy_file import LedgerFile
from agent.ports.ledger_sqlalchemy_lines import tell
from agent.ports.ledger_sqlalchemy_rows import Plain


class RestoreRecords:
    """The part of the ledger that knows of its restores."""

    def __init__(self, file: LedgerFile) -> None:
        self._file = file

    def mark_restored(
        self,
        now: datetime,
        *,
        backup_made_at: datetime,
        skew: timedelta,
        generation: int = 0,
        uid: int | None = None,
    ) -> Restore:
        reason = f"restored from a backup of {backup_made_at.isoformat(timespec='seconds')}"
        with self._file.writing() as tx:
            restore = Restore(
                at=now,
                generation=max(writes.generation(tx), generation) + 1,
                backup_made_at=backup_made_at,
                signed_after=signed_after(now, backup_made_at, skew),
                uid=uid,
            )
            tx.execute(insert(restores), msgspec.structs.asdict(restore))
            claim = jobs.c.claim + CLAIMS_BETWEEN * restore.generation
            tx.execute(update(jobs).where(jobs.c.state.not_in(FINAL)).values(claim=claim))
            tx.execute(update(jobs).where(jobs.c.state == JobState.RUNNING).values(lease_until=now))
            tx.execute(update(deliveries).values(lease_until=None))
            values: dict[str, Plain] = {
                "backup_made_at": backup_made_at.isoformat(timespec="seconds"),
                "uid": uid,
            }
            tell(tx, "ledger.restored", now, None, None, values)
            put_control(tx, Control(mode=Mode.RESTORED, since=now, reason=reason, uid=uid), now)
        return restore

    def restores(self) -> tuple[Restore, ...]:
        query = select(restores).order_by(restores.c.seq.desc())
        with self._file.reading() as tx:
            return tuple(
                Restore(
                    at=row["at"],
                    generation=row["generation"],
                    backup_made_at=row["backup_made_at"],
                    signed_after=row["signed_after"],
                    uid=row["uid"],
                )
                for row in tx.execute(query).mappings()
            )
