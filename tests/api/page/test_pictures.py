"""Values as coordinates: everything lies within the picture, in the right order, whatever the numbers are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.api.page.pictures import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    bar,
    hop,
    plot_scores,
    score_words,
)
from agent.api.views import TaskView
from agent.domain.chain import TaskKind
from agent.domain.jobs import JobState
from tests.builders import NOW, dataset, key_of

TASK = TaskView(
    position=0,
    kind=TaskKind.TEST,
    dataset=dataset("a1"),
    state=JobState.DONE,
    agent=key_of("agent-a").keyid,
    attempt=1,
    score="0.5",
    reason=None,
    started=NOW,
    finished=NOW,
    wall_s=2.0,
)


def with_scores(*scores: str | None) -> list[TaskView]:
    return [replace(TASK, position=at, score=score) for at, score in enumerate(scores)]


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=40))
def test_every_score_lies_within_its_axes_and_higher_is_drawn_higher(scores: list[float]) -> None:
    plot = plot_scores(with_scores(*map(repr, scores)), ["host"] * len(scores))

    assert plot is not None
    assert all(
        LEFT <= dot.x <= WIDTH - RIGHT and TOP - 0.1 <= dot.y <= HEIGHT - BOTTOM + 0.1 for dot in plot.dots
    )
    heights = [dot.y for _, dot in sorted(zip(scores, plot.dots, strict=True), key=lambda pair: pair[0])]
    assert heights == sorted(heights, reverse=True)
    assert [dot.x for dot in plot.dots] == sorted(dot.x for dot in plot.dots)
    assert 2 <= len(plot.y_ticks) <= 9
    assert len(plot.x_ticks) <= 16


def test_ticks_are_round_numbers_around_the_scores() -> None:
    plot = plot_scores(with_scores("0.9758", "0.9906"), ["a", "b"])

    assert plot is not None
    assert [tick.label for tick in plot.y_ticks] == ["0.97", "0.98", "0.99", "1.00"]


def test_without_a_score_there_is_no_plot() -> None:
    assert plot_scores(with_scores(None, None), ["a", "b"]) is None


def test_scores_that_a_peer_signed_beyond_every_measure_break_no_page() -> None:
    far = plot_scores(with_scores("1e308", "-1e308"), ["a", "b"])
    beside = plot_scores(with_scores("1e300", "0.9"), ["a", "b"])

    assert far is None
    assert beside is not None
    assert [dot.label for dot in beside.dots] == ["0.9000"]
    assert score_words("1e300") == "1e+300"


def test_a_training_is_marked_where_it_stands() -> None:
    learn = replace(TASK, position=0, kind=TaskKind.LEARN, score=None)

    plot = plot_scores([learn, replace(TASK, position=1)], ["a", "b"])

    assert plot is not None
    assert plot.learns[0] < plot.dots[0].x


@pytest.mark.parametrize(
    ("state", "tone"),
    [
        (JobState.RUNNING, "run"),
        (JobState.FAILED, "bad"),
        (JobState.HELD, "warn"),
        (JobState.EXPIRED, "off"),
        (None, "idle"),
    ],
)
def test_a_station_has_a_mark_beside_its_colour(state: JobState | None, tone: str) -> None:
    task = replace(TASK, state=state, finished=None, wall_s=None, score=None)

    drawn = hop(task, name="a", is_here=True, count=2, now=NOW, since=NOW, is_passed=False)

    assert drawn.tone == tone
    assert drawn.mark
    assert not drawn.is_left


def test_a_score_that_is_no_number_is_shown_as_it_is() -> None:
    assert (score_words("0.98765"), score_words("-")) == ("0.9877", "-")


@given(st.integers(0, 1 << 50), st.integers(0, 1 << 50), st.integers(0, 1 << 50), st.integers(0, 1 << 50))
def test_a_disk_s_bar_never_leaves_its_frame(size: int, free: int, promised: int, mark: int) -> None:
    drawn = bar(size, min(free, size), promised, mark)

    assert 0 <= drawn.used <= 100
    assert drawn.used + drawn.promised <= 100.1
    assert drawn.mark is not None
    assert 0 <= drawn.mark <= 100
