"""The fake of the ledger, made for many rows: a transaction writes in place and takes back what it did when it raises."""

from collections.abc import Callable, Collection
from dataclasses import fields
from itertools import count
from typing import Any, Final

from agent.domain.ids import Digest, JobId, OrderId
from agent.domain.jobs import Job
from agent.domain.receipts import SignedReceipt
from agent.errors import LedgerUnavailable
from agent.ports.ledger import Delivery, DeliveryState, EventRecord
from agent.ports.ledger_attempts import Step
from tests.fakes.ledger import MemoryLedger, _Books

_ABSENT: Any = object()
_NOTHING: Final[dict[Any, Any]] = {}


class _Undo(list[tuple[Any, Any, Any]]):
    """What was there before each write of a transaction, oldest first."""

    def take_back(self) -> None:
        while self:
            table, key, before = self.pop()
            table.put_back(key, before)


class _Table(dict[Any, Any]):
    def __init__(self, undo: _Undo) -> None:
        super().__init__()
        self._undo = undo

    def __setitem__(self, key: Any, value: Any) -> None:
        self._undo.append((self, key, self.get(key, _ABSENT)))
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        self._undo.append((self, key, self[key]))
        super().__delitem__(key)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: Any, *default: Any) -> Any:
        if key not in self and default:
            return default[0]
        found = self[key]
        del self[key]
        return found

    def update(self, *args: Any, **named: Any) -> None:
        for key, value in dict(*args, **named).items():
            self[key] = value

    def put_back(self, key: Any, before: Any) -> None:
        if before is _ABSENT:
            super().pop(key)
        else:
            super().__setitem__(key, before)


class _Grouped(_Table):
    """`of`: the same rows by the group that each belongs to for good, in the order of the table."""

    def __init__(self, undo: _Undo, group: Callable[[Any, Any], Any]) -> None:
        super().__init__(undo)
        self.of: dict[Any, dict[Any, Any]] = {}
        self._group = group

    def rows(self, group: Any) -> Collection[Any]:
        return self.of.get(group, _NOTHING).values()

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        self._put(key, value)

    def __delitem__(self, key: Any) -> None:
        value = self[key]
        super().__delitem__(key)
        self._take_out(key, value)

    def put_back(self, key: Any, before: Any) -> None:
        now = self.get(key, _ABSENT)
        super().put_back(key, before)
        if before is _ABSENT:
            self._take_out(key, now)
        else:
            self._put(key, before)

    def _put(self, key: Any, value: Any) -> None:
        group = self._group(key, value)
        rows = self.of.get(group)
        if rows is None:
            rows = self.of[group] = {}
        rows[key] = value

    def _take_out(self, key: Any, value: Any) -> None:
        del self.of[self._group(key, value)][key]


class _Deliveries(_Grouped):
    """By order. `pending`: those that wait, by their number in the table."""

    def __init__(self, undo: _Undo) -> None:
        super().__init__(undo, lambda _, delivery: delivery.order_id)
        self.pending: dict[int, Any] = {}
        self._numbers: dict[Any, int] = {}
        self._next = count()

    def _put(self, key: Any, value: Any) -> None:
        super()._put(key, value)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = next(self._next)
        if value.state is DeliveryState.PENDING:
            self.pending[number] = value
        else:
            self.pending.pop(number, None)

    def _take_out(self, key: Any, value: Any) -> None:
        super()._take_out(key, value)
        self.pending.pop(self._numbers.pop(key), None)


class _Log(list[Any]):
    def __init__(self, undo: _Undo) -> None:
        super().__init__()
        self._undo = undo

    def append(self, value: Any) -> None:
        self._undo.append((self, None, None))
        super().append(value)

    def put_back(self, _key: Any, _before: Any) -> None:
        super().pop()


class _Events(_Log):
    """`of`: the same lines by order, None for those of the host."""

    def __init__(self, undo: _Undo) -> None:
        super().__init__(undo)
        self.of: dict[OrderId | None, list[EventRecord]] = {}

    def append(self, value: Any) -> None:
        super().append(value)
        self.of.setdefault(value.order_id, []).append(value)

    def put_back(self, _key: Any, _before: Any) -> None:
        self.of[self[-1].order_id].pop()
        super().put_back(_key, _before)


