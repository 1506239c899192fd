"""How long each phase of an attempt took. A monotonic clock measures; nothing decides by it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Phases:
    """Seconds by name of phase, in the order they ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what runs inside."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - began, 4)

    @property
    def total_s(self) -> float:
        """Seconds since the attempt began."""
        return round(time.monotonic() - self._began, 4)
