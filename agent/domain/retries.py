"""When to try again: exponential backoff with full jitter, as numbers. Waiting is somebody else's."""

import hashlib
from datetime import timedelta

BASE_S = 2.0
CAP_S = 300.0


LONGEST_REST = timedelta(seconds=CAP_S)


def backoff(attempt: int, dice: float) -> timedelta:
    """How long to rest after failed attempt number `attempt` (from 1). `dice` lies in [0, 1); between half and whole of
    2 s, 4 s, 8 s, … 300 s."""
    ceiling = min(CAP_S, BASE_S * 2 ** min(attempt - 1, 20))
    return timedelta(seconds=ceiling * (0.5 + dice / 2))


def rest_between_attempts(attempt: int, dice: float) -> timedelta:
    """How long a task rests after attempt number `attempt` was lost to something outside: half to whole of 40 s, 160 s, 300 s.

    Attempts are few and counted, so they are spread over minutes: a service that restarts must not use them up.
    """
    ceiling = min(CAP_S, 40.0 * 4 ** min(attempt - 1, 10))
    return timedelta(seconds=ceiling * (0.5 + dice / 2))


def dice(*parts: object) -> float:
    """A number in [0, 1) that is the same for the same parts: jitter that a run can repeat."""
    drawn = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(drawn[:7]) / 256**7
