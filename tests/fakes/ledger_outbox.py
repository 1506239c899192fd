"""The part of the ledger in memory that knows of the outbox: dead letters, and targets that do not answer."""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from msgspec.structs import asdict, replace

from agent.domain.ids import KeyId
from agent.domain.jobs import Job, JobEvent, JobState
from agent.errors import LostRace, NotFound
from agent.ports.ledger import Delivery, DeliveryHead, DeliveryId, DeliveryKind, DeliveryState, NewDelivery


class MemoryOutbox:
    """See `Outbox`. `_reading` and `_writing` give the books, `_parts` what writes in them."""

    _reading: Callable[[], AbstractContextManager[Any]]
    _writing: Callable[[], AbstractContextManager[Any]]
    _parts: Any

    def delivery(self, delivery: DeliveryId) -> Delivery:
        with self._reading() as books:
            found: Delivery | None = books.deliveries.get(delivery)
        if found is None:
            raise NotFound(f"no delivery {delivery}")
        return found

    def outbox(self, states: Collection[DeliveryState], limit: int) -> tuple[DeliveryHead, ...]:
        with self._reading() as books:
            found = [_head(each) for each in books.deliveries.values() if each.state in states]
        return tuple(sorted(found, key=lambda head: head.created_at)[:limit])

    def outbox_counts(self) -> dict[DeliveryState, int]:
        with self._reading() as books:
            states = [each.state for each in books.deliveries.values()]
        return {state: states.count(state) for state in (DeliveryState.PENDING, DeliveryState.DEAD)}

    def retry_delivery(
        self,
        seen: DeliveryHead,
        now: datetime,
        *,
        uid: int | None,
        deliveries: Sequence[NewDelivery] = (),
    ) -> None:
        with self._writing() as books:
            found = self._decide(books, seen, now, "delivery.retried", uid)
            pending = replace(found, state=DeliveryState.PENDING, next_try_at=now, lease_until=None)
            books.deliveries[seen.id] = pending
            if seen.target in books.targets:
                books.targets[seen.target] = (books.targets[seen.target][0], now)
            self._parts.put_deliveries(books, books.jobs[seen.job], deliveries, now)

    def drop_delivery(
        self,
        seen: DeliveryHead,
        now: datetime,
        *,
        uid: int | None,
        reason: str,
        deliveries: Sequence[NewDelivery] = (),
    ) -> Job:
        with self._writing() as books:
            found = self._decide(books, seen, now, "delivery.dropped", uid)
            books.deliveries[seen.id] = replace(found, state=DeliveryState.DROPPED, lease_until=None)
            job: Job = books.jobs[seen.job]
            was_waited_for = seen.kind is DeliveryKind.HANDOFF and seen.state is DeliveryState.PENDING
            if was_waited_for and job.state is JobState.RECEIVED:
                job = self._parts.transit(books, job, JobEvent.FAIL, now, reason=reason)
            self._parts.put_deliveries(books, job, deliveries, now)
            settled: Job = self._parts.settle(books, job, now)
            return settled

    def send_again(self, delivery: DeliveryId, now: datetime, why: str) -> bool:
        with self._writing() as books:
            found: Delivery | None = books.deliveries.get(delivery)
            if found is None:
                raise NotFound(f"no delivery {delivery}")
            if found.state is not DeliveryState.ACKNOWLEDGED or not found.body:
                return False
            books.deliveries[delivery] = replace(
                found,
                state=DeliveryState.PENDING,
                next_try_at=now,
                acknowledged_at=None,
                last_error=f"sent again: {why}",
            )
            values = {"delivery": delivery, "kind": found.kind, "why": why}
            self._parts.tell(books, "delivery.sent_again", now, found.order_id, found.position, values)
            return True

    def handed_over(self, since: datetime, now: datetime, limit: int) -> tuple[DeliveryHead, ...]:
        with self._reading() as books:
            found = [
                _head(each)
                for each in reversed(books.deliveries.values())
                if each.kind is DeliveryKind.HANDOFF
                and each.state is DeliveryState.ACKNOWLEDGED
                and each.acknowledged_at >= since
                and each.expires_at > now
            ]
        newest = sorted(found, key=lambda head: head.acknowledged_at or now, reverse=True)
        return tuple(newest[:limit])

    def count_on(self, job: Job, told: int, now: datetime) -> None:
        with self._writing() as books:
            count_on(books, job, told, now, self._parts.tell)

    def target_failures(self, target: KeyId) -> int:
        with self._reading() as books:
            failures: int = books.targets.get(target, (0, None))[0]
            return failures

    def rest_target(self, target: KeyId, failures: int, until: datetime) -> None:
        with self._writing() as books:
            books.targets[target] = (failures, until)

    def target_is_back(self, target: KeyId, now: datetime, limit: int) -> tuple[DeliveryId, ...]:
        with self._writing() as books:
            if books.targets.pop(target, None) is None:
                return ()
            due = [each for each in books.pending() if is_due(each, now) and each.target == target]
        return tuple(each.id for each in sorted(due, key=lambda each: each.next_try_at)[:limit])

    def _decide(self, books: Any, seen: DeliveryHead, now: datetime, event: str, uid: int | None) -> Delivery:
        found: Delivery | None = books.deliveries.get(seen.id)
        if found is None:
            raise NotFound(f"no delivery {seen.id}")
        is_leased = found.lease_until is not None and found.lease_until > now
        if found.state is not seen.state or (event == "delivery.dropped" and is_leased):
            raise LostRace(f"{seen.id} is {found.state}")
        values = {"delivery": seen.id, "was": seen.state, "target": seen.target, "uid": uid}
        self._parts.tell(books, event, now, seen.order_id, seen.position, values)
        return found


def last_number(books: Any, job: Job, kind: DeliveryKind) -> int:
    numbers = [each.n for each in books.told_by(job) if each.kind is kind]
    return max(numbers, default=0)


def count_on(books: Any, job: Job, told: int, now: datetime, tell: Callable[..., None]) -> None:
    if told <= last_number(books, job, DeliveryKind.REPORT):
        return
    name = DeliveryId(f"{job.id}.report.{told}")
    books.deliveries[name] = Delivery(
        id=name,
        job=job.id,
        order=job.order,
        order_id=job.order_id,
        position=job.position,
        kind=DeliveryKind.REPORT,
        n=told,
        target=books.orders[job.order_id].signer,
        body=b"",
        state=DeliveryState.ACKNOWLEDGED,
        attempts=0,
        next_try_at=now,
        created_at=now,
        acknowledged_at=now,
    )
    tell(books, "reports.counted_on", now, job.order_id, job.position, {"told": told})


def is_due(delivery: Delivery, now: datetime) -> bool:
    """Whether it may be sent now, for all it knows itself."""
    is_leased = delivery.lease_until is not None and delivery.lease_until > now
    return delivery.state is DeliveryState.PENDING and delivery.next_try_at <= now and not is_leased


def send_by(books: Any, now: datetime, limit: int) -> tuple[DeliveryId, ...]:
    """What should be sent now: all for targets that answer, one for each that may be back."""
    due = sorted((each for each in books.pending() if is_due(each, now)), key=lambda each: each.next_try_at)
    well = [each.id for each in due if each.target not in books.targets][:limit]
    for target, (_, until) in books.targets.items():
        well += [each.id for each in due if each.target == target and until <= now][:1]
    return tuple(well)


def _head(delivery: Delivery) -> DeliveryHead:
    told = asdict(delivery)
    del told["body"]
    return DeliveryHead(**told)
