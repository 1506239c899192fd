"""The parts that the ledger's transactions are made of. Each works on the caller's open writing transaction."""

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, insert, select, text, update

from agent.domain.audit import told_of_task
from agent.domain.backups import NUMBERS_BETWEEN
from agent.domain.chain import TaskKind, task_at
from agent.domain.ids import Digest, JobId, KeyId, job_id
from agent.domain.jobs import WAITING, IllegalMove, Job, JobEvent, JobState, follow
from agent.domain.orders import SignedOrder
from agent.domain.receipts import SignedReceipt
from agent.errors import HandoffConflict, LostRace, NotFound, QueueFull
from agent.ports.ledger import Arrival, DeliveryId, DeliveryKind, DeliveryState, NewDelivery, Successor
from agent.ports.ledger_schema import (
    IS_PENDING,
    bodies,
    deliveries,
    job_counts,
    jobs,
    logs,
    orders,
    receipts,
    restores,
)
from agent.ports.ledger_sqlalchemy_lines import last_line, tell, tell_these
from agent.ports.ledger_sqlalchemy_prepared import Prepared, driver_of, inserting
from agent.ports.ledger_sqlalchemy_rows import (
    Plain,
    job_of,
    row_of_job,
    row_of_receipt,
    signed_of,
    told_of,
)

__all__ = ["last_line", "tell", "tell_these"]  # told from here to whoever writes


_INSERT_ORDER: Final = inserting(orders)
_INSERT_JOB: Final = inserting(jobs, "seq")
_JOB: Final = Prepared(select(jobs).where(jobs.c.id == bindparam("id")))
_CLAIMED: Final = Prepared(
    select(jobs.c.seq).where(
        jobs.c.id == bindparam("id"),
        jobs.c.state == bindparam("state"),
        jobs.c.attempt == bindparam("attempt"),
        jobs.c.claim == bindparam("claim"),
    )
)
_DELIVERY_STATE: Final = Prepared(
    select(deliveries.c.job_id, deliveries.c.kind, deliveries.c.state).where(
        deliveries.c.id == bindparam("id")
    )
)
_DELIVERY_TOLD: Final = Prepared(
    select(
        deliveries.c.order_id,
        deliveries.c.position,
        deliveries.c.kind,
        deliveries.c.n,
        deliveries.c.target,
        deliveries.c.attempts,
        func.coalesce(func.length(bodies.c.body), 0).label("bytes"),
    )
    .outerjoin(bodies, bodies.c.delivery == deliveries.c.id)
    .where(deliveries.c.id == bindparam("id"))
)
_WAIT_HERE: Final = Prepared(
    select(func.coalesce(func.sum(job_counts.c.count_), 0)).where(job_counts.c.state.in_(WAITING))
)


# ------------------------------------------------------------------ jobs


def read_job(tx: Connection, job: JobId) -> Job:
    """The job as it is now. Raises: NotFound."""
    return look_at_job(driver_of(tx), job)


def look_at_job(driver: sqlite3.Connection, job: JobId) -> Job:
    """The same on a connection of the driver. Raises: NotFound."""
    row = _JOB.named(driver, {"id": job})
    if row is None:
        raise NotFound(f"no job {job}")
    return job_of(row)


def transit(tx: Connection, seen: Job, event: JobEvent, now: datetime, **columns: Any) -> Job:
    """Follow the table from the job as the caller saw it, and tell the log of events. Raises: IllegalMove, LostRace."""
    state = follow(seen.state, event)
    columns = {"worker": None, "lease_until": None} | columns
    moved = change(tx, seen, state=state, changed_at=now, **columns)
    tell(tx, f"job.{state}", now, moved.order_id, moved.position, told_of(moved))
    return moved


