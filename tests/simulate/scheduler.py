"""Virtual time, and threads of control that sleep in it. One runs at a time; which is next, time and a number decide.

A thread belongs to a process. A killed process never runs again: its threads stay where they were for ever, so that no
`finally` of theirs touches anything. A stalled one sleeps until it is woken, whatever it waited for. All of it is one thread of
the operating system: greenlets switch where a port is called, and nowhere else.
"""

import heapq
import traceback
from collections.abc import Callable
from itertools import count
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet


class Process:
    """Something that can be killed. `is_alive` of the immortal ones stays true."""

    def __init__(self, name: str, hub: "Hub") -> None:
        self.name, self.hub = name, hub
        self.is_alive = True
        self.is_stalled = False
        self.stalled: list[tuple[Thread, int]] = []
        self.at_death: list[Callable[[], None]] = []

    def kill(self) -> None:
        """-9. Called from one of its own threads, it does not return."""
        self.is_alive = False
        for told in self.at_death:
            told()
        self.at_death.clear()
        thread = getcurrent()
        if isinstance(thread, Thread) and thread.process is self:
            self.hub.bury(thread)

    def stall(self, seconds: float) -> None:
        """Nothing of it runs before then, or before `wake`."""
        self.is_stalled = True
        self.hub.at(self.hub.now_s + seconds, self.wake)
        thread = getcurrent()
        if isinstance(thread, Thread) and thread.process is self:
            self.hub.sleep(0.0)

    def wake(self) -> None:
        """What waited for it goes on."""
        self.is_stalled = False
        for thread, turn in self.stalled:
            self.hub.resume_soon(thread, turn)
        self.stalled.clear()


class Thread(greenlet):  # type: ignore[misc]
    """A thread of control. `turn` counts its waits: only the bell of the present one wakes it."""

    process: Process
    turn: int = 0


class Hub:
    """The clock, and everybody who waits for it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.crashes: list[str] = []  # what nobody caught
        self._numbers = count()
        self._waiting: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._dead: list[Thread] = []
        self._loop = getcurrent()

    # ---- from outside

    def run(self, until_s: float) -> None:
        """Let everything happen that is due until then."""
        self._loop = getcurrent()
        waiting = self._waiting
        while waiting and waiting[0][0] <= until_s:
            due_s, _, call, args = heapq.heappop(waiting)
            self.now_s = max(self.now_s, due_s)
            call(*args)
        self.now_s = max(self.now_s, until_s)

    def close(self) -> None:
        """Let go of the threads that never came to their end."""
        waiting = [args[0] for _, _, _, args in self._waiting if args and isinstance(args[0], Thread)]
        self._waiting.clear()
        stalled = [thread for each in waiting for thread, _ in each.process.stalled]
        for thread in (*self._dead, *waiting, *stalled):
            thread.process.is_alive = False
            if not thread.dead:
                try:
                    thread.throw(GreenletExit)
                except BaseException:  # noqa: S112 - the last words of the dead
                    continue
        self._dead.clear()

    def at(self, when_s: float, call: Callable[..., None], *args: Any) -> None:
        """Call it then, from the loop: it must not sleep."""
        heapq.heappush(self._waiting, (when_s, next(self._numbers), call, args))

    def spawn(self, process: Process, act: Callable[[], None], *, after_s: float = 0.0) -> None:
        """A thread of this process that does this."""

        def live() -> None:
            try:
                act()
            except Exception:
                self.crashes.append(f"{process.name}: {traceback.format_exc()}")

        thread = Thread(live, self._loop)
        thread.process = process
        self.at(self.now_s + after_s, self._resume, thread, 0)

    # ---- from inside a thread

    def sleep(self, seconds: float) -> None:
        """Let others go on, and time pass."""
        thread = self._current()
        thread.turn += 1
        self.at(self.now_s + seconds, self._resume, thread, thread.turn)
        self._loop.switch()

    def wait(self, reply: "Reply", seconds: float | None) -> bool:
        """Until the reply is there, or so long; whether it is. None: as long as it takes."""
        if reply.is_there:
            return True
        thread = self._current()
        thread.turn += 1
        reply.waiter = (thread, thread.turn)
        if seconds is not None:
            self.at(self.now_s + seconds, self._resume, thread, thread.turn)
        self._loop.switch()
        return reply.is_there

    def wake(self, reply: "Reply") -> None:
        """Whoever waits for it goes on."""
        if reply.waiter is not None:
            self.resume_soon(*reply.waiter)

    def resume_soon(self, thread: Thread, turn: int) -> None:
        """It goes on, if it still waits in that turn."""
        self.at(self.now_s, self._resume, thread, turn)

    def bury(self, thread: Thread) -> None:
        """This thread, which is the current one, never goes on."""
        self._dead.append(thread)
        self._loop.switch()

    @property
    def process(self) -> Process:
        """Whose thread runs now."""
        return self._current().process

    def _current(self) -> Thread:
        thread = getcurrent()
        if not isinstance(thread, Thread):
            raise RuntimeError("only a thread of a process can wait")
        return thread

    def _resume(self, thread: Thread, turn: int) -> None:
        if thread.turn != turn:
            return
        if not thread.process.is_alive:
            self._dead.append(thread)
        elif thread.process.is_stalled:
            thread.process.stalled.append((thread, turn))
        else:
            thread.switch()


class Reply:
    """What one thread waits for and another gives: a value, or an error."""

    __slots__ = ("error", "hub", "is_there", "value", "waiter")

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.is_there = False
        self.value: Any = None
        self.error: Exception | None = None
        self.waiter: tuple[Thread, int] | None = None

    def give(self, value: Any = None, error: Exception | None = None) -> None:
        """The first one counts."""
        if not self.is_there:
            self.is_there, self.value, self.error = True, value, error
            self.hub.wake(self)
