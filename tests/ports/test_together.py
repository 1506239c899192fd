"""What every way of making calls together promises, and that threads make them at the same time."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from agent.log import bound, bound_trace
from agent.ports.together import Together, one_by_one
from agent.ports.together_threads import THREADS, ThreadsTogether

WAIT_S = 20.0


@pytest.fixture
def threads() -> Iterator[ThreadsTogether]:
    made = ThreadsTogether()
    yield made
    made.close()


@pytest.fixture(params=["one by one", "threads"])
def together(request: pytest.FixtureRequest, threads: ThreadsTogether) -> Together:
    ways: dict[str, Together] = {"one by one": one_by_one, "threads": threads}
    return ways[request.param]


def failing(with_what: Exception) -> Callable[[], int]:
    def call() -> int:
        raise with_what

    return call


def test_what_each_gave_comes_in_the_order_of_the_calls(together: Together) -> None:
    assert together(lambda: 1, lambda: "two", lambda: 3.0) == (1, "two", 3.0)


def test_nothing_to_call_gives_nothing(together: Together) -> None:
    assert together() == ()


def test_of_two_that_fail_the_first_in_order_is_told(together: Together) -> None:
    with pytest.raises(KeyError):
        together(lambda: 1, failing(KeyError("the second")), failing(ValueError("the third")))


def test_more_calls_than_threads_are_all_made(threads: ThreadsTogether) -> None:
    numbers = range(3 * THREADS)

    assert threads(*(lambda number=number: number for number in numbers)) == tuple(numbers)


def test_calls_of_threads_are_under_way_at_the_same_time(threads: ThreadsTogether) -> None:
    meeting = threading.Barrier(3)

    assert len(threads(*(lambda: meeting.wait(WAIT_S) for _ in range(3)))) == 3


def test_nothing_is_under_way_any_more_when_one_failed(threads: ThreadsTogether) -> None:
    has_begun, has_failed, ended = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        has_begun.set()
        has_failed.wait(WAIT_S)
        ended.set()

    def fail() -> None:
        has_begun.wait(WAIT_S)
        has_failed.set()
        raise KeyError("the first")

    with pytest.raises(KeyError):
        threads(fail, slow)

    assert ended.is_set()


def test_tasks_that_wait_for_their_keys_in_every_thread_leave_each_other_a_way_to_them(
    threads: ThreadsTogether,
) -> None:
    """As `fetch` does it: one call opens with a key that another one gets by calls of its own."""
    meeting = threading.Barrier(2 * THREADS)

    def fetch() -> object:
        key: Future[int] = Future()

        def ask_shares() -> None:
            meeting.wait(WAIT_S)  # by now every thread has been asked for
            key.set_result(sum(threads(lambda: 1, lambda: 2, lambda: 3)))

        _, opened = threads(ask_shares, lambda: key.result(WAIT_S))
        return opened

    with ThreadPoolExecutor(meeting.parties) as workers:
        fetched = [workers.submit(fetch) for _ in range(meeting.parties)]

    assert [one.result() for one in fetched] == [6] * meeting.parties


def test_a_call_that_nobody_began_is_not_made_once_one_before_it_failed(threads: ThreadsTogether) -> None:
    has_failed = threading.Event()
    made: list[str] = []

    def hold() -> None:
        has_failed.wait(WAIT_S)

    def fail() -> None:
        raise KeyError("the first")

    def fail_while_no_thread_is_free() -> None:
        try:
            threads(fail, lambda: made.append("the second"))
        finally:
            has_failed.set()

    with pytest.raises(KeyError):
        threads(fail_while_no_thread_is_free, *[hold] * THREADS)

    assert not made


def test_a_call_in_another_thread_carries_on_the_trace(threads: ThreadsTogether) -> None:
    with bound(trace="0af7651916cd43dd8448eb211c80319c"):
        assert set(threads(bound_trace, bound_trace, bound_trace)) == {"0af7651916cd43dd8448eb211c80319c"}