def change(tx: Connection, seen: Job, **columns: Any) -> Job:
    """Compare and set: the job is as the caller saw it, or LostRace.

    Beside (state, attempt, claim) a recorded hand-off fences too: a job that is on its way to another host must not be
    queued here by a worker that read it before.
    """
    fence = (
        jobs.c.id == seen.id,
        jobs.c.state == seen.state,
        jobs.c.attempt == seen.attempt,
        jobs.c.claim == seen.claim,
        jobs.c.next_agent.is_not_distinct_from(seen.next_agent),
    )
    if tx.execute(update(jobs).where(*fence).values(**columns)).rowcount != 1:
        raise LostRace(f"job {seen.id} is no longer {seen.state} in attempt {seen.attempt}")
    return read_job(tx, seen.id)


def require_claim(tx: Connection, seen: Job) -> None:
    """Raises: LostRace when the job is not RUNNING under the claim that the caller has."""
    fence = {"id": seen.id, "state": JobState.RUNNING, "attempt": seen.attempt, "claim": seen.claim}
    if _CLAIMED.first(driver_of(tx), fence) is None:
        raise LostRace(f"attempt {seen.attempt} of job {seen.id} was given to another worker, or given up")


def send_to(tx: Connection, seen: Job, next_agent: KeyId, now: datetime) -> Job:
    """The job with another host that goes on. Raises: LostRace."""
    moved = change(tx, seen, next_agent=next_agent, changed_at=now)
    tell(tx, "job.redirected", now, moved.order_id, moved.position, told_of(moved))
    return moved


def lose_handoff(tx: Connection, job: Job, instead: KeyId | None, error: str, now: datetime) -> Job:
    """What a dead hand-off means for its job: another host goes on instead, or nobody does."""
    if instead is not None and job.state in {JobState.RECEIVED, JobState.ATTESTED, JobState.DONE}:
        return send_to(tx, job, instead, now)
    if instead is None and job.state is JobState.RECEIVED:
        return transit(tx, job, JobEvent.FAIL, now, reason=error)
    return job


def settle(tx: Connection, job: Job, now: datetime) -> Job:
    """DONE when it has only deliveries to wait for and none is pending; else the job as it is."""
    waits = job.state is JobState.ATTESTED or (job.state is JobState.RECEIVED and job.next_agent is not None)
    if not waits or tx.execute(_pending_of(job)).first() is not None:
        return job
    return transit(tx, job, JobEvent.SETTLE, now)


def put_job(
    tx: Connection,
    *,
    signed: SignedOrder,
    position: int,
    kind: TaskKind,
    state: JobState,
    max_attempts: int,
    last_receipt: Digest | None,
    now: datetime,
    sender: KeyId | None = None,
) -> Job:
    """A new job, told to the log of events with what it is about. `sender` is None where it follows a job of this host."""
    order_id = signed.order.id
    job = Job(
        id=job_id(order_id, position),
        order=signed.digest,
        order_id=order_id,
        position=position,
        kind=kind,
        state=state,
        attempt=0,
        max_attempts=max_attempts,
        received_at=now,
        changed_at=now,
    )
    _INSERT_JOB.run(driver_of(tx), row_of_job(job, signer=signed.signer, last_receipt=last_receipt))
    about = told_of(job) | told_of_task(signed, position) | ({} if sender is None else {"sender": sender})
    dataset = task_at(signed.order, position).dataset.id
    tell(tx, f"job.{state}", now, order_id, position, about, dataset=dataset)
    return job


def put_successor(
    tx: Connection, before: Job, successor: Successor, receipt: SignedReceipt | None, now: datetime
) -> None:
    """The next job of the chain, queued on this same host. Raises: HandoffConflict when its place is taken."""
    if receipt is None or successor.position != before.position + 1:
        raise IllegalMove(f"job {before.id} cannot be followed by position {successor.position}")
    if place_of(tx, before.order, successor.position) is not None:
        raise HandoffConflict(f"position {successor.position} of order {before.order_id} is recorded already")
    row = tx.execute(select(orders).where(orders.c.id == before.order_id)).mappings().one()
    put_job(
        tx,
        signed=signed_of(row),
        position=successor.position,
        kind=successor.kind,
        state=JobState.QUEUED,
        max_attempts=before.max_attempts,
        last_receipt=receipt.digest,
        now=now,
    )


# ------------------------------------------------------------------ intake


