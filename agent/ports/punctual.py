"""TLS that keeps to a deadline: httpx bounds each read and write, nobody the whole call of an answer that drips."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

GATHER_S = 1.0  # `gather` gives what it has after so long

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

    _broke: OSError | None = None  # after something had come, which went to who asked first

    def settimeout(self, value: float | None, /) -> None:
        until = getattr(_under_way, "until", None)
        if until is not None:
            left_s = max(until - time.monotonic(), 0.001)  # 0 would mean "do not block", and fail otherwise
            value = left_s if value is None else min(value, left_s)
        super().settimeout(value)

    def gather(self, view: memoryview, silence_s: float) -> int:
        """Fill `view` with what comes, many TLS records in one call; how much it is, 0 at the end of the connection.

        A call may end early: when it has been GATHER_S on the way, or where the connection broke after something had come; what
        it raised then, the next one raises. `silence_s`: the most to wait for a record, as `settimeout` takes it.
        Raises: TimeoutError, OSError.
        """
        if self._broke is not None:
            raise self._broke
        got, began = 0, time.monotonic()
        until = getattr(_under_way, "until", None) or began + silence_s
        bound_s = 0.0  # what the socket was told; never more than what is left
        while got < len(view):
            at = time.monotonic()
            if got and at > began + GATHER_S:
                break
            if not bound_s or until - at < bound_s:
                self.settimeout(silence_s)
                bound_s = self.gettimeout() or silence_s
            try:
                count = self.recv_into(view[got:])
            except OSError as broke:
                if not got:
                    raise
                self._broke = broke
                break
            if not count:
                break
            got += count
        return got
