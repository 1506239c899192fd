"""What is done from time to time: when it begins, when it stops, and whether its end is waited for."""

import threading

from agent.repeating import repeating

SOON_S = 10.0
NEVER_S = 3600.0


def test_it_is_done_after_each_rest_which_is_asked_for_anew() -> None:
    done, rests = threading.Semaphore(0), iter((0.0, 0.0, NEVER_S))

    with repeating("test", done.release, lambda: next(rests)):
        assert done.acquire(timeout=SOON_S)
        assert done.acquire(timeout=SOON_S)

    assert not done.acquire(blocking=False)
    assert list(rests) == []


def test_it_is_done_before_the_first_rest_only_when_told_so() -> None:
    at_once, later = threading.Event(), threading.Event()

    with (
        repeating("test", at_once.set, lambda: NEVER_S, is_at_once=True),
        repeating("test", later.set, lambda: NEVER_S),
    ):
        assert at_once.wait(SOON_S)

    assert not later.is_set()


def test_what_is_under_way_at_the_end_is_waited_for_unless_told_otherwise() -> None:
    begun, may_end, has_ended = threading.Event(), threading.Event(), threading.Event()

    def act() -> None:
        begun.set()
        may_end.wait(SOON_S)
        has_ended.set()

    with repeating("test", act, lambda: NEVER_S, is_at_once=True, is_awaited=False):
        assert begun.wait(SOON_S)
    assert not has_ended.is_set()
    may_end.set()
    assert has_ended.wait(SOON_S)

    begun.clear()
    has_ended.clear()
    with repeating("test", act, lambda: NEVER_S, is_at_once=True):
        assert begun.wait(SOON_S)
    assert has_ended.is_set()
