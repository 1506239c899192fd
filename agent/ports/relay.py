"""One stream handed to several takers at once, each in a thread of its own, through a few buffers that are used again.

Who receives fills a buffer while the takers are at work on those before it: receiving, hashing and opening go on side by side
(OpenSSL and the cipher let go of Python's lock for each piece), and the slowest of them sets the pace. Every taker gets every
piece, whole and in order, and a buffer is filled anew only after the last taker is done with it. Memory is what the buffers
have, however long the stream.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

PIECE_BYTES = 1 << 20
BUFFERS = 6  # what is being filled, what each taker has in hand, and one to wait for each of them

INLINE_BYTES = 1 << 16

Fill = Callable[[memoryview], int]
"""Puts the next bytes into a buffer; how many, 0 when there are no more."""

Taker = Callable[[memoryview], object]
"""Takes the next piece, which is another one after it returned: what it keeps, it copies."""


@contextmanager
def relay(takers: Sequence[Taker]) -> Iterator["Relay"]:
    """Threads for these takers while the block runs; none is left after it. What a taker raised, the block raises."""
    passed = Relay(takers)
    try:
        yield passed
    except BaseException:
        passed.give_up()
        raise
    finally:
        passed.end()
    passed.check()


class Inline:
    """The same interface with no thread and one small buffer, for what is too short to be worth threads."""

    def __init__(self, takers: Sequence[Taker]) -> None:
        self._takers = takers
        self._room = memoryview(bytearray(INLINE_BYTES))

    def pass_on(self, fill: Fill) -> int:
        """See `Relay.pass_on`."""
        count = fill(self._room)
        if count:
            for taker in self._takers:
                taker(self._room[:count].toreadonly())
        return count

    def settle(self) -> None:
        """Every taker is done."""


class Relay:
    """Between who receives and the takers."""

    def __init__(self, takers: Sequence[Taker]) -> None:
        self._free: SimpleQueue[_Buffer] = SimpleQueue()
        self._waiting: list[SimpleQueue[_Buffer | None]] = [SimpleQueue() for _ in takers]
        self._failure: BaseException | None = None
        self._is_over = False  # what waits is passed by
        self._threads = [
            threading.Thread(target=self._take, args=pair, name="relay", daemon=True)
            for pair in zip(takers, self._waiting, strict=True)
        ]
        for _ in range(BUFFERS):
            self._free.put(_Buffer(len(takers)))
        for thread in self._threads:
            thread.start()

    def pass_on(self, fill: Fill) -> int:
        """Have the next free buffer filled and give it to every taker; how much `fill` put there.

        Waits for the slowest taker. Raises: what a taker raised; what `fill` raises.
        """
        buffer, count = self._free.get(), 0
        try:
            self.check()
            count = buffer.length = fill(buffer.whole)
        finally:
            if not count:
                self._free.put(buffer)
        if count:
            buffer.left = len(self._waiting)
            for waiting in self._waiting:
                waiting.put(buffer)
        return count

    def settle(self) -> None:
        """Wait until every taker is done with all that was passed on. Raises: what a taker raised."""
        held = [self._free.get() for _ in range(BUFFERS)]
        for buffer in held:
            self._free.put(buffer)
        self.check()

    def check(self) -> None:
        """Raises: what a taker raised."""
        if self._failure is not None:
            raise self._failure

    def give_up(self) -> None:
        """What was passed on and not taken yet is not wanted any more."""
        self._is_over = True

    def end(self) -> None:
        """Wait for the threads to end."""
        for waiting in self._waiting:
            waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _take(self, taker: Taker, waiting: "SimpleQueue[_Buffer | None]") -> None:
        while (buffer := waiting.get()) is not None:
            try:
                if not self._is_over:
                    taker(buffer.filled)
            except BaseException as failure:  # raised where the receiver waits
                self._failure, self._is_over = failure, True
            if buffer.is_done():
                self._free.put(buffer)


class _Buffer:
    """Room for one piece. `left`: how many takers are not done with it."""

    def __init__(self, takers: int) -> None:
        self.whole = memoryview(bytearray(PIECE_BYTES))
        self.length = 0
        self.left = takers
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
