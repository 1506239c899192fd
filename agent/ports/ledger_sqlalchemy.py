"""The ledger on SQLite through SQLAlchemy core: one file that all processes of this host share.

Here are the transactions, one method each; their parts are in `ledger_sqlalchemy_writes.py`, the file itself in
`ledger_sqlalchemy_file.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import bindparam, delete, select, text, tuple_, update

from agent.domain.audit import NewEvent
from agent.domain.ids import Digest, JobId, KeyId, OrderId
from agent.domain.jobs import IllegalMove, Job, JobEvent, JobState
from agent.domain.receipts import SignedReceipt
from agent.errors import LostRace, NotFound
from agent.ports import ledger_sqlalchemy_writes as writes
from agent.ports.ledger import (
    Delivery,
    DeliveryState,
    JobQuery,
    NewDelivery,
    OrderRecord,
    Successor,
)
from agent.ports.ledger_schema import (
    IS_DEAD,
    IS_LEASED,
    IS_PENDING,
    RESTS,
    deliveries,
    jobs,
    logs,
    nonces,
    orders,
    probe,
    receipts,
    targets,
)
from agent.ports.ledger_sqlalchemy_attempts import AttemptRecords, require_may_start
from agent.ports.ledger_sqlalchemy_audit import AuditRecords
from agent.ports.ledger_sqlalchemy_bells import BellRecords
from agent.ports.ledger_sqlalchemy_cancellations import CancellationRecords
from agent.ports.ledger_sqlalchemy_disk import Keeping
from agent.ports.ledger_sqlalchemy_file import migrate, open_file
from agent.ports.ledger_sqlalchemy_images import ImageRecords
from agent.ports.ledger_sqlalchemy_intake import IntakeRecords
from agent.ports.ledger_sqlalchemy_lines import tell_these
from agent.ports.ledger_sqlalchemy_live import LiveRecords, before, page_of
from agent.ports.ledger_sqlalchemy_measures import MeasureRecords
from agent.ports.ledger_sqlalchemy_outbox import OutboxRecords, full_deliveries
from agent.ports.ledger_sqlalchemy_page import PageRecords
from agent.ports.ledger_sqlalchemy_prepared import Prepared
from agent.ports.ledger_sqlalchemy_restores import RestoreRecords
from agent.ports.ledger_sqlalchemy_rows import delivery_of, job_of, order_of, receipt_of
from agent.ports.ledger_sqlalchemy_tallies import put_phases

AT_ONCE = 1000  # nonces that go in one transaction, so that no order waits long

__all__ = ["SqlAlchemyLedger", "migrate", "open_ledger"]


def open_ledger(path: Path, *, before_commit: Callable[[], None] | None = None) -> "SqlAlchemyLedger":
    """The ledger at `path`: made with mode 0600 when it is missing, migrated when it is behind. Raises: LedgerUnavailable."""
    return SqlAlchemyLedger(open_file(path, before_commit))


_ORDER: Final = Prepared(select(orders).where(orders.c.id == bindparam("id")))


class SqlAlchemyLedger(
    IntakeRecords,
    ImageRecords,
    AttemptRecords,
    AuditRecords,
    BellRecords,
    CancellationRecords,
    Keeping,
    LiveRecords,
    OutboxRecords,
    MeasureRecords,
    PageRecords,
    RestoreRecords,
):
    """See `ledger.Ledger`. Threads and processes share it freely."""

    # ---- reading

    def job(self, job: JobId) -> Job:
        with self._file.looking() as driver:
            return writes.look_at_job(driver, job)

    def jobs(self, query: JobQuery) -> tuple[Job, ...]:
        with self._file.reading() as tx:
            page = page_of(query, before(tx, query.after))
            return tuple(job_of(row) for row in tx.execute(page).mappings())

    def order(self, order_id: OrderId) -> OrderRecord:
        with self._file.looking() as driver:
            row = _ORDER.named(driver, {"id": order_id})
        if row is None:
            raise NotFound(f"no order {order_id}")
        return order_of(row)

    def receipts(self, order: Digest) -> tuple[SignedReceipt, ...]:
        query = select(receipts).where(receipts.c.order_digest == order).order_by(receipts.c.position)
        with self._file.reading() as tx:
            rows = tx.execute(query).mappings().all()
        return tuple(receipt_of(row) for row in rows)

    def deliveries(
        self, *, order_id: OrderId | None = None, state: DeliveryState | None = None
    ) -> tuple[Delivery, ...]:
        query = full_deliveries().order_by(deliveries.c.seq)
        if order_id is not None:
            query = query.where(deliveries.c.order_id == order_id)
        if state is DeliveryState.DEAD and order_id is None:
            query = query.where(text(IS_DEAD))
        elif state is DeliveryState.PENDING and order_id is None:
            query = query.where(text(IS_PENDING))
        elif state is not None:
            query = query.where(deliveries.c.state == state)
        with self._file.reading() as tx:
            return tuple(delivery_of(row) for row in tx.execute(query).mappings())

    # ---- moving

    def move(
        self,
        job: Job,
        event: JobEvent,
        now: datetime,
        *,
        reason: str | None = None,
        not_before: datetime | None = None,
        next_agent: KeyId | None = None,
        receipt: SignedReceipt | None = None,
        score: str | None = None,
        deliveries: Sequence[NewDelivery] = (),
        successor: Successor | None = None,
        told: Sequence[NewEvent] = (),
        phases: Mapping[str, float] | None = None,
    ) -> Job:
        _refuse_wrong_move(job, event, receipt)
        columns: dict[str, Any] = {"reason": reason, "not_before": not_before}
        if next_agent is not None:
            columns["next_agent"] = next_agent
        if score is not None:
            columns["score"] = score
        with self._file.writing() as tx:
            tell_these(tx, told, now)
            moved = writes.transit(tx, job, event, now, **columns)
            if receipt is not None:
                writes.put_own_receipt(tx, moved, receipt, now)
            put_phases(tx, moved, phases or {})
            writes.put_deliveries(tx, moved, deliveries, now)
            if successor is not None:
                writes.put_successor(tx, moved, successor, receipt, now)
            return writes.settle(tx, moved, now) if event in {JobEvent.ATTEST, JobEvent.RECALL} else moved

    def start(
        self,
        job: Job,
        now: datetime,
        *,
        worker: str,
        lease_until: datetime,
        deliveries: Sequence[NewDelivery] = (),
    ) -> Job:
        if job.state is not JobState.QUEUED:
            raise LostRace(f"job {job.id} is {job.state}")
        columns = {"attempt": job.attempt + 1, "claim": job.claim + 1, "not_before": None}
        with self._file.writing() as tx:
            require_may_start(tx)
            current = writes.read_job(tx, job.id)
            if current.not_before is not None and current.not_before > now:
                raise LostRace(f"job {job.id} rests until {current.not_before.isoformat()}")
            started = writes.transit(
                tx, job, JobEvent.START, now, worker=worker, lease_until=lease_until, **columns
            )
            writes.put_deliveries(tx, started, deliveries, now)
            return started

    def renew(self, worker: str, lease_until: datetime) -> None:
        query = update(jobs).where(jobs.c.state == JobState.RUNNING, jobs.c.worker == worker)
        with self._file.writing() as tx:
            tx.execute(query.values(lease_until=lease_until))

    def redirect(self, job: Job, now: datetime, *, next_agent: KeyId, delivery: NewDelivery) -> Job:
        if job.state is not JobState.RECEIVED:
            raise IllegalMove(f"a {job.state} job cannot be redirected")
        if job.next_agent is not None:
            raise LostRace(f"job {job.id} goes to {job.next_agent} already")
        with self._file.writing() as tx:
            moved = writes.send_to(tx, job, next_agent, now)
            writes.put_deliveries(tx, moved, [delivery], now)
            return moved

    # ---- logs of jobs

    def keep_log(self, job: Job, run: str, log: bytes) -> None:
        with self._file.writing() as tx:
            writes.put_log(tx, job, run, log)

    def logs(self, order_id: OrderId) -> tuple[tuple[JobId, int, str, bytes], ...]:
        query = select(logs).where(logs.c.order_id == order_id).order_by(logs.c.seq)
        with self._file.reading() as tx:
            rows = tx.execute(query).mappings().all()
        return tuple((JobId(row["job_id"]), row["attempt"], row["run"], row["log"]) for row in rows)

    # ---- the sweep

    def correct_clock(self, now: datetime, *, lease: timedelta, rest: timedelta) -> int:
        running, rests = jobs.c.state == JobState.RUNNING, text(RESTS)
        has_worker, pending, leased = jobs.c.worker.is_not(None), text(IS_PENDING), text(IS_LEASED)
        resting = update(jobs).with_hint(
            "INDEXED BY jobs_resting", dialect_name="sqlite"
        )  # not all that are queued
        corrections = (
            update(jobs).where(running, has_worker, jobs.c.lease_until > now + lease).values(lease_until=now),
            update(jobs).where(running, jobs.c.lease_until > now + max(lease, rest)).values(lease_until=now),
            resting.where(rests, jobs.c.not_before > now + rest).values(not_before=now),
            update(deliveries).where(pending, deliveries.c.next_try_at > now + rest).values(next_try_at=now),
            update(deliveries).where(leased, deliveries.c.lease_until > now + lease).values(lease_until=now),
            update(targets).where(targets.c.rests_until > now + rest).values(rests_until=now),
        )
        with self._file.writing() as tx:
            return sum(tx.execute(correction).rowcount for correction in corrections)

    def forget_nonces(self, now: datetime) -> int:
        over = select(nonces.c.keyid, nonces.c.nonce).where(nonces.c.keep_until < now).limit(AT_ONCE)
        some = delete(nonces).where(tuple_(nonces.c.keyid, nonces.c.nonce).in_(over))
        count, is_more = 0, True
        while is_more:
            with self._file.writing() as tx:
                went = tx.execute(some).rowcount
            count, is_more = count + went, went == AT_ONCE
        return count

    def check(self) -> None:
        with self._file.writing() as tx:
            tx.execute(update(probe).values(count=probe.c.count + 1))

    def close(self) -> None:
        self._file.close()


def _refuse_wrong_move(job: Job, event: JobEvent, receipt: SignedReceipt | None) -> None:
    """What `follow` cannot see. Raises: IllegalMove."""
    if event in {JobEvent.START, JobEvent.SETTLE}:
        raise IllegalMove(
            f"{event} is not the caller's: `start` starts a job, and the last delivery settles it"
        )
    if event in {JobEvent.ENQUEUE, JobEvent.HOLD} and job.next_agent is not None:
        raise IllegalMove(f"job {job.id} goes to {job.next_agent}: it cannot {event} here")
    if receipt is not None and (receipt.receipt.order, receipt.receipt.position) != (job.order, job.position):
        raise IllegalMove(f"the receipt is not that of job {job.id}")
