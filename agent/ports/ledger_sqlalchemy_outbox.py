"""The ledger's transactions on what must reach others: the outbox, dead letters, and targets that do not answer."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, delete, insert, or_, select, text, update

from agent.domain.audit import is_told
from agent.domain.ids import KeyId
from agent.domain.jobs import Job
from agent.domain.measures import delivered, not_delivered
from agent.errors import LostRace, NotFound
from agent.ports import ledger_sqlalchemy_writes as writes
from agent.ports.ledger import Delivery, DeliveryHead, DeliveryId, DeliveryKind, DeliveryState, NewDelivery
from agent.ports.ledger_schema import (
    IS_DEAD,
    IS_HANDED_OVER,
    IS_PENDING,
    bodies,
    deliveries,
    delivery_counts,
    targets,
)
from agent.ports.ledger_sqlalchemy_bells import due_to
from agent.ports.ledger_sqlalchemy_file import LedgerFile
from agent.ports.ledger_sqlalchemy_lines import tell
from agent.ports.ledger_sqlalchemy_prepared import Prepared, driver_of
from agent.ports.ledger_sqlalchemy_rows import Plain, delivery_of, head_of
from agent.ports.ledger_sqlalchemy_tallies import count

MAX_TOLD: Final = 200  # characters of an error in a line of the log of events
_FAILURES: Final = Prepared(select(targets.c.failures).where(targets.c.target == bindparam("target")))


class OutboxRecords:
    """The part of the ledger that knows of deliveries."""

    _file: LedgerFile

    def lease_delivery(self, delivery: DeliveryId, now: datetime, lease_until: datetime) -> Delivery | None:
        told = {"id": delivery, "now": now, "until": lease_until}
        with self._file.writing() as tx:
            driver = driver_of(tx)
            resting = _RESTS.first(driver, {"id": delivery})
            if resting is not None and resting[0] > now:
                return None
            if _LEASE.run(driver, told).rowcount == 0:
                return None
            if resting is not None:
                there = select(deliveries.c.target).where(deliveries.c.id == delivery).scalar_subquery()
                tx.execute(update(targets).where(targets.c.target == there).values(rests_until=lease_until))
            row = _WHOLE.named(driver, {"id": delivery})
            if row is None:
                raise NotFound(f"no delivery {delivery}")
            leased = delivery_of(row)
            if is_told(leased.attempts + 1):
                after = {} if leased.last_error is None else {"after": leased.last_error[:MAX_TOLD]}
                writes.tell_delivery(tx, delivery, "delivery.sent", now, **after)
            return leased

    def acknowledge(self, delivery: DeliveryId, now: datetime) -> Job:
        with self._file.writing() as tx:
            job, kind, state = writes.read_delivery_state(tx, delivery)
            if state is not DeliveryState.ACKNOWLEDGED:
                since = tx.execute(
                    select(deliveries.c.created_at).where(deliveries.c.id == delivery)
                ).scalar_one()
                count(tx, delivered(kind, now - since))
                writes.change_delivery(tx, delivery, state=DeliveryState.ACKNOWLEDGED, acknowledged_at=now)
                writes.tell_delivery(tx, delivery, "delivery.acknowledged", now)
            return writes.settle(tx, writes.read_job(tx, job), now)

    def postpone(self, delivery: DeliveryId, next_try_at: datetime, error: str) -> None:
        with self._file.writing() as tx:
            _, kind, state = writes.read_delivery_state(tx, delivery)
            if state is DeliveryState.PENDING:
                count(tx, not_delivered(kind, "failed"))
                attempts = deliveries.c.attempts + 1
                writes.change_delivery(
                    tx, delivery, attempts=attempts, next_try_at=next_try_at, last_error=error
                )

    def bury(
        self, delivery: DeliveryId, now: datetime, error: str, *, deliveries: Sequence[NewDelivery] = ()
    ) -> None:
        with self._file.writing() as tx:
            job_id, kind, state = writes.read_delivery_state(tx, delivery)
            if state is not DeliveryState.PENDING:
                return
            count(tx, not_delivered(kind, "refused"))
            writes.change_delivery(tx, delivery, state=DeliveryState.DEAD, last_error=error)
            writes.tell_delivery(tx, delivery, "delivery.buried", now, error=error[:MAX_TOLD])
            job = writes.read_job(tx, job_id)
            instead = next((new.target for new in deliveries if new.kind is DeliveryKind.HANDOFF), None)
            if kind is DeliveryKind.HANDOFF:
                job = writes.lose_handoff(tx, job, instead, error, now)
            writes.put_deliveries(tx, job, deliveries, now)
            writes.settle(tx, job, now)

    # ---- looking

    def delivery(self, delivery: DeliveryId) -> Delivery:
        with self._file.reading() as tx:
            row = tx.execute(_of(delivery)).mappings().one_or_none()
        if row is None:
            raise NotFound(f"no delivery {delivery}")
        return delivery_of(row)

    def outbox(self, states: Collection[DeliveryState], limit: int) -> tuple[DeliveryHead, ...]:
        found: dict[int, DeliveryHead] = {}
        with self._file.reading() as tx:
            for state in states:
                query = select(deliveries).where(_in_state(state)).order_by(deliveries.c.seq).limit(limit)
                found |= {row["seq"]: head_of(row) for row in tx.execute(query).mappings()}
        return tuple(found[seq] for seq in sorted(found)[:limit])

    def outbox_counts(self) -> dict[DeliveryState, int]:
        """From the sums that triggers keep: what waits for one who is away may be a million."""
        with self._file.reading() as tx:
            found = {row.state: row.count_ for row in tx.execute(select(delivery_counts))}
        return {state: found.get(state, 0) for state in (DeliveryState.PENDING, DeliveryState.DEAD)}

    # ---- what a person decides

    def retry_delivery(
        self,
        seen: DeliveryHead,
        now: datetime,
        *,
        uid: int | None,
        deliveries: Sequence[NewDelivery] = (),
    ) -> None:
        with self._file.writing() as tx:
            job = _decide(tx, seen, now, "delivery.retried", uid)
            writes.change_delivery(tx, seen.id, state=DeliveryState.PENDING, next_try_at=now)
            tx.execute(update(targets).where(targets.c.target == seen.target).values(rests_until=now))
            writes.put_deliveries(tx, job, deliveries, now)

    def drop_delivery(
        self,
        seen: DeliveryHead,
        now: datetime,
        *,
        uid: int | None,
        reason: str,
        deliveries: Sequence[NewDelivery] = (),
    ) -> Job:
        with self._file.writing() as tx:
            job = _decide(tx, seen, now, "delivery.dropped", uid)
            writes.change_delivery(tx, seen.id, state=DeliveryState.DROPPED)
            if seen.kind is DeliveryKind.HANDOFF and seen.state is DeliveryState.PENDING:
                job = writes.lose_handoff(tx, job, None, reason, now)
            writes.put_deliveries(tx, job, deliveries, now)
            return writes.settle(tx, job, now)

    def send_again(self, delivery: DeliveryId, now: datetime, why: str) -> bool:
        with self._file.writing() as tx:
            job, kind, state = writes.read_delivery_state(tx, delivery)
            if state is not DeliveryState.ACKNOWLEDGED:
                return False
            if tx.execute(select(bodies.c.delivery).where(bodies.c.delivery == delivery)).first() is None:
                return False  # it arrived long ago, and was forgotten
            again = {"next_try_at": now, "acknowledged_at": None, "last_error": f"sent again: {why}"}
            writes.change_delivery(tx, delivery, state=DeliveryState.PENDING, **again)
            told = writes.read_job(tx, job)
            values: dict[str, Plain] = {"delivery": delivery, "kind": kind, "why": why}
            tell(tx, "delivery.sent_again", now, told.order_id, told.position, values)
            return True

    def handed_over(self, since: datetime, now: datetime, limit: int) -> tuple[DeliveryHead, ...]:
        query = select(deliveries).where(
            text(IS_HANDED_OVER),
            deliveries.c.acknowledged_at >= since,
            deliveries.c.expires_at > now,
        )
        with self._file.reading() as tx:
            newest = query.order_by(deliveries.c.acknowledged_at.desc(), deliveries.c.seq.desc())
            rows = tx.execute(newest.limit(limit)).mappings()
            return tuple(head_of(row) for row in rows)

    def count_on(self, job: Job, told: int, now: datetime) -> None:
        with self._file.writing() as tx:
            writes.count_on(tx, job, told, now)

    # ---- targets that do not answer

    def target_failures(self, target: KeyId) -> int:
        with self._file.looking() as driver:
            found = _FAILURES.first(driver, {"target": target})
        return 0 if found is None else int(found[0])

    def rest_target(self, target: KeyId, failures: int, until: datetime) -> None:
        values = {"failures": failures, "rests_until": until}
        with self._file.writing() as tx:
            if tx.execute(update(targets).where(targets.c.target == target).values(**values)).rowcount == 0:
                tx.execute(insert(targets), {"target": target, **values})

    def target_is_back(self, target: KeyId, now: datetime, limit: int) -> tuple[DeliveryId, ...]:
        if self.target_failures(target) == 0:  # as nearly always: nothing to write
            return ()
        with self._file.writing() as tx:
            tx.execute(delete(targets).where(targets.c.target == target))
            return tuple(DeliveryId(row.id) for row in due_to(tx, target, now, limit))


_RESTS: Final = Prepared(
    select(targets.c.rests_until).where(
        targets.c.target
        == select(deliveries.c.target).where(deliveries.c.id == bindparam("id")).scalar_subquery()
    )
)
_NOW, _UNTIL = (bindparam(name, type_=deliveries.c.lease_until.type) for name in ("now", "until"))
_LEASE: Final = Prepared(
    update(deliveries)
    .where(
        deliveries.c.id == bindparam("id"),
        text(IS_PENDING),
        deliveries.c.next_try_at <= _NOW,
        or_(deliveries.c.lease_until.is_(None), deliveries.c.lease_until <= _NOW),
    )
    .values(lease_until=_UNTIL)
)


def full_deliveries() -> Select[Any]:
    """Deliveries with their bodies."""
    return select(deliveries, bodies.c.body).outerjoin(bodies, bodies.c.delivery == deliveries.c.id)


_WHOLE: Final = Prepared(full_deliveries().where(deliveries.c.id == bindparam("id")))


def _of(delivery: DeliveryId) -> Select[Any]:
    return full_deliveries().where(deliveries.c.id == delivery)


def _in_state(state: DeliveryState) -> Any:
    """The condition, in the very words of the partial index where there is one."""
    words = {DeliveryState.PENDING: IS_PENDING, DeliveryState.DEAD: IS_DEAD}
    return text(words[state]) if state in words else deliveries.c.state == state


def _decide(tx: Connection, seen: DeliveryHead, now: datetime, event: str, uid: int | None) -> Job:
    """The job of a delivery on which a person decides, with the event that tells so. Raises: NotFound, LostRace."""
    row = tx.execute(select(deliveries).where(deliveries.c.id == seen.id)).mappings().one_or_none()
    if row is None:
        raise NotFound(f"no delivery {seen.id}")
    is_leased = row["lease_until"] is not None and row["lease_until"] > now
    if row["state"] != seen.state or (event == "delivery.dropped" and is_leased):
        raise LostRace(f"delivery {seen.id} is {row['state']}" + (" and being sent" if is_leased else ""))
    values: dict[str, Plain] = {"delivery": seen.id, "was": seen.state, "target": seen.target, "uid": uid}
    tell(tx, event, now, seen.order_id, seen.position, values)
    return writes.read_job(tx, seen.job)
