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
    has_failed, ended = threading.Event(), threading.Event()

    def slow() -> None:
        has_failed.wait(WAIT_S)
        ended.set()

    def fail() -> None:
        has_failed.set()
        raise KeyError("the first")

    with pytest.raises(KeyError):
        threads(fail, slow)

    assert ended.is_set()


def test_a_call_in_another_thread_carries_on_the_trace(threads: ThreadsTogether) -> None:
    with bound(trace="0af7651916cd43dd8448eb211c80319c"):
        assert set(threads(bound_trace, bound_trace, bound_trace)) == {"0af7651916cd43dd8448eb211c80319c"}


def test_many_tasks_whose_datasets_wait_for_their_keys_do_not_keep_the_keys_from_coming(
    threads: ThreadsTogether,
) -> None:
    tasks = 12
    are_waiting = threading.Barrier(2 * tasks)  # every dataset is on its way before any key is asked for

    def task(number: int) -> tuple[int, int]:
        key: Future[int] = Future()

        def ask() -> int:
            are_waiting.wait(WAIT_S)
            parts = threads(lambda: number, lambda: 0)  # the holders of its shares
            key.set_result(sum(parts))
            return number

        def opened() -> int:
            are_waiting.wait(WAIT_S)
            return key.result(WAIT_S)

        return threads(ask, opened)

    with ThreadPoolExecutor(tasks) as workers:
        found = list(workers.map(task, range(tasks)))

    assert found == [(number, number) for number in range(tasks)]
