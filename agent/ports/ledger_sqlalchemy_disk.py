"""The ledger's transactions on what is over and may go, and on what must not come again. The rule is `domain.retention`."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Table, delete, func, insert, or_, select, text, tuple_

from agent.domain.jobs import FINAL, Job
from agent.domain.retention import Garbage, LedgerSizes, Retention
from agent.ports.ledger import ATTEMPT_FAILED, DeliveryState
from agent.ports.ledger_schema import (
    IS_FINAL,
    bodies,
    deliveries,
    events,
    jobs,
    logs,
    metadata,
    orders,
    past_orders,
    receipts,
)
from agent.ports.ledger_sqlalchemy_file import LedgerFile
from agent.ports.ledger_sqlalchemy_lines import tell
from agent.ports.ledger_sqlalchemy_rows import Plain

# What a table calls the order or the job that its rows belong to, where no foreign key says so.
ORDER_COLUMNS = {"order_id": "id", "order_digest": "digest"}
KEPT_FOR_EVER = {events.name, past_orders.name, orders.name}  # `orders` goes last, by itself


_AWAITED = (DeliveryState.PENDING, DeliveryState.DEAD)  # somebody or something waits for these still


_JOB_IS_FINAL = f"jobs.{IS_FINAL}"


class Keeping:
    """The part of the ledger that knows how long things are kept."""

    _file: LedgerFile

    def codes_before(self, job: Job) -> tuple[str, ...]:
        here = (events.c.order_id == job.order_id, events.c.position == job.position)
        query = (
            select(events.c["values"]).where(*here, events.c.name == ATTEMPT_FAILED).order_by(events.c.seq)
        )
        with self._file.reading() as tx:
            told = [msgspec.json.decode(values) for values in tx.execute(query).scalars()]
        codes = {values["attempt"]: values["code"] for values in told if values["attempt"] < job.attempt}
        return tuple(codes.values())

    def garbage(self, told: Retention) -> Garbage:
        with self._file.reading() as tx:
            return Garbage(
                **_counted(tx, "log", _old_logs(told).with_only_columns(logs.c.log)),
                **_counted(tx, "body", _old_bodies(told).with_only_columns(bodies.c.body)),
                orders=_count(tx, _old_orders(told)),
            )

    def collect(self, told: Retention, now: datetime, limit: int) -> Garbage:
        with (
            self._file.reading() as tx
        ):  # the search goes through much, and most often finds nothing: no writer waits for it
            old_logs = tx.execute(_old_logs(told).limit(limit)).all()
            old_bodies = tx.execute(_old_bodies(told).limit(limit)).all()
            over = tx.execute(_old_orders(told).limit(limit)).scalars().all()
        if not (old_logs or old_bodies or over):
            return Garbage()
        with self._file.writing() as tx:
            for seq, _ in old_logs:
                tx.execute(delete(logs).where(logs.c.seq == seq))
            names = [name for name, _ in old_bodies]  # somebody may have asked for one again since
            old_bodies = tx.execute(_old_bodies(told).where(bodies.c.delivery.in_(names))).all()
            for name, _ in old_bodies:
                tx.execute(delete(bodies).where(bodies.c.delivery == name))
            still_over = tx.execute(_still_over(told, over)).all()
            for row in still_over:
                _forget(tx, row, now)
        return Garbage(
            logs=len(old_logs),
            log_bytes=sum(size for _, size in old_logs),
            bodies=len(old_bodies),
            body_bytes=sum(size for _, size in old_bodies),
            orders=len(still_over),
        )

    def sizes(self) -> LedgerSizes:
        file_bytes, free_bytes, can_shrink = self._file.pages()
        pending = deliveries.c.state.in_(_AWAITED)
        unsent = select(bodies.c.body).join(deliveries, deliveries.c.id == bodies.c.delivery).where(pending)
        with self._file.reading() as tx:
            told = {
                **_counted(tx, "order", select(orders.c.envelope)),
                **_counted(tx, "log", select(logs.c.log)),
                **_counted(tx, "body", select(bodies.c.body)),
                **_counted(tx, "event", select(events.c["values"])),
            }
            told["order_bytes"] += _counted(tx, "receipt", select(receipts.c.envelope))["receipt_bytes"]
            told["pending_bytes"] = _counted(tx, "pending", unsent)["pending_bytes"]
        return LedgerSizes(file_bytes=file_bytes, free_bytes=free_bytes, can_shrink=can_shrink, **told)

    def give_back(self) -> int:
        return self._file.give_back()


# ------------------------------------------------------------------ which


# Each goes along an index and stops at its limit: what is found is gone before the next look, so nothing is gone through twice.


def _old_logs(told: Retention) -> Any:
    """(seq, bytes) of logs of jobs that ended, oldest first."""
    ended = select(jobs.c.seq).where(
        jobs.c.id == logs.c.job_id, text(IS_FINAL), jobs.c.changed_at < told.logs_before
    )
    return select(logs.c.seq, func.length(logs.c.log)).where(ended.exists()).order_by(logs.c.seq)


def _old_bodies(told: Retention) -> Any:
    """(delivery, bytes) of bodies that arrived."""
    arrived = (
        deliveries.c.state == DeliveryState.ACKNOWLEDGED,
        deliveries.c.acknowledged_at < told.bodies_before,
        orders.c.expires < told.expired_before,  # until then whoever lost it may ask for it again
    )
    over = (
        select(deliveries.c.seq)
        .join(orders, orders.c.id == deliveries.c.order_id)
        .where(deliveries.c.id == bodies.c.delivery, *arrived)
    )
    query = select(bodies.c.delivery, func.length(bodies.c.body))
    return query.where(over.exists()).order_by(bodies.c.delivery)


def _old_orders(told: Retention) -> Any:
    """(id, digest, expires) of orders that are over, as `domain.retention.is_over` says, by when their last job ended."""
    later = jobs.alias("later")
    is_followed = select(later.c.seq).where(
        later.c.order_id == jobs.c.order_id,
        tuple_(later.c.changed_at, later.c.seq) > tuple_(jobs.c.changed_at, jobs.c.seq),
    )
    return (
        select(orders.c.id, orders.c.digest, orders.c.expires)
        .select_from(jobs)
        .join(orders, orders.c.id == jobs.c.order_id)
        .where(text(_JOB_IS_FINAL), jobs.c.changed_at < told.orders_before, ~is_followed.exists())
        .where(*_is_over(told))
        .with_hint(jobs, "INDEXED BY jobs_by_end", "sqlite")
        .order_by(jobs.c.changed_at, jobs.c.seq)
    )


def _still_over(told: Retention, these: Sequence[str]) -> Any:
    """(id, digest, expires) of those orders that are over still."""
    query = select(orders.c.id, orders.c.digest, orders.c.expires).where(orders.c.id.in_(these))
    return query.where(*_is_over(told)).order_by(orders.c.id)


def _is_over(told: Retention) -> tuple[ColumnElement[bool], ...]:
    """That nothing of the order is open, awaited or fresh."""
    other = jobs.alias("other")
    is_open = select(other.c.seq).where(
        other.c.order_id == orders.c.id,
        or_(other.c.state.not_in(FINAL), other.c.changed_at >= told.orders_before),
    )
    is_told = select(deliveries.c.seq).where(
        deliveries.c.order_id == orders.c.id,
        or_(
            deliveries.c.state.in_(_AWAITED),
            deliveries.c.acknowledged_at >= told.orders_before,
        ),
    )
    return orders.c.expires < told.expired_before, ~is_open.exists(), ~is_told.exists()


# ------------------------------------------------------------------ going


def _forget(tx: Connection, row: Any, now: datetime) -> None:
    """Delete everything of this order but its events; what guards against its return is written first."""
    past = {"id": row.id, "digest": row.digest, "expires": row.expires, "forgotten_at": now}
    tx.execute(insert(past_orders), past)
    values: dict[str, Plain] = {"order": row.digest, "expires": row.expires.isoformat()}
    tell(tx, "order.forgotten", now, row.id, None, values)
    mine = {"id": row.id, "digest": row.digest}
    for table in reversed(metadata.sorted_tables):  # what points at others goes before them
        belongs = _belongs_to(table, mine)
        if belongs is not None:
            tx.execute(delete(table).where(belongs))
    tx.execute(delete(orders).where(orders.c.id == row.id))


def _belongs_to(table: Table, order: dict[str, str]) -> ColumnElement[bool] | None:
    """Which rows of a table are of this order: by a column of its own, or through the job or the delivery they point at."""
    if table.name in KEPT_FOR_EVER:
        return None
    for name, key in ORDER_COLUMNS.items():
        if name in table.c:
            return table.c[name] == order[key]
    for points in table.foreign_keys:
        through = _belongs_to(points.column.table, order)
        if through is not None:
            return points.parent.in_(select(points.column).where(through))
    return None


def _counted(tx: Connection, name: str, query: Any) -> dict[str, int]:
    """How many there are, and their bytes: the one column of the query. `length` does not read what it measures."""
    (column,) = query.selected_columns
    told = query.with_only_columns(func.count(), func.coalesce(func.sum(func.length(column)), 0)).order_by(
        None
    )
    count, size = tx.execute(told).one()
    plural = "bodies" if name == "body" else f"{name}s"
    return {plural: count, f"{name}_bytes": size}


def _count(tx: Connection, query: Any) -> int:
    found: int = tx.execute(select(func.count()).select_from(query.subquery())).scalar_one()
    return found
