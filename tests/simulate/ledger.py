"""The fake of the ledger, made for many rows: a transaction writes in place and takes back what it did when it raises."""

from dataclasses import fields
from typing import Any

from agent.errors import LedgerUnavailable
from tests.fakes.ledger import MemoryLedger

_ABSENT: Any = object()


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


class _Log(list[Any]):
    def __init__(self, undo: _Undo) -> None:
        super().__init__()
        self._undo = undo

    def append(self, value: Any) -> None:
        self._undo.append((self, None, None))
        super().append(value)

    def put_back(self, _key: Any, _before: Any) -> None:
        super().pop()


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
        undo = _Undo()
        self._reader, self._writer = _Reading(self), _Writing(self, undo)
        for each in fields(self._books):
            found = getattr(self._books, each.name)
            if isinstance(found, dict | list):
                setattr(self._books, each.name, _Table(undo) if isinstance(found, dict) else _Log(undo))

    def _reading(self) -> Any:
        return self._reader

    def _writing(self) -> Any:
        return self._writer
