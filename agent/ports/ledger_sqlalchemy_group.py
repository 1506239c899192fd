"""Writes of one moment share one commit: each returns when it is on the disk, and one flush of the disk does for all of them.

Who comes while nobody writes leads: takes everybody who waits into one transaction, commits it, lets them go, and makes the
first of those who came meanwhile the next leader. So nobody waits for company, and the more come at once, the more share.
There is no thread of its own, and nothing is done later: a write that has returned is durable, one that has not may be lost
with its whole transaction, and then nobody was told of it. Who has several writes brings them at once and waits once.

Each of several parts stands in a savepoint: what one raises undoes that part alone. What undoes all is raised to all.
"""

import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, Generic, TypeVar

from sqlalchemy import Connection

from agent.ports.ledger_sqlalchemy_prepared import driver_of

T = TypeVar("T")

Begin = Callable[[], AbstractContextManager[Connection]]


class _Part(Generic[T]):
    """What one caller wants written, and what came of it."""

    def __init__(self, act: Callable[[Connection], T]) -> None:
        self._act: Final = act
        self._written: list[T] = []
        self._raised: BaseException | None = None
        self.has_ended = False
        self.told: Final = threading.Lock()  # released when it has ended, or is to lead
        self.told.acquire()

    def write(self, tx: Connection, *, is_alone: bool) -> None:
        """Write it, or undo it. Raises: what undoes the whole transaction; of one that is alone, whatever it raises."""
        if is_alone:
            self._written.append(self._act(tx))
            return
        driver = driver_of(tx)
        driver.execute("SAVEPOINT part")
        try:
            self._written.append(self._act(tx))
        except BaseException as raised:
            if not driver.in_transaction:  # a full disk or a failed read: SQLite took everything back
                raise
            driver.execute("ROLLBACK TO part")
            self._raised = raised
        driver.execute("RELEASE part")

    def fail(self, cause: BaseException) -> None:
        """Nothing of the transaction is left."""
        self._raised = cause

    def outcome(self) -> T:
        """What was written. Raises: what the part raised, or what undid it."""
        if self._raised is not None:
            raise self._raised
        (written,) = self._written
        return written


def _another(cause: BaseException) -> BaseException:
    """An error for one of many: a handler may add to it. Not each can be copied, and none of the many may be left without."""
    try:
        return copy.copy(cause)
    except Exception:
        return cause


def told(outcome: Callable[[], T]) -> T | Exception:
    """What it tells, or whatever it raises: that is its own, and the others of its transaction are written."""
    try:
        return outcome()
    except Exception as error:
        return error


class Group:
    """Those who write to one file from this process. `begin`: a transaction that is durable when its block has ended."""

    def __init__(self, begin: Begin) -> None:
        self._begin: Final = begin
        self._lock: Final = threading.Lock()
        self._waiting: list[_Part[object]] = []
        self._is_led = False

    def write(self, act: Callable[[Connection], T]) -> T:
        """What `act` gave, once what it wrote is durable. Raises: what `act` raised, after its writes were undone."""
        (outcome,) = self.write_all([act])
        return outcome()

    def write_all(self, acts: Sequence[Callable[[Connection], T]]) -> list[Callable[[], T]]:
        """For each what tells its outcome, as `write` does, once what all of them wrote is durable: they share one commit."""
        parts = [_Part(act) for act in acts]
        if not parts:
            return []
        first = parts[0]  # waits for all: they are taken into one transaction, and end with it
        with self._lock:
            self._waiting.extend(parts)  # type: ignore[arg-type]  # each caller takes out what it put in
            leads, self._is_led = not self._is_led, True
        if not leads:
            first.told.acquire()
        if not first.has_ended:
            self._lead()
        return [part.outcome for part in parts]

    def _lead(self) -> None:
        taken: list[_Part[object]] = []
        try:
            with self._begin() as tx:
                taken = self._take()  # here, for more may have come while another process wrote
                for part in taken:
                    part.write(tx, is_alone=len(taken) == 1)
        except BaseException as cause:
            taken = taken or self._take()  # they all waited for the same transaction, which did not begin
            for part in taken:
                part.fail(cause if len(taken) == 1 else _another(cause))
        finally:
            self._let_go(taken)

    def _take(self) -> list[_Part[object]]:
        with self._lock:
            taken, self._waiting = self._waiting, []
            return taken

    def _let_go(self, parts: list[_Part[object]]) -> None:
        for part in parts:
            part.has_ended = True
            part.told.release()
        with self._lock:
            if self._waiting:
                self._waiting[0].told.release()
            else:
                self._is_led = False
