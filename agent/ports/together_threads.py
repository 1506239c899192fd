"""Calls at the same time, each in a thread that is kept for the next one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any, Final

THREADS: Final = 8  # of one process; a call that finds none free is made by who asked for it


class ThreadsTogether:
    """Implements `Together`. The first call is the calling thread's own; the others have its trace, and its log's words.

    A call that no thread has taken by the time that those before it are made is the calling thread's own too: so calls that
    begin calls, or wait for what an earlier one gives, never wait for a thread that waits for them.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "together")

    def __call__(self, *calls: Callable[[], Any]) -> tuple[Any, ...]:
        """As the protocol says."""
        begun: list[Future[Any]] = []
        try:
            begun += (self._threads.submit(copy_context().run, call) for call in calls[1:])
            own = tuple(call() for call in calls[:1])
            return own + tuple(
                call() if one.cancel() else one.result() for call, one in zip(calls[1:], begun, strict=True)
            )
        finally:
            wait([one for one in begun if not one.cancel()])

    def close(self) -> None:
        """Begin no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
