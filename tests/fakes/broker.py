"""Queues in memory with a clock of their own: nothing rings until a test pumps, and then in one order only."""

from collections.abc import Mapping, Sequence
from itertools import count

from msgspec import Struct

from agent.ports.broker import Handler, Queue


class Ring(Struct, frozen=True):
    """What was rung, as the caller said it."""

    queue: Queue
    item: str
    delay_s: float


class MemoryBroker:
    """See `Broker`.

    `rings` is everything ever rung, in order. `pump(handlers)` calls the handlers for what is due, until nothing is; `advance`
    moves the clock that delays are counted on.
    """

    def __init__(self) -> None:
        self.rings: list[Ring] = []
        self._clock_s = 0.0
        self._numbers = count()
        self._waiting: dict[tuple[float, int], Ring] = {}

    def ring(self, queue: Queue, item: str, *, delay_s: float = 0.0) -> None:
        ring = Ring(queue, item, delay_s)
        self.rings.append(ring)
        is_delayed = delay_s > 0
        if is_delayed or not any((r.queue, r.item) == (queue, item) for r in self._due().values()):
            self._waiting[self._clock_s + max(delay_s, 0.0), next(self._numbers)] = ring

    def ring_all(self, queue: Queue, items: Sequence[str]) -> None:
        for item in items:
            self.ring(queue, item)

    def depth(self) -> Mapping[Queue, int]:
        return {queue: sum(ring.queue is queue for ring in self._waiting.values()) for queue in Queue}

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._clock_s += seconds

    def pump(self, handlers: Mapping[Queue, Handler]) -> int:
        """Deliver what is due, and what the handlers ring meanwhile; how many. Queues without a handler are left alone.

        A handler that raises stops no other; what they raised comes as one ExceptionGroup at the end.
        """
        delivered, errors = 0, []
        while True:
            mine = {key: ring for key, ring in self._due().items() if ring.queue in handlers}
            if not mine:
                break
            ring = self._waiting.pop(min(mine))
            delivered += 1
            try:
                handlers[ring.queue](ring.item)
            except Exception as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup("handlers raised", errors)
        return delivered

    def _due(self) -> dict[tuple[float, int], Ring]:
        return {key: ring for key, ring in self._waiting.items() if key[0] <= self._clock_s}
