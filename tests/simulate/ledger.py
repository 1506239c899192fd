"""The fake of the ledger, made for many rows: a transaction writes in place and takes back what it did when it raises."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

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


class SwiftLedger(MemoryLedger):
    """See `MemoryLedger`: the same answers, in time that does not grow with what is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self._undo = _Undo()
        self._is_writing = False
        for each in fields(self._books):
            found = getattr(self._books, each.name)
            if isinstance(found, dict | list):
                own = _Table(self._undo) if isinstance(found, dict) else _Log(self._undo)
                setattr(self._books, each.name, own)

    @contextmanager
    def _writing(self) -> Iterator[Any]:
        with self._reading() as books:
            if self._is_writing:  # one transaction within another is part of it
                yield books
                return
            self._is_writing = True
            self._undo.clear()
            try:
                yield books
            except BaseException:
                self._undo.take_back()
                raise
            finally:
                self._is_writing = False
