"""Values as coordinates: the hops of a chain, a score against its hop, how full a disk is. Numbers in, numbers out."""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from msgspec import Struct

from agent.api.page.words import cut, span
from agent.api.views import TaskView
from agent.domain.jobs import JobState

NAME_LENGTH: Final = 13  # characters of a host's name that fit under a hop

MOST_DRAWN: Final = (
    1e12  # a score beyond it is no score that anybody compares, and an axis to it shows nothing
)
WIDTH, HEIGHT = 640, 250  # of a plot, in its own units
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 30, 48

TONES: Final = {
    JobState.RECEIVED: "wait",
    JobState.HELD: "warn",
    JobState.QUEUED: "wait",
    JobState.RUNNING: "run",
    JobState.ATTESTED: "ok",
    JobState.DONE: "ok",
    JobState.FAILED: "bad",
    JobState.CANCELLED: "off",
    JobState.EXPIRED: "off",
}
MARKS: Final = {
    "ok": "✓",
    "run": "▶",
    "wait": "○",
    "warn": "!",
    "bad": "✕",
    "off": "–",
    "idle": "·",
    "on": "→",
}


class Hop(Struct, frozen=True, kw_only=True):
    """One task of a chain as it is drawn: a station on a line. `tone` and `mark` say its state, `words` all of it."""

    position: int
    name: str
    below: str
    tone: str
    mark: str
    words: str
    is_here: bool
    is_first: bool
    is_last: bool
    is_reached: bool  # the line before it is drawn solid
    is_left: bool  # the line after it is
    has_receipt: bool
    score: str | None


class Dot(Struct, frozen=True, kw_only=True):
    """A score in a plot, at (x, y), its label above or below at `label_y`."""

    x: float
    y: float
    label_y: float
    label: str
    words: str


class Tick(Struct, frozen=True):
    """A mark on an axis."""

    at: float
    label: str


class Plot(Struct, frozen=True, kw_only=True):
    """Scores against hops. `line`: the points of the line through the dots; `learns`: where along the axis training was."""

    dots: tuple[Dot, ...]
    line: str
    learns: tuple[float, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    words: str


def hop(
    task: TaskView,
    *,
    name: str,
    is_here: bool,
    count: int,
    now: datetime,
    since: datetime | None,
    is_passed: bool,
) -> Hop:
    """The station of this task among `count`. `since`: when it last moved here; `is_passed`: it was sent on, not run here."""
    tone, state = _standing(task, is_passed)
    took = "" if task.wall_s is None else span(task.wall_s)
    if task.state is JobState.RUNNING and since is not None:
        took = span((now - since).total_seconds())
    tries = f", try {task.attempt}" if (task.attempt or 0) > 1 else ""
    at = name or "a host not known here"
    told = f"{task.position}: {task.kind} at {at}{' (here)' if is_here else ''}, {state}{tries}"
    told += f", {took}" if took else ""
    told += "" if task.score is None else f", score {task.score}"
    is_done = tone == "ok"
    return Hop(
        position=task.position,
        name=cut(name, NAME_LENGTH),
        below=f"{task.kind} · {took}" if took else str(task.kind),
        tone=tone,
        mark=MARKS[tone],
        words=told,
        is_here=is_here,
        is_first=task.position == 0,
        is_last=task.position == count - 1,
        is_reached=tone not in {"idle", "wait", "on"} or is_done,
        is_left=is_done,
        has_receipt=task.finished is not None,
        score=None if task.score is None else score_words(task.score),
    )


def _standing(task: TaskView, is_passed: bool) -> tuple[str, str]:
    if is_passed and task.finished is None:
        return "on", "sent on to that host"
    if task.state is None:
        return "idle", "nothing known here"
    return TONES[task.state], str(task.state)


def score_words(score: str) -> str:
    """A score to four places, as it was told where it is no number."""
    try:
        number = float(score)
    except ValueError:
        return cut(score, 12)
    return f"{number:.4f}" if abs(number) <= MOST_DRAWN else f"{number:.4g}"


def plot_scores(chain: Sequence[TaskView], names: Sequence[str]) -> Plot | None:
    """The scores of these tasks against their hops, `names` of the hosts beside; None while there is no score."""
    scores = [
        (task.position, float(task.score), name)
        for task, name in zip(chain, names, strict=True)
        if task.score is not None and abs(float(task.score)) <= MOST_DRAWN
    ]
    if not scores:
        return None
    first, last = chain[0].position, chain[-1].position
    low, high, step = _scale(min(score for _, score, _ in scores), max(score for _, score, _ in scores))

    def x(position: int) -> float:
        wide = WIDTH - LEFT - RIGHT
        return round(LEFT + wide * (position - first + 0.5) / (last - first + 1), 1)

    def y(score: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (score - low) / (high - low), 1)

    heights = [y(score) for _, score, _ in scores]
    dots = tuple(
        Dot(
            x=x(at),
            y=heights[place],
            label_y=_beside(heights, place),
            label=_label(score),
            words=f"hop {at} at {name or 'a host not known'}: {score:.6g}",
        )
        for place, (at, score, name) in enumerate(scores)
    )
    every = max(1, math.ceil((last - first + 1) / 16))
    places = max(0, -math.floor(math.log10(step)))
    ticks = round((high - low) / step)
    return Plot(
        dots=dots,
        line=" ".join(f"{dot.x},{dot.y}" for dot in dots),
        learns=tuple(x(task.position) for task in chain if task.kind == "learn"),
        x_ticks=tuple(Tick(x(at), str(at)) for at in range(first, last + 1, every)),
        y_ticks=tuple(Tick(y(low + n * step), f"{low + n * step:.{places}f}") for n in range(ticks + 1)),
        words="Score against hop. " + "; ".join(dot.words for dot in dots[:12]),
    )


def _beside(heights: Sequence[float], place: int) -> float:
    """Where a label stands off the line: under a dot that lies lower than those beside it, else above."""
    around = [heights[at] for at in (place - 1, place + 1) if 0 <= at < len(heights)]
    is_low = bool(around) and all(heights[place] > other for other in around)
    return heights[place] + 20 if is_low and heights[place] < HEIGHT - BOTTOM - 24 else heights[place] - 11


def _label(score: float) -> str:
    return f"{score:.4f}" if abs(score) < 100 else f"{score:.4g}"


def _scale(low: float, high: float) -> tuple[float, float, float]:
    """(lowest, highest, step) of an axis of about four steps that holds both, at round numbers."""
    room = max(high - low, abs(high) * 0.02, 1e-6)
    rough = room / 3
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough)
    bottom = math.floor((low - room * 0.1) / step) * step
    top = math.ceil((high + room * 0.1) / step) * step
    if high <= 1 < top and step <= 0.5:  # most scores are shares: 1 is the best there is
        top = 1.0
    return bottom, top, step


class Bar(Struct, frozen=True, kw_only=True):
    """A disk as a bar of 100 units: what is used, what is promised after it, and where the low mark stands."""

    used: float
    promised: float
    mark: float | None


def bar(size_bytes: int, free_bytes: int, promised_bytes: int, low_mark_bytes: int | None) -> Bar:
    """How full it is."""
    whole = max(size_bytes, 1)
    used = min(100.0, 100 * (whole - free_bytes) / whole)
    promised = min(100 - used, 100 * promised_bytes / whole)
    mark = None if low_mark_bytes is None else max(0.0, 100 * (1 - low_mark_bytes / whole))
    return Bar(
        used=round(used, 1), promised=round(promised, 1), mark=None if mark is None else round(mark, 1)
    )
