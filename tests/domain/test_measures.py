"""What lines count, and that a label is always one of few words."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain import measures
from agent.domain.audit import NewEvent, Plain
from agent.domain.jobs import JobState
from agent.domain.measures import BUCKETS_S, OTHER, Tally, added_up, observed, reason, tallies_of, word


def line(name: str, **values: Plain) -> NewEvent:
    return NewEvent(name=name, values=values)


def test_a_move_counts_its_state_and_the_end_its_reason() -> None:
    assert tallies_of(line("job.running", attempt=1)) == (Tally(measures.MOVES, ("running",)),)
    assert tallies_of(line("job.failed", attempt=1, reason="oom")) == (
        Tally(measures.MOVES, ("failed",)),
        Tally(measures.ENDED, ("failed", "oom")),
    )
    assert Tally(measures.ENDED, ("done", "")) in tallies_of(line("job.done", attempt=1))


def test_back_in_the_queue_is_a_retry_and_the_first_time_is_none() -> None:
    again = tallies_of(line("job.queued", attempt=1, reason="storage-unavailable"))

    assert Tally(measures.RETRIES, ("storage-unavailable",)) in again
    assert tallies_of(line("job.queued", attempt=0)) == (Tally(measures.MOVES, ("queued",)),)


def test_a_run_counts_its_outcome_and_its_seconds() -> None:
    counted = tallies_of(line("run.ended", run="train", outcome="exit:137", wall_s=2.5))

    assert counted == (
        Tally(measures.RUNS, ("train", "exit")),
        Tally(measures.RUN_S, ("train", "5.0")),
        Tally(measures.RUN_S, ("train", "sum"), 2.5),
    )


def test_every_state_is_counted() -> None:
    assert all(tallies_of(line(f"job.{state}", attempt=0)) for state in JobState)


def test_a_line_that_counts_nothing_counts_nothing() -> None:
    assert tallies_of(line("order.forgotten", order="x")) == ()


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (None, ""),
        ("oom", "oom"),
        ("exit:3", "exit"),
        ("signal:9", "signal"),
        ("rfc9421-mismatch", "rfc9421-mismatch"),
        ("a peer refuses the hand-off", OTHER),
        ("exit:99999", OTHER),
        ("", OTHER),
        ("x" * 41, OTHER),
        (3, OTHER),
    ],
)
def test_a_reason_is_one_word_without_its_number(text: Plain, label: str) -> None:
    assert reason(text) == label


@given(st.text())
def test_a_label_is_a_short_word_whatever_the_text(text: str) -> None:
    for label in (reason(text), word(text)):
        assert len(label) <= 40
        assert label.isascii()
        assert not set(label) & set('\n"\\{} ')


@given(st.floats(min_value=0, max_value=1e9))
def test_a_duration_falls_into_the_lowest_bucket_that_holds_it(seconds: float) -> None:
    bucket, total = observed("x", seconds, "label")

    bounds = [0.0, *BUCKETS_S]
    if bucket.labels[-1] == measures.INFINITE:
        assert seconds > BUCKETS_S[-1]
    else:
        low, high = next(pair for pair in pairwise(bounds) if str(pair[1]) == bucket.labels[-1])
        assert low <= seconds <= high
    assert (total.labels[-1], total.value) == ("sum", seconds)


def test_equal_ones_are_added_up() -> None:
    assert added_up([Tally("a"), Tally("b", ("x",)), Tally("a", (), 2.0)]) == [
        Tally("a", (), 3.0),
        Tally("b", ("x",)),
    ]
