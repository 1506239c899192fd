"""One stream handed to several takers at once through a few buffers, used again. One takes in the thread of who receives,
each other one in a thread of its own.

Receiving, hashing and opening go on side by side; the slowest sets the pace. Every taker gets every piece, whole and in order,
and a buffer is filled anew only after the last taker is done with it. Memory is what the buffers have, however long the stream.

A thread for each taker was measured and was slower. The likely cause: Python gives one thread at a time its lock, and who
receives lets go of it for each TLS record and has it back before anybody woke up. SHA-256 needs it once a piece.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

PIECE_BYTES = 512 << 10  # from TLS into the cipher while it lies in the nearest cache
BUFFERS = 4

INLINE_BYTES = 1 << 16

Fill = Callable[[memoryview], int]
"""Puts the next bytes into a buffer; how many, 0 when there are no more."""

Taker = Callable[[memoryview], object]
"""Takes the next piece, which is another one after it returned: what it keeps, it copies."""


@contextmanager
def relay(takers: Sequence[Taker], own: Taker) -> Iterator["Relay"]:
    """Threads for these takers while the block runs, which ends when all that was passed on is taken; none is left after it.

    `own` takes in the thread of who receives. What a taker raises, the block raises.
    """
    passing = Relay(takers, own)
    try:
        yield passing
        passing.settle()
    finally:
        passing.end()


class Inline:
    """The same interface with no thread and one small buffer, for what is too short to be worth threads."""

    def __init__(self, takers: Sequence[Taker], own: Taker) -> None:
        self._takers = (*takers, own)
        self._room = memoryview(bytearray(INLINE_BYTES))

    def pass_on(self, fill: Fill) -> int:
        """See `Relay.pass_on`."""
        count = fill(self._room)
        if count:
            for taker in self._takers:
                taker(self._room[:count].toreadonly())
        return count


class Relay:
    """Between who receives and the takers. Who receives is one thread."""

    def __init__(self, takers: Sequence[Taker], own: Taker) -> None:
        self._own = own
        self._free: SimpleQueue[_Buffer | None] = SimpleQueue()  # None: a taker has ended
        self._waiting: list[SimpleQueue[_Buffer | None]] = [SimpleQueue() for _ in takers]
        self._is_over = False  # what waits is not wanted any more
        self._threads = ThreadPoolExecutor(len(takers), thread_name_prefix="relay")
        for _ in range(BUFFERS):
            self._free.put(_Buffer())
        self._ends = [
            self._threads.submit(self._take, *pair) for pair in zip(takers, self._waiting, strict=True)
        ]
        for end in self._ends:
            end.add_done_callback(lambda _: self._free.put(None))

    def pass_on(self, fill: Fill) -> int:
        """Have the next free buffer filled and give it to every taker; how much `fill` put there.

        Waits for the slowest taker. Raises: what a taker raised; what `fill` raises.
        """
        buffer, count = self._next(), 0
        try:
            count = buffer.length = fill(buffer.whole)
        finally:
            if not count:
                self._free.put(buffer)
        if count:
            buffer.left = len(self._waiting) + 1
            for waiting in self._waiting:
                waiting.put(buffer)
            self._own(buffer.filled)
            self._done_with(buffer)
        return count

    def settle(self) -> None:
        """Wait until every taker is done with all that was passed on. Raises: what a taker raised."""
        for buffer in [self._next() for _ in range(BUFFERS)]:
            self._free.put(buffer)

    def end(self) -> None:
        """Let the takers end with the piece that they have in hand, and wait for that."""
        self._is_over = True
        for waiting in self._waiting:
            waiting.put(None)
        self._threads.shutdown()

    def _next(self) -> "_Buffer":
        """A buffer that nobody has. Raises: what a taker raised."""
        buffer = self._free.get()
        if buffer is None:
            self._free.put(None)  # it stays true
            for end in self._ends:
                if end.done():
                    end.result()
            raise RuntimeError("a relay that has ended was given more")
        return buffer

    def _take(self, taker: Taker, waiting: "SimpleQueue[_Buffer | None]") -> None:
        while (buffer := waiting.get()) is not None and not self._is_over:
            taker(buffer.filled)
            self._done_with(buffer)

    def _done_with(self, buffer: "_Buffer") -> None:
        if buffer.is_done():
            self._free.put(buffer)


class _Buffer:
    """Room for one piece. `left`: how many takers are not done with it."""

    def __init__(self) -> None:
        self.whole = memoryview(bytearray(PIECE_BYTES))
        self.length = self.left = 0
        self._lock = threading.Lock()

    @property
    def filled(self) -> memoryview:
        """What is in it, to be read."""
        return self.whole[: self.length].toreadonly()

    def is_done(self) -> bool:
        """Called by each taker once it has the piece: whether it was the last one."""
        with self._lock:
            self.left -= 1
            return self.left == 0
