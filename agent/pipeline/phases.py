"""How long each phase of an attempt took. A monotonic clock measures; nothing decides by it."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from agent.log import get_logger

log = get_logger(__name__)


class Phases:
    """Seconds by name of phase, in the order they ran."""

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        """`before`: what the worker before this one had measured of the same attempt."""
        self.seconds: dict[str, float] = dict(before or {})
        self._before_s = sum(self.seconds.values())
        self._began = time.monotonic()
        self._within_s = 0.0  # of phases that ended inside the one that is being measured

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what runs inside, in this thread. A phase within it counts for itself alone: they add up."""
        began, before_s, self._within_s = time.monotonic(), self._within_s, 0.0
        try:
            yield
        finally:
            whole_s = time.monotonic() - began
            took_s, self._within_s = whole_s - self._within_s, before_s + whole_s
            self.seconds[name] = round(self.seconds.get(name, 0.0) + took_s, 4)
            log.debug("phase.ended", phase=name, whole_s=round(whole_s, 6))

    def at_least(self, name: str, seconds: float) -> None:
        """The phase took so long, whoever measured it: a worker before this one may have waited for most of it."""
        missing_s = seconds - self.seconds.get(name, 0.0)
        if missing_s > 0:
            self.seconds[name] = round(seconds, 4)
            self._before_s += missing_s

    @property
    def total_s(self) -> float:
        """Seconds of work on the attempt: since it began, or before and since it was taken over."""
        return round(self._before_s + time.monotonic() - self._began, 4)
