"""What is new in the ledger, for everybody who listens in this process: one watcher, however many streams.

The watcher asks the ledger for its version, which costs microseconds, and reads lines only when that has changed. It runs while
somebody listens and not else. What a listener does not take is kept up to a bound; then the listener is dropped, not the line.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum

import msgspec

from agent.domain.ids import JobId, KeyId, OrderId
from agent.errors import AgentError, Draining, TooManyStreams
from agent.log import get_logger
from agent.ports.ledger import EventRecord, Ledger
from agent.ports.progress import Progress

log = get_logger(__name__)

STREAMS = 256  # in one process, of which
KEPT_FOR_OPERATOR = 32  # are the operator's alone
STREAMS_PER_READER = 32  # of one key
BUFFER = 1024  # lines that wait for one listener
PAGE = 500  # lines read at once
SHORT_S, LONG_S = 0.02, 0.2  # between two looks: after something happened, and when nothing does
SECOND_S = 1.0  # between two looks at readers and at what tasks are doing
REST_S = 2.0  # when the ledger cannot be read

# What a line that somebody wrote over makes of its reader. Without the one watcher no stream hears anything again.
STRANGE = (ValueError, LookupError, TypeError, OSError, msgspec.MsgspecError)


class Ending(StrEnum):
    """Why a stream ends; the last words of the server say it."""

    STOPPING = "the service stops"
    SLOW = "too slow"
    REVOKED = "the key does not hold any more"
    GONE = "the reader is gone"


class Listener:
    """What one stream is still to be told. Filled by the watcher's thread, emptied in the event loop that made it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        wants: Callable[[EventRecord], bool],
        order: OrderId | None,
        may_read: Callable[[], bool],
    ) -> None:
        """`order`: whose tasks' progress is told; None: everybody's. `may_read`: asked about every second."""
        self.order, self.may_read = order, may_read
        self.ending: Ending | None = None
        self.joined_at = 0  # lines up to this number are the ledger's to tell, later ones come here
        self._loop, self._wants = loop, wants
        self._woken = asyncio.Event()
        self._lines: deque[EventRecord] = deque()
        self._doing: dict[JobId, Progress | None] = {}
        self._on_end: Callable[[], None] = lambda: None

    def tell(self, lines: list[EventRecord]) -> None:
        """New lines, from the watcher. A listener with a full buffer is dropped."""
        wanted = [line for line in lines if self._wants(line)]
        if not wanted:
            return
        if len(self._lines) + len(wanted) > BUFFER:
            self.end(Ending.SLOW)
            return
        self._lines.extend(wanted)
        self._wake(self._woken.set)

    def tell_progress(self, job: JobId, progress: Progress | None) -> None:
        """What a task is doing now; the last word of each task is enough."""
        self._doing[job] = progress
        self._wake(self._woken.set)

    def end(self, why: Ending) -> None:
        """End the stream. The first reason counts."""
        if self.ending is None:
            self.ending = why
            self._lines.clear()
            self._wake(self._ended)

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call this in the event loop when the stream is ended from outside."""
        self._on_end = call

    async def wait(self, timeout_s: float) -> tuple[list[EventRecord], list[tuple[JobId, Progress | None]]]:
        """What is new, or nothing after that long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        self._woken.clear()
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        doing = [self._doing.popitem() for _ in range(len(self._doing))]
        return lines, doing

    def _ended(self) -> None:
        self._woken.set()
        self._on_end()

    def _wake(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # its loop is closed: the server is gone, and the stream with it
            self._loop.call_soon_threadsafe(call)


class Feed:
    """The one watcher of a process, and the places for streams. Safe to use from threads."""

    def __init__(self, ledger: Ledger, progress: Callable[[], tuple[Progress, ...]]) -> None:
        self._ledger, self._progress = ledger, progress
        self._lock = threading.Lock()
        self._listeners: set[Listener] = set()
        self._places: dict[KeyId | None, int] = {}
        self._is_watching = False
        self._closed = threading.Event()
        self._last = 0

    @property
    def streams(self) -> int:
        """How many there are."""
        with self._lock:
            return sum(self._places.values())

    @property
    def is_watching(self) -> bool:
        """Whether somebody listens."""
        with self._lock:
            return bool(self._listeners)

    def take_place(self, reader: KeyId | None) -> None:
        """A place for one more stream of this reader; None is the operator. Raises: TooManyStreams, Draining."""
        if self._closed.is_set():
            raise Draining("the service stops")
        with self._lock:
            mine, all_of_them = self._places.get(reader, 0), sum(self._places.values())
            if reader is not None and mine >= STREAMS_PER_READER:
                raise TooManyStreams(f"{reader} has {mine} streams already")
            if all_of_them >= (STREAMS if reader is None else STREAMS - KEPT_FOR_OPERATOR):
                raise TooManyStreams(f"this agent serves {all_of_them} streams already")
            self._places[reader] = mine + 1

    def leave_place(self, reader: KeyId | None) -> None:
        """The stream is over."""
        with self._lock:
            left = self._places[reader] - 1
            if left:
                self._places[reader] = left
            else:
                del self._places[reader]

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Tell this listener what comes after `listener.joined_at`, which is set here. Raises: LedgerUnavailable."""
        self.join(listener)
        try:
            yield
        finally:
            self.leave(listener)

    def join(self, listener: Listener) -> None:
        """As `listening`, until `leave`."""
        with self._lock:
            if not self._is_watching:
                self._last = self._ledger.newest_event()
                self._is_watching = True
                threading.Thread(target=self._watch, name="feed", daemon=True).start()
            listener.joined_at = self._last
            self._listeners.add(listener)
        if self._closed.is_set():
            listener.end(Ending.STOPPING)

    def leave(self, listener: Listener) -> None:
        """Tell it nothing more."""
        with self._lock:
            self._listeners.discard(listener)

    def close(self) -> None:
        """End every stream, and take no other."""
        self._closed.set()
        for listener in self._everybody():
            listener.end(Ending.STOPPING)

    # ---- the watcher

    def _everybody(self) -> tuple[Listener, ...]:
        with self._lock:
            return tuple(self._listeners)

    def _watch(self) -> None:
        version, rest_s, looked_at = -1, SHORT_S, 0.0
        doing: dict[JobId, Progress] = {}
        while self._has_listeners():
            try:
                if time.monotonic() - looked_at >= SECOND_S:
                    looked_at = time.monotonic()
                    doing = self._look_around(doing)
                now = self._ledger.version()
                if now == version:
                    rest_s = min(LONG_S, rest_s * 1.5)
                else:
                    version, rest_s = now, SHORT_S
                    self._tell_news()
            except AgentError as error:
                log.error("feed.not_read", code=error.code, detail=error.detail)
                version, rest_s = -1, REST_S
            except STRANGE:
                log.exception("feed.crashed")
                version, rest_s = -1, REST_S
            time.sleep(rest_s)

    def _has_listeners(self) -> bool:
        with self._lock:
            self._is_watching = bool(self._listeners)
            return self._is_watching

    def _tell_news(self) -> None:
        while lines := self._ledger.events(after=self._last, limit=PAGE):
            with self._lock:  # who joins has the lines up to here from the ledger, or all after it from us
                self._last = lines[-1].seq
                listeners = tuple(self._listeners)
            for listener in listeners:
                listener.tell([line for line in lines if line.seq > listener.joined_at])
            if len(lines) < PAGE:
                return

    def _look_around(self, before: dict[JobId, Progress]) -> dict[JobId, Progress]:
        """About every second: whoever may not read any more is ended, and what tasks are doing is told where it changed."""
        now = {told.job: told for told in self._progress()}
        changed = {job: now.get(job) for job in before.keys() | now.keys() if before.get(job) != now.get(job)}
        for listener in self._everybody():
            if not listener.may_read():
                listener.end(Ending.REVOKED)
                continue
            for job, progress in changed.items():
                if listener.order in {None, OrderId(job.rpartition(".")[0])}:
                    listener.tell_progress(job, progress)
        return now
