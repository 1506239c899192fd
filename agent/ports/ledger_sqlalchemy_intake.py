"""The ledger's transactions on what arrives: orders and hand-offs, and the nonces of the requests that brought them.

What arrives at one moment shares one commit (`ledger_sqlalchemy_group.py`), and each order takes the fewest statements that it
can: what only a known order can have is not looked for where the order is new.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import BindParameter, Connection, Integer, and_, bindparam, literal, select, union_all
from sqlalchemy.dialects.sqlite import insert

from agent.domain.ids import Digest, JobId, KeyId, OrderId
from agent.domain.jobs import Job, JobEvent, JobState
from agent.domain.nonces import Nonce, replayed
from agent.errors import HandoffConflict, OrderConflict, OrderExpired
from agent.ports import ledger_sqlalchemy_writes as writes
from agent.ports.ledger import Admission, Arrival, Candidate
from agent.ports.ledger_schema import cancellations, nonces, orders, past_orders, receipts
from agent.ports.ledger_sqlalchemy_file import LedgerFile
from agent.ports.ledger_sqlalchemy_prepared import Prepared, driver_of

_BY_ID: BindParameter[str] = bindparam("id")
_KNOWN: Final = Prepared(  # (whether it is past, digest, expires)
    union_all(
        select(literal(0, Integer), orders.c.digest, orders.c.expires).where(orders.c.id == _BY_ID),
        select(literal(1, Integer), past_orders.c.digest, past_orders.c.expires).where(
            past_orders.c.id == _BY_ID
        ),
    )
)
_IS_DONE: Final = Prepared(
    select(receipts.c.digest).where(
        receipts.c.order_digest == bindparam("digest"), receipts.c.position == bindparam("position")
    )
)
_IS_CANCELLED: Final = Prepared(
    select(cancellations.c.source).where(cancellations.c.order_digest == bindparam("digest")).limit(1)
)
_KNOWN_NONCE: Final = Prepared(
    select(nonces.c.keep_until).where(
        nonces.c.keyid == bindparam("keyid"), nonces.c.nonce == bindparam("nonce")
    )
)
_NEW_NONCE: Final = insert(nonces).values(
    keyid=bindparam("keyid"),
    nonce=bindparam("nonce"),
    keep_until=bindparam("keep_until", type_=nonces.c.keep_until.type),
)
# One whose time is over may be used again, with another time: the same request never counts twice, however long it was on its
# way here. Otherwise the row stays, and none is changed.
_PUT_NONCE: Final = Prepared(
    _NEW_NONCE.on_conflict_do_update(
        index_elements=("keyid", "nonce"),
        set_={nonces.c.keep_until: _NEW_NONCE.excluded.keep_until},
        where=and_(
            nonces.c.keep_until < bindparam("now", type_=nonces.c.keep_until.type),
            nonces.c.keep_until != _NEW_NONCE.excluded.keep_until,
        ),
    )
)


class IntakeRecords:
    """The part of the ledger that takes in."""

    _file: LedgerFile

    def admit(self, arrival: Arrival, now: datetime, *, max_attempts: int, queue_limit: int) -> Admission:
        return self._file.together(lambda tx: _admit(tx, arrival, now, max_attempts, queue_limit))

    def admit_all(self, candidates: Sequence[Candidate], now: datetime) -> Sequence[Admission | Exception]:
        return self._file.together_each([_admitting(candidate, now) for candidate in candidates])

    def digest_of_order(self, order_id: OrderId) -> Digest | None:
        with self._file.looking() as driver:
            known = _KNOWN.first(driver, {"id": order_id})
        return None if known is None else Digest(known[1])

    def recorded_last_receipt(self, order: Digest, position: int) -> tuple[JobId, Digest | None] | None:
        with self._file.reading() as tx:
            return writes.place_of(tx, order, position)

    def remember_nonce(self, keyid: KeyId, nonce: str, keep_until: datetime, now: datetime) -> bool:
        kept = Nonce(keyid=keyid, text=nonce, keep_until=keep_until)
        return self._file.together(lambda tx: _put_nonce(tx, kept, now))

    def knows_nonce(self, keyid: KeyId, nonce: str, now: datetime) -> bool:
        with self._file.looking() as driver:
            kept = _KNOWN_NONCE.first(driver, {"keyid": keyid, "nonce": nonce})
        return kept is not None and bool(kept[0] >= now)


def _admitting(candidate: Candidate, now: datetime) -> Callable[[Connection], Admission]:
    arrival, attempts, limit = candidate.arrival, candidate.max_attempts, candidate.queue_limit
    return lambda tx: _admit(tx, arrival, now, attempts, limit)


def _admit(tx: Connection, arrival: Arrival, now: datetime, max_attempts: int, queue_limit: int) -> Admission:
    if arrival.nonce is not None and not _put_nonce(tx, arrival.nonce, now):
        raise replayed()
    is_known = _is_known(tx, arrival)
    before = writes.find_repeat(tx, arrival) if is_known else None
    job = before or _put(tx, arrival, now, max_attempts, queue_limit, is_known=is_known)
    is_cancelled = _IS_CANCELLED.first(driver_of(tx), {"digest": arrival.order.digest}) is not None
    return Admission(
        job,
        is_repeat=before is not None,
        is_cancelled=is_cancelled,
        keeps_nonce=arrival.nonce is not None,
    )


def _put(
    tx: Connection, arrival: Arrival, now: datetime, max_attempts: int, queue_limit: int, *, is_known: bool
) -> Job:
    """The job, with the order where it is new and the receipts that came. Raises: QueueFull, HandoffConflict."""
    signed = arrival.order
    if is_known:
        _require_open_place(tx, arrival)
    writes.require_room(tx, queue_limit)
    if not is_known:
        writes.put_order(tx, arrival, now)
    if arrival.receipts:
        writes.put_receipts(tx, signed.digest, arrival.receipts, first=0, now=now)
    job = writes.put_job(
        tx,
        signed=signed,
        position=arrival.position,
        kind=arrival.kind,
        state=JobState.RECEIVED,
        max_attempts=max_attempts,
        last_receipt=arrival.last_receipt,
        now=now,
        sender=arrival.sender,
    )
    writes.count_on(tx, job, arrival.told, now)
    return writes.transit(tx, job, JobEvent.ENQUEUE, now) if arrival.is_placed else job


def _is_known(tx: Connection, arrival: Arrival) -> bool:
    """Whether the order is recorded. Raises: OrderExpired for one that was here and was forgotten; OrderConflict for another
    one under its id."""
    signed = arrival.order
    known = _KNOWN.first(driver_of(tx), {"id": signed.order.id})
    if known is None:
        return False
    is_past, digest, expires = known
    if digest != signed.digest:
        raise OrderConflict(f"order {signed.order.id} was recorded with other content ({digest})")
    if is_past:
        raise OrderExpired(
            f"order {signed.order.id} ended here and expired {expires.isoformat()}; it never runs again"
        )
    return True


def _require_open_place(tx: Connection, arrival: Arrival) -> None:
    """Raises: HandoffConflict when a later hand-off already brought the receipt of this place: it would run twice."""
    place = {"digest": arrival.order.digest, "position": arrival.position}
    if _IS_DONE.first(driver_of(tx), place) is not None:
        raise HandoffConflict(
            f"position {arrival.position} of order {arrival.order.order.id} is done already"
        )


def _put_nonce(tx: Connection, nonce: Nonce, now: datetime) -> bool:
    """Keep it; whether it was new."""
    row = {"keyid": nonce.keyid, "nonce": nonce.text, "keep_until": nonce.keep_until, "now": now}
    return _PUT_NONCE.run(driver_of(tx), row).rowcount == 1
