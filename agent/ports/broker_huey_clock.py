"""The one thread of a consumer that minds the time: it rings later what was to be rung later, and looks for lost bells.

It sleeps until the next ring is due, or until a bell says that somebody wrote an earlier one. Any bell may be lost, so it looks
by itself every few seconds too, for all queues of the consumer at once: no other thread need do so while nothing happens.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from agent.log import get_logger
from agent.ports.broker_huey_bell import Listener

log = get_logger(__name__)

CLOCK: Final = "schedule"  # the bell that is rung when a ring for later was written

DUE_AT_ONCE: Final = (
    1000  # that leave the schedule in one transaction: what is due after a long stop is no list in memory
)

# Each queue is asked by itself, for its first row in an index: a million rings that wait cost what one does.
_QUEUES: Final = "(VALUES {queues})"  # its column is named column1
_FIRST: Final = "(SELECT timestamp FROM schedule WHERE queue = column1 ORDER BY timestamp LIMIT 1)"
_NEXT: Final = f"SELECT min(at) FROM (SELECT {_FIRST} AS at FROM {_QUEUES})"  # noqa: S608 - parts of this file
_DUE: Final = "SELECT id, queue, data FROM schedule WHERE queue IN ({queues}) AND timestamp <= ? ORDER BY timestamp, id LIMIT ?"
_DONE: Final = "DELETE FROM schedule WHERE id = ?"
_WAITING: Final = f"SELECT column1 FROM {_QUEUES} WHERE EXISTS (SELECT 1 FROM task WHERE queue = column1)"  # noqa: S608


class Clock:
    """Started with its consumer, over with its listener.

    `storage`: Huey's, of any queue in the file. `enqueue`: the statement that writes a ring, `:queue` and `:data`.
    `note`: told whenever it comes round.
    """

    def __init__(
        self,
        storage: Any,
        queues: Sequence[str],
        listener: Listener,
        *,
        enqueue: str,
        every_s: float,
        note: Callable[[], None],
    ) -> None:
        self._storage, self._queues, self._listener = storage, tuple(queues), listener
        self._enqueue, self._every_s, self._note = enqueue, every_s, note
        self._marks = ", ".join("?" for _ in self._queues)
        self._rows = ", ".join("(?)" for _ in self._queues)
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)

    def start(self) -> None:
        """Mind the time from now on."""
        self._thread.start()

    def join(self) -> None:
        """Return when it has ended, which it does when its listener closes."""
        self._thread.join()

    def _run(self) -> None:
        while self._listener.is_open:
            self._note()
            heard = self._listener.heard(CLOCK)
            try:
                rest_s = self._go_round()
            except sqlite3.Error as error:
                log.error("queues.clock_failed", detail=str(error))
                rest_s = self._every_s
            self._listener.wait(CLOCK, heard, rest_s)

    def _go_round(self) -> float:
        """Ring what is due and what waits unheard; how long to sleep, in seconds."""
        now_s = time.time()
        next_s = self._asked(_NEXT)[0][0]
        if next_s is not None and next_s <= now_s:
            self._move(now_s)
            next_s = self._asked(_NEXT)[0][0]
        for (queue,) in self._asked(_WAITING):
            self._listener.pass_on(queue)
        return self._every_s if next_s is None else min(self._every_s, max(0.0, next_s - time.time()))

    def _move(self, now_s: float) -> None:
        """What is due, from the schedule into the queues: both in one transaction, so that nothing is between them."""
        with self._storage.db(commit=True) as cursor:
            for number, queue, data in cursor.execute(
                _with(_DUE, self._marks), (*self._queues, now_s, DUE_AT_ONCE)
            ).fetchall():
                cursor.execute(self._enqueue, {"queue": queue, "data": data})
                cursor.execute(_DONE, (number,))

    def _asked(self, statement: str) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._storage.sql(
            _with(statement, self._rows), self._queues, results=True
        )
        return found


def _with(statement: str, queues: str) -> str:
    return statement.format(queues=queues)
