"""Values as people read them, and text of strangers that cannot change how the rest is read."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api.page.words import MAX_TEXT, ago, counted, cut, plain, short, size, span
from tests.builders import NOW


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0421, "0.04 s"), (2.34, "2.3 s"), (59.4, "59 s"), (60, "1 min"), (184, "3 min 4 s"), (7500, "2 h 5 min"),
     (86400 * 3 + 3600 * 4, "3 d 4 h"), (-5, "-5.0 s")],
)  # fmt: skip
def test_a_span_is_told_in_its_two_largest_units(seconds: float, told: str) -> None:
    assert span(seconds) == told


@pytest.mark.parametrize(
    ("passed", "told"),
    [(timedelta(seconds=0.4), "now"), (timedelta(seconds=59), "59 s ago"), (timedelta(minutes=90), "1 h ago"),
     (timedelta(days=-3), "in 3 d"), (timedelta(seconds=-20), "in 20 s")],
)  # fmt: skip
def test_a_moment_is_told_from_now(passed: timedelta, told: str) -> None:
    assert ago(NOW - passed, NOW) == told


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (250 << 20, "250 MiB"),
        (3 << 29, "1.5 GiB"),
        (5 << 40, "5.0 TiB"),
    ],
)
def test_bytes_are_told_in_the_unit_that_fits(count: int, told: str) -> None:
    assert size(count) == told


def test_counts_and_ids_are_short() -> None:
    assert (counted(1, "order"), counted(2, "order"), counted(2, "try", "tries")) == (
        "1 order",
        "2 orders",
        "2 tries",
    )
    assert short("sha256:0123456789abcdef") == "01234567"
    assert cut("a longer name", 6) == "a lon…"


@pytest.mark.parametrize(
    "unseen", ["\u202e", "\u2066", "\u200b", "\ufeff", "\x1b", "\x00", "\u2028", "\ud800", "\U000e0041"]
)
def test_what_is_not_seen_is_written_out(unseen: str) -> None:
    told = plain(f"gpj{unseen}exe")

    assert unseen not in told
    assert told == f"gpj\\u{ord(unseen):04x}exe"


def test_marks_do_not_stack_up_over_other_lines() -> None:
    assert plain("e" + "\u0301" * 50).count("\u0301") == 2


def test_a_long_text_is_cut_and_the_rest_counted() -> None:
    assert plain("x" * 10_000) == "x" * MAX_TEXT + "… (and 9760 characters)"


@given(st.text(alphabet=st.characters()))
def test_no_text_breaks_a_line_or_stays_unseen(text: str) -> None:
    told = plain(text)

    assert len(told.splitlines()) <= 1
    assert told.isprintable() or not text.isprintable()
