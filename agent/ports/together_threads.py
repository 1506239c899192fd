"""Calls at the same time, each in a thread that is kept for the next one."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any, Final

# Of one process; a call that finds none free waits for one. More than all workers that may be set (64 of each kind of task):
# each may have a call under way that waits for another one, a dataset for its key, and that one needs a thread too. A thread
# is started when none is free.
THREADS: Final = 256


class ThreadsTogether:
    """Implements `Together`. The first call is the calling thread's own; the others have its trace, and its log's words."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "together")

    def __call__(self, *calls: Callable[[], Any]) -> tuple[Any, ...]:
        """As the protocol says."""
        begun = [self._threads.submit(copy_context().run, call) for call in calls[1:]]
        try:
            own = [call() for call in calls[:1]]
        finally:
            wait(begun)
        return (*own, *(one.result() for one in begun))

    def close(self) -> None:
        """Begin no more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
