"""When others are asked what a lost message hid, as numbers. Waiting is somebody else's."""

from datetime import timedelta

SOONEST_S, LONGEST_S = 5.0, 120.0


def next_round(rounds: int, first: timedelta, every: timedelta, dice: float) -> timedelta:
    """How long to wait for the next round after so many. `dice` lies in [0, 1): half to one and a half of `first` before the
    first round, two thirds to four thirds of `every` after it, so that agents that started together do not ask together."""
    if rounds == 0:
        return first * (0.5 + dice)
    return every * (2 + 2 * dice) / 3


def next_try(tries: int, dice: float) -> timedelta:
    """How long a restored host waits after so many rounds (from 1) in which somebody did not answer.

    Half to whole of 5 s, 10 s, … 120 s.
    """
    ceiling = min(LONGEST_S, SOONEST_S * 2 ** min(tries - 1, 10))
    return timedelta(seconds=ceiling * (0.5 + dice / 2))
