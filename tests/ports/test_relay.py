"""A relay gives every piece to every taker, in order, through a few buffers, and leaves no thread behind."""

import hashlib
import os
import threading
from collections.abc import Sequence
from contextlib import suppress

import pytest

from agent.ports.relay import BUFFERS, PIECE_BYTES, Fill, Inline, Taker, relay

STREAM = os.urandom(3 * PIECE_BYTES) * 8 + b"end"


def feeding(stream: bytes, at_once: int = PIECE_BYTES) -> Fill:
    """Fills buffers with the stream, a piece each."""
    left = [memoryview(stream)]

    def fill(view: memoryview) -> int:
        count = min(len(view), len(left[0]), at_once)
        view[:count], left[0] = left[0][:count], left[0][count:]
        return count

    return fill


def send(takers: Sequence[Taker], fills: list[Fill]) -> None:
    """Pass on a piece of each; the first taker is the sender's own."""
    with relay(takers[1:], takers[0]) as passing:
        for fill in fills:
            passing.pass_on(fill)


def relays() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("relay")]


@pytest.mark.parametrize("at_once", [PIECE_BYTES, PIECE_BYTES // 2 + 1])
def test_every_taker_gets_the_whole_stream_in_order(at_once: int) -> None:
    kept, hashed, fill = bytearray(), hashlib.sha256(), feeding(STREAM, at_once)

    with relay([hashed.update], kept.extend) as passing:
        while passing.pass_on(fill):
            pass

    assert bytes(kept) == STREAM
    assert hashed.digest() == hashlib.sha256(STREAM).digest()
    assert not relays()


def test_without_threads_it_is_the_same() -> None:
    kept, hashed, fill = bytearray(), hashlib.sha256(), feeding(STREAM)
    passing = Inline([hashed.update], kept.extend)

    while passing.pass_on(fill):
        pass

    assert bytes(kept) == STREAM
    assert hashed.digest() == hashlib.sha256(STREAM).digest()


def test_the_block_ends_when_the_slowest_taker_has_everything() -> None:
    may_take, taken = threading.Event(), list[int]()

    def slow(piece: memoryview) -> None:
        may_take.wait()
        taken.append(len(piece))

    with relay([slow], len) as passing:
        passing.pass_on(feeding(b"a piece"))
        assert not taken
        may_take.set()

    assert taken == [7]


def test_a_fast_sender_waits_for_the_slowest_taker() -> None:
    may_take, begun = threading.Semaphore(0), threading.Semaphore(0)
    fill, filled = feeding(STREAM), list[int]()

    def slow(_piece: memoryview) -> None:
        begun.release()
        may_take.acquire()

    def send_all() -> None:
        while count := passing.pass_on(fill):
            filled.append(count)
        may_take.release(len(STREAM))

    with relay([slow], len) as passing:
        sender = threading.Thread(target=send_all)
        sender.start()
        for taken in range(3):
            begun.acquire()
            assert len(filled) <= BUFFERS + taken
            may_take.release()
        may_take.release(len(STREAM))
        sender.join()

    assert sum(filled) == len(STREAM)


def test_what_a_taker_raises_the_block_raises() -> None:
    def refuse(_piece: memoryview) -> None:
        raise OSError("no room")

    for takers in ([hashlib.sha256().update, refuse], [refuse, hashlib.sha256().update]):
        with pytest.raises(OSError, match="no room"):
            send(takers, [feeding(STREAM)] * 100)

    assert not relays()


def test_what_a_taker_raises_at_the_last_piece_is_not_lost() -> None:
    def refuse(_piece: memoryview) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        send([len, refuse], [feeding(b"the only piece")])


def test_a_sender_that_fails_leaves_no_thread_and_no_taker_at_work() -> None:
    taken: list[int] = []

    def fail(_view: memoryview) -> int:
        raise ValueError("the connection broke")

    with pytest.raises(ValueError, match="broke"):
        send([len, lambda piece: taken.append(len(piece))], [feeding(b"a piece"), fail])

    assert not relays()
    assert len(taken) <= 1


def test_a_sender_that_fails_may_go_on() -> None:
    """A download that broke is taken up again, with the same takers."""
    kept, fill = bytearray(), feeding(STREAM)

    def fail(_view: memoryview) -> int:
        raise ValueError("the connection broke")

    with relay([kept.extend], len) as passing:
        for _ in range(2 * BUFFERS):
            with suppress(ValueError):
                passing.pass_on(fail)
        while passing.pass_on(fill):
            pass

    assert bytes(kept) == STREAM
