"""Calls to others that need not wait for each other, made at the same time.

No step of the pipeline starts a thread: whether calls overlap is a door's matter, so a simulation may make them one by one.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, overload

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


class Together(Protocol):
    """Makes calls of which none needs what a later one gives. A call may begin calls together itself."""

    @overload
    def __call__(self, first: Callable[[], A], second: Callable[[], B], /) -> tuple[A, B]: ...

    @overload
    def __call__(
        self, first: Callable[[], A], second: Callable[[], B], third: Callable[[], C], /
    ) -> tuple[A, B, C]: ...

    @overload
    def __call__(self, *calls: Callable[[], A]) -> tuple[A, ...]: ...

    def __call__(self, *calls: Callable[[], Any]) -> tuple[Any, ...]:
        """What each of them gave, in order; none is under way any more then.

        Raises: what the first of them that failed raised, by their order here; the others may have been made or not.
        """
        ...


def one_by_one(*calls: Callable[[], Any]) -> tuple[Any, ...]:
    """The same without a thread. See `Together`."""
    return tuple(call() for call in calls)
