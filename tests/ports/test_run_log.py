"""What a guest says is capped, keeps both ends, and gives away a number only."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from agent.ports.run_log import MAX_LINE_BYTES, RunLog

# The line that stands for the middle must be told from what was said.
BLOCKS = st.binary(max_size=300).map(lambda block: block.replace(b"]", b"x"))


def said(*lines: bytes, is_stdout: bool = True) -> RunLog:
    log = RunLog(1 << 16)
    for line in lines:
        log.add(line, is_stdout=is_stdout)
    return log


@given(blocks=st.lists(BLOCKS, max_size=30), limit=st.integers(0, 2000))
def test_no_more_is_kept_than_the_limit_and_both_ends_are_what_was_said(
    blocks: list[bytes], limit: int
) -> None:
    log, whole = RunLog(limit), b"".join(blocks)

    for block in blocks:
        log.add(block, is_stdout=True)

    kept = log.kept()
    assert len(kept) <= limit
    head, mark, tail = kept.partition(b" bytes left out]\n")
    if mark:
        head, _, count = head.rpartition(b"\n[")
        assert whole.startswith(head)
        assert whole.endswith(tail)
        assert len(head) + int(count) + len(tail) == len(whole)


@given(blocks=st.lists(st.binary(max_size=300), max_size=5))
def test_what_fits_is_kept_whole_in_order(blocks: list[bytes]) -> None:
    assert said(*blocks).kept() == b"".join(blocks)


@pytest.mark.parametrize(
    ("line", "number"),
    [
        (b"progress: 0.42 some words\n", 0.42),
        (b"progress: 0\n", 0.0),
        (b"progress: 1\n", 1.0),
        (b"progress: 1.0 done\r\n", 1.0),
        (b"progress:0.129\n", 0.13),
        (b"progress: 1.01\n", None),
        (b"progress: 7\n", None),
        (b"progress: -0.5\n", None),
        (b"progress: nan\n", None),
        (b"progress: 1e-1\n", None),
        (b"progress: 0.5words\n", None),
        (b"my progress: 0.5\n", None),
        (b"progress: 0.5", None),  # no line yet
        (b"progress: 0.\xd9\xa4\n", None),  # a digit, but not of ours
    ],
)
def test_a_progress_line_is_a_number_between_0_and_1(line: bytes, number: float | None) -> None:
    assert said(line).progress() == number


def test_a_line_may_come_in_pieces() -> None:
    assert said(b"progr", b"ess: 0.", b"5 half", b"way\nnext").progress() == 0.5


def test_progress_only_rises_and_stderr_does_not_count() -> None:
    assert said(b"progress: 0.5\nprogress: 0.2\n").progress() == 0.5
    assert said(b"progress: 0.5\n", is_stdout=False).progress() is None


def test_an_endless_line_takes_no_memory() -> None:
    log = RunLog(100)
    for _ in range(1000):
        log.add(b"x" * 10_000, is_stdout=True)

    assert len(log._line) <= MAX_LINE_BYTES
    assert len(log._tail) <= 4 * 100 + 10_000
