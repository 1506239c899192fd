"""What is in hand, in memory: a table that the processes of a host share, and a process that can die."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agent.domain.ids import JobId

Table = dict[JobId, "MemoryHands"]


class MemoryHands:
    """Implements `Hands` for one process. `is_dead`: whether it died: then nothing is in its hands any more."""

    def __init__(self, table: Table | None = None, is_dead: Callable[[], bool] = lambda: False) -> None:
        self._table: Table = {} if table is None else table
        self._is_dead = is_dead

    def of_process(self, is_dead: Callable[[], bool]) -> "MemoryHands":
        """The same host's, for another process."""
        return MemoryHands(self._table, is_dead)

    @contextmanager
    def hold(self, job: JobId) -> Iterator[bool]:
        holder = self._table.get(job)
        if holder is not None and not holder._is_dead():
            yield False
            return
        self._table[job] = mine = MemoryHands(self._table, self._is_dead)
        try:
            yield True
        finally:
            if self._table.get(job) is mine:  # a dead one's may be another's by now
                del self._table[job]
