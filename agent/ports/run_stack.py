"""What a run's context holds: all of it is let go of in turn, and the container goes, unless it is left to another worker."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol, TypeVar


class Leavable(Protocol):
    """A run that knows whether it was left."""

    is_left: bool

    @property
    def is_over(self) -> bool:
        """Whether it was told how the run ended."""
        ...


R = TypeVar("R", bound=Leavable)


class RunStack(ExitStack):
    """The resources of one run."""

    _run: Leavable | None = None

    def gives(self, run: R) -> R:
        """The run that the caller of the context gets, and may leave."""
        self._run = run
        return run

    @property
    def is_over(self) -> bool:
        """Whether the run that was given ended, and its end was told."""
        return self._run is not None and self._run.is_over

    def removes(self, remove: Callable[..., None], *arguments: object) -> None:
        """Take the container away at this place, when it was not left."""
        self.callback(self._unless_left, remove, *arguments)

    def _unless_left(self, remove: Callable[..., None], *arguments: object) -> None:
        if self._run is None or not self._run.is_left:
            remove(*arguments)