def place_of(tx: Connection, order: Digest, position: int) -> tuple[JobId, Digest | None] | None:
    """The job at this place of the order and the receipt it arrived with."""
    query = (
        select(jobs.c.id, jobs.c.last_receipt)
        .join(orders, orders.c.id == jobs.c.order_id)
        .where(orders.c.digest == order, jobs.c.position == position)
    )
    row = tx.execute(query).mappings().one_or_none()
    return None if row is None else (JobId(row["id"]), row["last_receipt"])


def find_repeat(tx: Connection, arrival: Arrival) -> Job | None:
    """The job that this arrival made before, when its order is known. Raises: HandoffConflict."""
    signed = arrival.order
    place = place_of(tx, signed.digest, arrival.position)
    if place is None:
        return None
    job, last_receipt = place
    if last_receipt != arrival.last_receipt:
        raise HandoffConflict(
            f"position {arrival.position} of order {signed.order.id} follows another receipt"
        )
    return read_job(tx, job)


def require_room(tx: Connection, queue_limit: int) -> None:
    """Raises: QueueFull when that many jobs wait. The triggers count them: ten cost what a million do."""
    (waiting,) = _WAIT_HERE.run(driver_of(tx), {}).fetchone()
    if waiting >= queue_limit:
        raise QueueFull(f"{queue_limit} jobs wait on this host already")


def put_order(tx: Connection, arrival: Arrival, now: datetime) -> None:
    """The order."""
    signed = arrival.order
    row = {
        "id": signed.order.id,
        "digest": signed.digest,
        "payload_type": signed.order.payload_type,
        "signer": signed.signer,
        "sender": arrival.sender,
        "expires": signed.order.expires,
        "received_at": now,
        "envelope": signed.envelope,
        "trace_id": arrival.trace,
        "images": " ".join(sorted(set(signed.order.images))),
    }
    _INSERT_ORDER.run(driver_of(tx), row)


def put_receipts(
    tx: Connection, order: Digest, signed: Sequence[SignedReceipt], *, first: int, now: datetime
) -> None:
    """These receipts from position `first` on; those that are recorded already are fine.

    Raises: HandoffConflict when another one stands in one's place.
    """
    query = select(receipts.c.position, receipts.c.digest).where(receipts.c.order_digest == order)
    recorded: dict[int, str] = {row["position"]: row["digest"] for row in tx.execute(query).mappings()}
    for position, receipt in enumerate(signed, first):
        if recorded.get(position, receipt.digest) != receipt.digest:
            raise HandoffConflict(f"another receipt of order {order} is recorded for position {position}")
    new = [
        row_of_receipt(receipt, order, position, now)
        for position, receipt in enumerate(signed, first)
        if position not in recorded
    ]
    if new:
        tx.execute(insert(receipts), new)


def put_own_receipt(tx: Connection, job: Job, receipt: SignedReceipt, now: datetime) -> None:
    """The receipt of a job that just moved. Raises: HandoffConflict.

    A failure has to end the job even where a later hand-off brought another receipt of its place: the first one recorded stays.
    """
    try:
        put_receipts(tx, job.order, [receipt], first=job.position, now=now)
    except HandoffConflict:
        if job.state is not JobState.FAILED:
            raise
        tell(tx, "receipt.dropped", now, job.order_id, job.position, {"digest": receipt.digest})


def require_open_place(tx: Connection, arrival: Arrival) -> None:
    """Raises: HandoffConflict when a later hand-off already brought the receipt of this place: it would run twice."""
    place = (receipts.c.order_digest == arrival.order.digest, receipts.c.position == arrival.position)
    if tx.execute(select(receipts.c.position).where(*place)).first() is not None:
        raise HandoffConflict(
            f"position {arrival.position} of order {arrival.order.order.id} is done already"
        )


# ------------------------------------------------------------------ outbox and events


def put_deliveries(tx: Connection, job: Job, new: Sequence[NewDelivery], now: datetime) -> None:
    """These deliveries of the job, due at once, each with the next number of its kind at this place."""
    for delivery in new:
        n = max(last_number(tx, job, delivery.kind), NUMBERS_BETWEEN * generation(tx)) + 1
        _put_delivery(tx, job, delivery, n, now)


