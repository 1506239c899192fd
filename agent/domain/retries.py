"""Whether and when to try again: by the class of the error, and exponential backoff with full jitter, as numbers.

Waiting is somebody else's.
"""

import hashlib
from collections.abc import Collection
from datetime import timedelta

from agent.errors import AgentError

BASE_S = 2.0
CAP_S = 300.0


LONGEST_REST = timedelta(seconds=CAP_S)


def backoff(attempt: int, dice: float) -> timedelta:
    """How long to rest after failed attempt number `attempt` (from 1). `dice` lies in [0, 1); between half and whole of
    2 s, 4 s, 8 s, … 300 s."""
    ceiling = min(CAP_S, BASE_S * 2 ** min(attempt - 1, 20))
    return timedelta(seconds=ceiling * (0.5 + dice / 2))


def may_retry(error: AgentError, earlier_codes: Collection[str], attempt: int, max_attempts: int) -> bool:
    """Whether a task whose attempt number `attempt` (from 1) ended with this error gets another one.

    `earlier_codes`: the codes by which the attempts before it ended, one each. An error whose class allows only so many
    retries is counted over all of them: a disk that was full before and is full again ends the task.
    """
    if not error.is_retried or attempt >= max_attempts:
        return False
    return (
        error.most_retries is None or sum(code == error.code for code in earlier_codes) < error.most_retries
    )


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
