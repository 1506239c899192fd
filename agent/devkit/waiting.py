"""Waiting for something outside this process, with a limit."""

import time
from collections.abc import Callable

POLL_S = 0.05


class NeverSeen(Exception):
    """What was waited for did not come; the message says what."""


def wait_for(is_there: Callable[[], bool], what: str, *, timeout_s: float) -> None:
    """Return when `is_there` says yes. Raises: NeverSeen."""
    deadline = time.monotonic() + timeout_s
    while not is_there():
        if time.monotonic() > deadline:
            raise NeverSeen(f"{what} was not seen within {timeout_s:.0f} s")
        time.sleep(POLL_S)
