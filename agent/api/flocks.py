"""Calls of one moment that are worked on together: one trip into a thread, one record of what they write, one way back.

Threads take Python's interpreter from each other at each statement of the ledger and each write to a socket, and that costs
as much as the statement. So calls that write have no thread each. One thread takes all that wait: each is judged by itself, all
that pass are recorded at once, each is answered by itself; refused and repeated ones, which write for themselves, at once.
Nobody waits for company: a trip begins as soon as the loop has gone through what it read in one turn, and who comes later waits
for the next one, which begins when this one ends. (A second thread, to judge while the first waits for the disk, was measured
and was slower: what it judged meanwhile cost it twice.)

What a call raises ends that call alone.
"""

import asyncio
import copy
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

W = TypeVar("W")  # what a call wants recorded
R = TypeVar("R")  # what came of it
T = TypeVar("T")  # what the call gives in the end
W_co = TypeVar("W_co", covariant=True)
R_contra = TypeVar("R_contra", contravariant=True)
T_co = TypeVar("T_co", covariant=True)

MOST: Final = 32  # calls in one trip, so that the first of them does not wait long for the last
ENDS: Final = 8  # of refused and repeated calls at once


class Errand(Protocol[W_co, R_contra, T_co]):
    """One call, in two halves that run in one thread, one after the other. The second runs whatever the first one raised."""

    def begin(self) -> W_co | None:
        """What is to be recorded; None where nothing is."""
        ...

    def end(self, outcome: R_contra | Exception | None) -> T_co:
        """What the call gives. `outcome`: what came of what it wanted recorded, or what was raised instead."""
        ...


class _Member(Generic[W, R, T]):
    """An errand under way, and who waits for its end."""

    def __init__(self, errand: Errand[W, R, T], future: "asyncio.Future[T]") -> None:
        self._errand: Final = errand
        self._future: Final = future
        self.loop: Final = future.get_loop()
        self.outcome: R | Exception | None = None
        self._ending: Final = threading.Lock()
        self._tell: Callable[[], object] | None = None  # until it has ended

    @property
    def is_recorded(self) -> bool:
        """Whether what it wanted is written: nothing is left to be written at its end."""
        return self.outcome is not None and not isinstance(self.outcome, Exception)

    def begin(self) -> W | None:
        try:
            return self._errand.begin()
        except BaseException as raised:  # its own, which its second half judges
            self.outcome = _error_of(raised)
            return None

    def end(self) -> None:
        """Once, whoever comes to it first; who comes second waits for that."""
        with self._ending:
            if self._tell is not None:
                return
            try:
                self._tell = partial(self._future.set_result, self._errand.end(self.outcome))
            except BaseException as raised:  # its caller's
                self.fail(raised)

    def fail(self, cause: BaseException) -> None:
        self._tell = partial(self._future.set_exception, _error_of(cause))

    def tell(self) -> None:
        """In the loop: the caller goes on, unless nobody waits any more."""
        if self._tell is not None and not self._future.done():
            self._tell()


class Flock(Generic[W, R]):
    """Calls of one kind. `record`: what came of each, in the order in which they are given; what it raises comes of all."""

    def __init__(self, record: Callable[[Sequence[W]], Sequence[R | Exception]]) -> None:
        self._record: Final = record
        self._pool: Final = ThreadPoolExecutor(1, thread_name_prefix="flock")
        self._ends: Final = ThreadPoolExecutor(ENDS, thread_name_prefix="flock-end")
        self._lock: Final = threading.Lock()
        self._waiting: list[_Member[W, R, Any]] = []
        self._is_at_it = False

    async def join(self, errand: Errand[W, R, T]) -> T:
        """What the errand gave at its end. Raises: what its end raised."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._lock:
            self._waiting.append(_Member(errand, future))
            is_first, self._is_at_it = not self._is_at_it, True
        if is_first:
            loop.call_soon(self._set_out)  # behind those that came in the same turn
        return await future

    def _set_out(self) -> None:
        try:
            self._pool.submit(self._work)
        except RuntimeError as cause:  # there is no thread to be had; who comes next tries again
            with self._lock:
                left, self._waiting, self._is_at_it = self._waiting, [], False
            for member in left:
                member.fail(cause)
            _tell_all(left)

    def _work(self) -> None:
        while taken := self._take():
            self._trip(taken)
            _tell_all(taken)

    def _take(self) -> list[_Member[W, R, Any]]:
        with self._lock:
            taken, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            self._is_at_it = bool(taken)
            return taken

    def _trip(self, taken: Sequence[_Member[W, R, Any]]) -> None:
        wanted = [(member, wants) for member in taken if (wants := member.begin()) is not None]
        if wanted:
            outcomes = self._recorded([wants for _, wants in wanted])
            for (member, _), outcome in zip(wanted, outcomes, strict=False):
                member.outcome = outcome
        alone = [member for member in taken if not member.is_recorded]
        if len(alone) > 1:  # what each of these writes by itself shares its commits
            wait([ending for member in alone if (ending := self._ends_apart(member)) is not None])
        for member in taken:  # also those that found no thread
            member.end()

    def _ends_apart(self, member: _Member[W, R, Any]) -> Future[None] | None:
        try:
            return self._ends.submit(member.end)
        except RuntimeError:  # there is no thread to be had
            return None

    def _recorded(self, wanted: Sequence[W]) -> Sequence[R | Exception]:
        try:
            return self._record(wanted)
        except BaseException as cause:
            return [_another(_error_of(cause)) for _ in wanted]


def _another(cause: Exception) -> Exception:
    """An error for one of many: a handler may add to it. Not each can be copied, and none of the many may be left without."""
    try:
        return copy.copy(cause)
    except Exception:
        return cause


def _error_of(raised: BaseException) -> Exception:
    """An error that ends its own call and nothing else: neither the thread of all, nor what a future cannot hold."""
    if isinstance(raised, Exception) and not isinstance(raised, StopIteration):
        return raised
    error = RuntimeError(f"a call ended with {type(raised).__name__}: {raised}")
    error.__cause__ = raised
    return error


def _tell_all(members: Sequence[_Member[W, R, Any]]) -> None:
    for loop in {member.loop for member in members}:
        told = [member for member in members if member.loop is loop]
        with suppress(RuntimeError):  # it was closed, and nobody waits in it any more
            loop.call_soon_threadsafe(_tell, told)


def _tell(members: Sequence[_Member[W, R, T]]) -> None:
    for member in members:
        member.tell()
