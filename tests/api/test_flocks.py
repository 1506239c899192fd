"""Calls of one moment go in one trip: what each raises is its own, and the second half of each runs whatever happens."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from agent.api.flocks import MOST, Flock
from agent.errors import JobFailed, LedgerUnavailable, QueueFull


class Said:
    """An errand that wants its word recorded and gives what came of it."""

    def __init__(self, word: str | None, raises: Exception | None = None) -> None:
        self.word = word
        self.raises = raises
        self.ends: list[object] = []

    def begin(self) -> str | None:
        if self.raises is not None:
            raise self.raises
        return self.word

    def end(self, outcome: str | Exception | None) -> str:
        self.ends.append(outcome)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome or "nothing"


class Book:
    """Writes words down, in as many transactions as it is called."""

    def __init__(self) -> None:
        self.pages: list[list[str]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.is_held = threading.Semaphore(0)  # released as often as a trip came to its record

    def record(self, words: Sequence[str]) -> list[str | Exception]:
        self.is_held.release()
        assert self.may_go_on.wait(30)
        if "no copy" in words:
            raise JobFailed("no copy of this", "exit:1")
        if "unavailable" in words:
            raise LedgerUnavailable("no book today")
        self.pages.append(list(words))
        return [QueueFull("no room") if word == "too much" else word.upper() for word in words]


def run(*calls: Coroutine[Any, Any, object]) -> list[object]:
    """What each of these gave or raised; all of them wait at once."""

    async def gathered() -> list[object]:
        return list(await asyncio.gather(*calls, return_exceptions=True))

    return asyncio.run(gathered())


def trip(flock: Flock[str, str], book: Book, errands: Sequence[Said]) -> list[object]:
    """What came of these, which come while the flock's thread is at something else."""

    async def meet() -> list[object]:
        book.may_go_on.clear()
        before = asyncio.ensure_future(flock.join(Said("before")))
        await asyncio.get_running_loop().run_in_executor(None, book.is_held.acquire)
        waiting = [asyncio.ensure_future(flock.join(errand)) for errand in errands]
        await asyncio.sleep(0)
        book.may_go_on.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        await before
        return list(found)

    return asyncio.run(meet())


def trips(book: Book) -> list[list[str]]:
    """What was recorded beside what kept the thread busy."""
    return [page for page in book.pages if page != ["before"]]


def test_a_call_that_comes_alone_is_recorded_alone_and_at_once() -> None:
    book = Book()
    flock = Flock(book.record)

    assert run(flock.join(Said("one"))) == ["ONE"]
    assert run(flock.join(Said("two"))) == ["TWO"]
    assert book.pages == [["one"], ["two"]]


def test_calls_of_one_moment_are_recorded_at_once_each_with_what_came_of_it() -> None:
    book = Book()
    words = [f"word {n}" for n in range(MOST)]

    told = trip(Flock(book.record), book, [Said(word) for word in words])

    assert told == [word.upper() for word in words]
    assert trips(book) == [words]


def test_calls_that_the_loop_read_in_one_turn_begin_together() -> None:
    book = Book()
    flock = Flock(book.record)

    assert run(*(flock.join(Said(word)) for word in ("one", "two", "three"))) == ["ONE", "TWO", "THREE"]
    assert book.pages == [["one", "two", "three"]]


def test_no_trip_takes_more_than_its_first_call_can_wait_for() -> None:
    book = Book()
    words = [f"word {n}" for n in range(MOST + 1)]

    told = trip(Flock(book.record), book, [Said(word) for word in words])

    assert told == [word.upper() for word in words]
    assert sorted(len(page) for page in trips(book)) == [1, MOST]


def test_what_one_call_raises_ends_that_call_alone() -> None:
    book = Book()
    refused = Said("refused", ZeroDivisionError("of its own"))
    errands = [Said("first"), refused, Said("too much"), Said(None), Said("last")]

    first, own, full, nothing, last = trip(Flock(book.record), book, errands)

    assert (first, nothing, last) == ("FIRST", "nothing", "LAST")
    assert isinstance(own, ZeroDivisionError)
    assert isinstance(full, QueueFull)
    assert trips(book) == [["first", "too much", "last"]]