def count_on(tx: Connection, job: Job, told: int, now: datetime) -> None:
    """The numbers of the job's reports go on after `told`: reports that an earlier life of this ledger delivered."""
    if told and told > last_number(tx, job, DeliveryKind.REPORT):
        signer = tx.execute(select(orders.c.signer).where(orders.c.id == job.order_id)).scalar_one()
        name = _put_delivery(tx, job, NewDelivery(DeliveryKind.REPORT, signer, b""), told, now)
        change_delivery(tx, name, state=DeliveryState.ACKNOWLEDGED, acknowledged_at=now)
        tell(tx, "reports.counted_on", now, job.order_id, job.position, {"told": told})


def last_number(tx: Connection, job: Job, kind: DeliveryKind) -> int:
    """The highest number that a delivery of this kind has at the job's place; 0 without any."""
    of_kind = (*_of_place(job), deliveries.c.kind == kind)
    last: int | None = tx.execute(select(func.max(deliveries.c.n)).where(*of_kind)).scalar()
    return last or 0


def _put_delivery(tx: Connection, job: Job, new: NewDelivery, n: int, now: datetime) -> DeliveryId:
    name = DeliveryId(f"{job.id}.{new.kind}.{n}")
    row = {
        "id": name,
        "job_id": job.id,
        "order_id": job.order_id,
        "order_digest": job.order,
        "position": job.position,
        "kind": new.kind,
        "n": n,
        "target": new.target,
        "state": DeliveryState.PENDING,
        "attempts": 0,
        "next_try_at": now,
        "created_at": now,
        "expires_at": new.expires_at,
    }
    tx.execute(insert(deliveries), row)
    tx.execute(insert(bodies), {"delivery": name, "body": new.body})
    return name


def read_delivery_state(tx: Connection, delivery: DeliveryId) -> tuple[JobId, DeliveryKind, DeliveryState]:
    """(job, kind, state) of a delivery. Raises: NotFound."""
    row = _DELIVERY_STATE.first(driver_of(tx), {"id": delivery})
    if row is None:
        raise NotFound(f"no delivery {delivery}")
    job, kind, state = row
    return JobId(job), DeliveryKind(kind), DeliveryState(state)


def tell_delivery(tx: Connection, delivery: DeliveryId, name: str, now: datetime, **said: Plain) -> None:
    """A line about a delivery as it is now: what goes to whom, how many bytes, how often it was tried before."""
    row = _DELIVERY_TOLD.named(driver_of(tx), {"id": delivery})
    if row is None:
        raise NotFound(f"no delivery {delivery}")
    about = {"kind": row["kind"], "n": row["n"], "to": row["target"], "bytes": row["bytes"]}
    tell(tx, name, now, row["order_id"], row["position"], about | {"failed": row["attempts"]} | said)


def change_delivery(tx: Connection, delivery: DeliveryId, **columns: Any) -> None:
    """Set these columns; whoever leased the delivery is done with it."""
    values = {"lease_until": None} | columns
    tx.execute(update(deliveries).where(deliveries.c.id == delivery).values(**values))


def put_log(tx: Connection, job: Job, run: str, log: bytes) -> None:
    """A run's output, in the place of an earlier one of the same name."""
    here = (logs.c.job_id == job.id, logs.c.attempt == job.attempt, logs.c.run == run)
    row = {"job_id": job.id, "attempt": job.attempt, "run": run, "order_id": job.order_id, "log": log}
    if tx.execute(update(logs).where(*here).values(log=log)).rowcount == 0:
        tx.execute(insert(logs), row)


def generation(tx: Connection) -> int:
    """Of this ledger: how often it was put back, or more where another of this host was put back oftener."""
    last: int | None = tx.execute(select(func.max(restores.c.generation))).scalar()
    return last or 0


def _of_place(job: Job) -> tuple[Any, Any]:
    return deliveries.c.order_id == job.order_id, deliveries.c.position == job.position


def _pending_of(job: Job) -> Any:
    return select(deliveries.c.seq).where(*_of_place(job), text(IS_PENDING)).limit(1)
