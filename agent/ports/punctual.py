"""TLS that keeps to a deadline: httpx bounds each read and write, nobody the whole call of an answer that drips."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_under_way = threading.local()  # .until: when the call of this thread must be over, on the monotonic clock


@contextmanager
def deadline(total_s: float) -> Iterator[None]:
    """Whatever this thread reads or writes over TLS inside the block ends after `total_s`, however slowly it drips."""
    before = getattr(_under_way, "until", None)
    _under_way.until = time.monotonic() + total_s
    try:
        yield
    finally:
        _under_way.until = before


class PunctualSocket(ssl.SSLSocket):
    """httpx sets a timeout before each read and write; none may reach beyond the call's deadline."""

    def settimeout(self, value: float | None, /) -> None:
        until = getattr(_under_way, "until", None)
        if until is not None:
            left_s = max(until - time.monotonic(), 0.001)  # 0 would mean "do not block", and fail otherwise
            value = left_s if value is None else min(value, left_s)
        super().settimeout(value)
