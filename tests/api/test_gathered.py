"""Short writes of one turn of the loop go out as one, in their order, and none is lost where the connection closes."""

import asyncio
from collections.abc import Callable

import pytest

from agent.api.gathered import SHORT_BYTES, Gathered

LONG = b"l" * (SHORT_BYTES + 1)


class Below(asyncio.Transport):
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_closed
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_closed = True


def after(act: Callable[[Gathered], None]) -> list[bytes]:
    """What went out of a connection on which this was done, one turn of the loop later."""
    below = Below()

    async def turn() -> None:
        act(Gathered(below, asyncio.get_running_loop()))
        await asyncio.sleep(0)

    asyncio.run(turn())
    return below.written


def writing(*pieces: bytes) -> Callable[[Gathered], None]:
    def act(transport: Gathered) -> None:
        for piece in pieces:
            transport.write(piece)

    return act


def test_a_head_and_a_short_body_are_one_write() -> None:
    assert after(writing(b"head", b"body", b"")) == [b"headbody"]


def test_a_long_piece_waits_for_nothing_and_is_not_copied_behind_a_short_one() -> None:
    assert after(writing(LONG, b"end")) == [LONG, b"end"]
    assert after(writing(b"head", LONG, b"end")) == [b"head", LONG, b"end"]


def test_many_short_pieces_go_out_as_soon_as_they_are_a_long_one() -> None:
    half = b"h" * (SHORT_BYTES // 2)

    assert after(writing(half, half, b"more", b"end")) == [half + half + b"more", b"end"]


@pytest.mark.parametrize("end", [Gathered.close, Gathered.abort])
def test_what_was_written_before_a_connection_is_closed_or_cut_goes_out_first(
    end: Callable[[Gathered], None],
) -> None:
    def act(transport: Gathered) -> None:
        transport.write(b"last")
        end(transport)

    assert after(act) == [b"last"]


def test_nothing_is_written_to_a_connection_that_closed_by_itself() -> None:
    def act(transport: Gathered) -> None:
        transport.write(b"too late")
        transport._below.close()

    assert after(act) == []
    assert not hasattr(Gathered, "is_closing")  # that is the transport's below
