"""The port to the queues. A queue carries ids only: it is a bell, and the ledger is the truth."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from agent.domain.chain import TaskKind

Handler = Callable[[str], None]


class Queue(StrEnum):
    """The six queues."""

    LEARNUPLETS = "learnuplets"  # job ids of learnuplets to be placed
    LEARN_TASKS = "learn_tasks"
    TEST_TASKS = "test_tasks"
    PREDUPLETS = "preduplets"  # job ids of preduplets: to be placed, then their predict tasks
    DELIVERIES = "deliveries"  # delivery ids
    CANCELLATIONS = "cancellations"  # job ids whose containers are to go at once


TASK_QUEUES: Mapping[TaskKind, Queue] = {
    TaskKind.LEARN: Queue.LEARN_TASKS,
    TaskKind.TEST: Queue.TEST_TASKS,
    TaskKind.PREDICT: Queue.PREDUPLETS,
}

PLACE_QUEUES: Mapping[TaskKind, Queue] = {
    TaskKind.LEARN: Queue.LEARNUPLETS,
    TaskKind.TEST: Queue.LEARNUPLETS,
    TaskKind.PREDICT: Queue.PREDUPLETS,
}


class Broker(Protocol):
    """Rings handlers, in this process or another, at least when nothing is killed; the sweep covers the rest."""

    def ring(self, queue: Queue, item: str, *, delay_s: float = 0.0) -> None:
        """Ring once for this id, not before `delay_s` from now. A doubled ring is harmless, and one that waits already may
        count for both. Raises: OutsideError when it could not be written; the sweep rings again.
        """
        ...

    def ring_all(self, queue: Queue, items: Sequence[str]) -> None:
        """Ring once for each of these ids, in this order, as `ring` does without a delay. Raises: OutsideError."""
        ...

    def depth(self) -> Mapping[Queue, int]:
        """How many rings wait, delayed ones too, by queue. Raises: OutsideError."""
        ...


class Consumer(Protocol):
    """Calls one handler per queue until stopped."""

    def start(self) -> None:
        """Begin, in threads of this process. Raises: OutsideError."""
        ...

    def stop(self) -> None:
        """Take nothing more; returns when the handlers under way have returned."""
        ...

    def stalled(self, limit_s: float) -> tuple[str, ...]:
        """The names of threads that neither looked for a ring within this time nor are in a handler: they hang, or died."""
        ...