class _SwiftBooks(_Books):
    """See `_Books`. What is asked for again and again is found by what it belongs to."""

    deliveries: _Deliveries
    events: _Events
    jobs: _Grouped  # by order's digest
    receipts: _Grouped  # by order's digest
    steps: _Grouped  # by job and attempt

    def set_tables(self, undo: _Undo) -> None:
        own: dict[str, Any] = {
            "deliveries": _Deliveries(undo),
            "events": _Events(undo),
            "jobs": _Grouped(undo, lambda _, job: job.order),
            "receipts": _Grouped(undo, lambda place, _: place[0]),
            "steps": _Grouped(undo, lambda key, _: key[:2]),
        }
        for each in fields(self):
            found = getattr(self, each.name)
            table = _Table(undo) if isinstance(found, dict) else _Log(undo)
            setattr(self, each.name, own.get(each.name, table))

    def told_by(self, job: Job) -> list[Delivery]:
        return [each for each in self.deliveries.rows(job.order_id) if each.job == job.id]

    def pending(self) -> list[Delivery]:
        found = self.deliveries.pending
        return [found[number] for number in sorted(found)]


class _Reading:
    """Entered for every read: a plain object, for it is entered a hundred times for each task."""

    __slots__ = ("_ledger",)

    def __init__(self, ledger: "SwiftLedger") -> None:
        self._ledger = ledger

    def __enter__(self) -> Any:
        if self._ledger.is_broken:
            raise LedgerUnavailable("the test broke this ledger")
        return self._ledger._books

    def __exit__(self, *_error: object) -> None:
        return


class _Writing(_Reading):
    """A transaction. One within another is part of it."""

    __slots__ = ("_depth", "_undo")

    def __init__(self, ledger: "SwiftLedger", undo: _Undo) -> None:
        super().__init__(ledger)
        self._undo = undo
        self._depth = 0

    def __enter__(self) -> Any:
        books = super().__enter__()
        if self._depth == 0:
            self._undo.clear()
        self._depth += 1
        return books

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0 and error[0] is not None:
            self._undo.take_back()


class SwiftLedger(MemoryLedger):
    """See `MemoryLedger`: the same answers, in time that does not grow with what is recorded."""

    def __init__(self) -> None:
        super().__init__()
        undo, books = _Undo(), _SwiftBooks()
        books.set_tables(undo)
        self._books = self._swift = books
        self._reader, self._writer = _Reading(self), _Writing(self, undo)

    def recorded_last_receipt(self, order: Digest, position: int) -> tuple[JobId, Digest | None] | None:
        with self._reading():
            found = (job.id for job in self._swift.jobs.rows(order) if job.position == position)
            name = next(found, None)
            return None if name is None else (name, self._swift.arrived_with[name])

    def receipts(self, order: Digest) -> tuple[SignedReceipt, ...]:
        with self._reading():
            own = self._swift.receipts.of.get(order, _NOTHING)
            return tuple(own[place] for place in sorted(own))

    def deliveries(
        self, *, order_id: OrderId | None = None, state: DeliveryState | None = None
    ) -> tuple[Delivery, ...]:
        with self._reading():
            if order_id is None and state is DeliveryState.PENDING:
                return tuple(self._swift.pending())
            if order_id is None:
                return super().deliveries(state=state)
            own = self._swift.deliveries.rows(order_id)
            return tuple(delivery for delivery in own if state in {None, delivery.state})

    def events(
        self, *, order_id: OrderId | None = None, after: int = 0, limit: int = 500
    ) -> tuple[EventRecord, ...]:
        if order_id is None:
            return super().events(after=after, limit=limit)
        with self._reading():
            own = self._swift.events.of.get(order_id, ())
            return tuple(event for event in own if event.seq > after)[:limit]

    def last_event(self, name: str) -> EventRecord | None:
        with self._reading():
            of_host = reversed(self._swift.events.of.get(None, ()))
            return next((event for event in of_host if event.name == name), None)

    def steps(self, job: Job) -> tuple[Step, ...]:
        with self._reading():
            own = self._swift.steps.rows((job.id, job.attempt))
            return tuple(sorted(own, key=lambda step: (step.begun_at, step.name)))

    def _reading(self) -> Any:
        return self._reader

    def _writing(self) -> Any:
        return self._writer
