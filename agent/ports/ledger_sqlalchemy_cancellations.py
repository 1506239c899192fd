"""The ledger's transactions on orders that end because somebody said so."""

from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import Connection, delete, func, insert, select, update

from agent.domain.cancellations import OPERATOR, KeptCancellation
from agent.domain.ids import Digest, OrderId
from agent.domain.jobs import JobEvent, JobState
from agent.errors import LostRace, QueueFull
from agent.ports import ledger_sqlalchemy_writes as writes
from agent.ports.ledger import CancelStep, DeliveryState, OrderRecord
from agent.ports.ledger_schema import cancellations, jobs, orders
from agent.ports.ledger_sqlalchemy_file import LedgerFile
from agent.ports.ledger_sqlalchemy_lines import tell
from agent.ports.ledger_sqlalchemy_rows import Plain, order_of

OPEN = (JobState.RECEIVED, JobState.HELD, JobState.QUEUED, JobState.RUNNING)


class CancellationRecords:
    """The part of the ledger that knows of cancellations."""

    def __init__(self, file: LedgerFile) -> None:
        self._file = file

    def order_of_digest(self, order: Digest) -> OrderRecord | None:
        with self._file.reading() as tx:
            row = tx.execute(select(orders).where(orders.c.digest == order)).mappings().one_or_none()
        return None if row is None else order_of(row)

    def cancellations(self, order: Digest) -> tuple[KeptCancellation, ...]:
        query = select(cancellations).where(cancellations.c.order_digest == order)
        with self._file.reading() as tx:
            rows = tx.execute(query.order_by(cancellations.c.at)).mappings().all()
        return tuple(
            KeptCancellation(
                order=Digest(row["order_digest"]),
                source=row["source"],
                at=row["at"],
                keep_until=row["keep_until"],
                envelope=row["envelope"],
                uid=row["uid"],
                reason=row["reason"],
            )
            for row in rows
        )

    def cancel(
        self,
        kept: KeptCancellation,
        steps: Sequence[CancelStep],
        now: datetime,
        *,
        most_without_order: int,
    ) -> bool:
        with self._file.writing() as tx:
            is_new = _keep(tx, kept, now, most_without_order)
            for step in steps:
                _take(tx, step, kept, now)
            _require_nothing_left(tx, kept)
            return is_new

    def forget_cancellations(self, now: datetime) -> int:
        with self._file.writing() as tx:
            return tx.execute(delete(cancellations).where(cancellations.c.keep_until < now)).rowcount


def _keep(tx: Connection, kept: KeptCancellation, now: datetime, most_without_order: int) -> bool:
    here = (cancellations.c.order_digest == kept.order, cancellations.c.source == kept.source)
    before = tx.execute(select(cancellations.c.keep_until).where(*here)).mappings().one_or_none()
    if before is not None:
        longer = max(before["keep_until"], kept.keep_until)
        tx.execute(update(cancellations).where(*here).values(keep_until=longer))
        return False
    order_id: OrderId | None = tx.execute(select(orders.c.id).where(orders.c.digest == kept.order)).scalar()
    if order_id is None:
        _require_room(tx, kept.source, most_without_order)
    row = msgspec.structs.asdict(kept)
    row["order_digest"] = row.pop("order")
    tx.execute(insert(cancellations), row)
    told: dict[str, Plain] = {
        "order": kept.order,
        "source": kept.source,
        "uid": kept.uid,
        "reason": kept.reason,
    }
    tell(tx, "order.cancelled", now, order_id, None, told)
    return True


def _require_room(tx: Connection, source: str, limit: int) -> None:
    """Raises: QueueFull when that many of its cancellations are of orders that never came. Counts no further."""
    came = select(orders.c.id).where(orders.c.digest == cancellations.c.order_digest).exists()
    early = select(cancellations.c.source).where(cancellations.c.source == source, ~came).limit(limit)
    if tx.execute(select(func.count()).select_from(early.subquery())).scalar_one() >= limit:
        raise QueueFull(f"{limit} cancellations of {source} wait here for orders that never came")


def _take(tx: Connection, step: CancelStep, kept: KeptCancellation, now: datetime) -> None:
    if step.is_ended:
        job = writes.transit(tx, step.job, JobEvent.CANCEL, now, reason=kept.told_reason, not_before=None)
    else:
        job = writes.change(tx, step.job, state=step.job.state)  # only to see that nobody moved it
    for delivery in step.withdrawn:
        _, _, state = writes.read_delivery_state(tx, delivery)
        if state not in {DeliveryState.PENDING, DeliveryState.DEAD}:
            raise LostRace(f"delivery {delivery} is {state}")
        writes.change_delivery(tx, delivery, state=DeliveryState.WITHDRAWN, last_error=kept.told_reason)
    writes.put_deliveries(tx, job, step.deliveries, now)
    writes.settle(tx, job, now)


def _require_nothing_left(tx: Connection, kept: KeptCancellation) -> None:
    """Raises: LostRace when a job came or moved that the steps do not know."""
    left = select(jobs.c.id).join(orders, orders.c.id == jobs.c.order_id).where(orders.c.digest == kept.order)
    left = left.where(jobs.c.state.in_(OPEN)).limit(1)
    if kept.source == OPERATOR:
        left = left.where(jobs.c.next_agent.is_(None))
    found = tx.execute(left).scalar()
    if found is not None:
        raise LostRace(f"job {found} came while its order was cancelled")