def test_where_nothing_can_be_recorded_each_call_has_an_error_of_its_own_and_its_second_half_runs() -> None:
    book = Book()
    errands = [Said("one"), Said("unavailable")]

    told = trip(Flock(book.record), book, errands)

    assert [str(error) for error in told] == ["no book today"] * 2
    assert told[0] is not told[1]
    assert [errand.ends for errand in errands] == [[error] for error in told]


def test_an_error_that_cannot_be_copied_comes_of_all() -> None:
    book = Book()

    told = trip(Flock(book.record), book, [Said("no copy"), Said("another")])

    assert [str(error) for error in told] == ["no copy of this"] * 2


def test_who_is_gone_keeps_nobody_from_an_answer() -> None:
    book = Book()
    flock = Flock(book.record)

    async def one_leaves() -> str:
        book.may_go_on.clear()
        leaves = asyncio.ensure_future(flock.join(Said("leaves")))
        await asyncio.get_running_loop().run_in_executor(None, book.is_held.acquire)
        leaves.cancel()
        book.may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await leaves
        return await flock.join(Said("stays"))

    assert asyncio.run(one_leaves()) == "STAYS"


def test_refused_ones_end_at_once_so_that_what_each_writes_shares_a_commit() -> None:
    # Both must be at their ends for either to go on.
    both = threading.Barrier(2)

    class Refused(Said):
        def end(self, outcome: str | Exception | None) -> str:
            both.wait(20)
            return super().end(outcome)

    book = Book()
    errands = [Refused("x", raises=LedgerUnavailable(name)) for name in ("one", "two")]

    found = trip(Flock(book.record), book, [errands[0], Said("order"), errands[1]])

    assert [str(one) for one in found] == ["one", "ORDER", "two"]
    assert not both.broken


class Panic(BaseException):
    """As a library below raises it that is written in another language: no Exception."""


@pytest.mark.parametrize("cause", [Panic("of a library"), StopIteration("of nobody"), SystemExit("now")])
def test_whatever_a_call_raises_the_thread_of_all_goes_on(cause: BaseException) -> None:
    class Broken(Said):
        def begin(self) -> str | None:
            if self.word == "begins":
                raise cause
            return self.word

        def end(self, outcome: str | Exception | None) -> str:
            if self.word == "ends":
                raise cause
            return super().end(outcome)

    book = Book()
    flock = Flock(book.record)

    one, first, two = trip(flock, book, [Broken("begins"), Broken("first"), Broken("ends")])

    assert first == "FIRST"
    assert [type(error) for error in (one, two)] == [RuntimeError, RuntimeError]
    assert str(cause) in str(one)
    assert run(flock.join(Said("later"))) == ["LATER"]


def test_whatever_the_record_raises_the_thread_of_all_goes_on() -> None:
    def record(words: Sequence[str]) -> list[str | Exception]:
        if "panic" in words:
            raise Panic("of a library")
        return [word.upper() for word in words]

    flock = Flock(record)

    assert [type(error) for error in run(flock.join(Said("panic")))] == [RuntimeError]
    assert run(flock.join(Said("later"))) == ["LATER"]


def test_where_no_thread_is_to_be_had_a_call_fails_and_the_next_one_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    book = Book()
    flock = Flock(book.record)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        found = run(*(flock.join(Said(word)) for word in ("one", "two")))

    assert [str(error) for error in found] == ["can't start new thread"] * 2
    assert run(flock.join(Said("later"))) == ["LATER"]
    assert book.pages == [["later"]]


def test_where_no_further_thread_is_to_be_had_refused_ones_end_in_that_of_all() -> None:
    book = Book()
    flock = Flock(book.record)
    flock._ends.shutdown()  # takes nothing more, as one that gets no thread
    errands = [Said("x", raises=LedgerUnavailable(name)) for name in ("one", "two")]

    found = trip(flock, book, [*errands, Said("order")])

    assert [str(one) for one in found] == ["one", "two", "ORDER"]
    assert [len(errand.ends) for errand in errands] == [1, 1]
