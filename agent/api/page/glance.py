"""A look at something slow that nobody waits for: a page shows what was seen last, and when."""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE_S = 0.03  # a page waits so long for a look that may be quick; it has 100 ms in all


class Glance(Generic[T]):
    """What `look` saw last. It looks again, in a thread of its own and one at a time, once that is older than `kept_s`."""

    def __init__(self, look: Callable[[], T], kept_s: float) -> None:
        self._look, self._kept_s = look, kept_s
        self._lock = threading.Lock()
        self._looking: threading.Thread | None = None
        self._seen: T | None = None
        self._seen_at = -kept_s

    def take(self, patience_s: float = PATIENCE_S) -> T | None:
        """What was seen last, at most a moment after it is asked for; None while nothing was ever seen."""
        with self._lock:
            is_old = time.monotonic() - self._seen_at >= self._kept_s
            if is_old and (self._looking is None or not self._looking.is_alive()):
                self._looking = threading.Thread(target=self._see, name="glance", daemon=True)
                self._looking.start()
            looking = self._looking if is_old else None
        if looking is not None:
            looking.join(patience_s)
        return self._seen

    def _see(self) -> None:
        self._seen = self._look()
        self._seen_at = time.monotonic()
