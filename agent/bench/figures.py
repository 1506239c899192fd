"""From samples to figures: medians, 95th percentiles, and ratios to a baseline with their spread. Pure.

A part of the bench gives `Measured`; a ratio compares two samples of the same round, which were taken one after the other.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

VERSION = 2  # of the document


class Row(Struct, frozen=True, kw_only=True):
    """One thing that was measured, once a round. `unit`: "ms", "s", "MiB", "/s" …

    `baseline`: the name of the row of the same part that it is compared with, sample i of the same round as its own sample i.
    """

    part: str
    name: str
    unit: str
    samples: tuple[float, ...]
    baseline: str | None = None


class Measured(Struct, frozen=True, kw_only=True):
    """What a part found. `figures`: by the keys of `TARGETS`, and further ones of the part's own; `notes`: for the reader."""

    rows: tuple[Row, ...]
    figures: dict[str, float]
    notes: tuple[str, ...] = ()


class Bench(Struct):
    """What a part is given. `rounds`: how often each thing is measured, before what the part's budget of seconds allows.

    `is_short`: everything once and small, to see that it works. `folder`: the part's own scratch on disk; `memory`: the same in
    memory (tmpfs), with a short path; `say`: a line for people while it goes on.
    """

    rounds: int
    is_short: bool
    folder: Path
    memory: Path
    say: Callable[[str], None]


class Target(Struct, frozen=True):
    """What a figure is to be: at most, or at least, so much of its unit."""

    bound: Literal["<=", ">="]
    value: float
    unit: str

    def is_met(self, figure: float) -> bool:
        """Whether it is."""
        return figure <= self.value if self.bound == "<=" else figure >= self.value


TARGETS: Mapping[str, Target] = {
    "task_runc_over_bare_ms": Target("<=", 60, "ms"),
    "task_over_podman_run_ratio": Target("<=", 0.6, "x"),
    "task_podman_over_bare_ms": Target("<=", 100, "ms"),
    "hop_ms": Target("<=", 150, "ms"),
    "chain3_ms": Target("<=", 1000, "ms"),
    "intake_ratio": Target(">=", 0.15, "x"),
    "intake_p99_ms": Target("<=", 100, "ms"),
    "stream_ratio": Target(">=", 0.7, "x"),
    "stream_growth_mib": Target("<=", 64, "MiB"),
    "claim_ratio_1m": Target("<=", 1.5, "x"),
    "ready_100k_s": Target("<=", 3, "s"),
    "idle_mib": Target("<=", 200, "MiB"),
    "idle_cpu_percent": Target("<=", 0.5, "%"),
    "parallel_ratio": Target(">=", 0.8, "x"),
}


class Figure(Struct, frozen=True, kw_only=True):
    """A row as it is told. The ratios are to the baseline's samples of the same rounds: their median, and the quartiles around
    it; None where there is nothing to compare."""

    part: str
    name: str
    unit: str
    median: float
    p95: float
    baseline: str | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    samples: tuple[float, ...]


# ------------------------------------------------------------------ measuring in rounds


def order_of(round_number: int, names: Sequence[str]) -> list[str]:
    """The names in the order of this round: each round begins with another one, so that none is always first."""
    at = round_number % len(names)
    return [*names[at:], *names[:at]]


def interleaved(
    rounds: int, sides: Mapping[str, Callable[[], float]], before: Callable[[], object] = lambda: None
) -> dict[str, tuple[float, ...]]:
    """Every side measured once a round, one after the other: the samples by name, sample i of round i.

    `before`: what is done before each sample.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in order_of(number, list(sides)):
            before()
            found[name].append(sides[name]())
    return {name: tuple(samples) for name, samples in found.items()}


# ------------------------------------------------------------------ from samples to figures


def figures_of(rows: Sequence[Row]) -> list[Figure]:
    """Each row as it is told. Raises: KeyError for a baseline that is no row of its part."""
    known = {(row.part, row.name): row for row in rows}
    return [_figure(row, None if row.baseline is None else known[row.part, row.baseline]) for row in rows]


def _figure(row: Row, base: Row | None) -> Figure:
    pairs = () if base is None else zip(row.samples, base.samples, strict=True)
    ratios = [mine / theirs for mine, theirs in pairs if theirs]
    low, middle, high = quartiles(ratios) if ratios else (None, None, None)
    return Figure(
        part=row.part,
        name=row.name,
        unit=row.unit,
        median=median(row.samples),
        p95=p95(row.samples),
        baseline=row.baseline,
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
        samples=row.samples,
    )


def median(samples: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(samples)


def beyond(samples: Sequence[float], base: Sequence[float]) -> float:
    """The median of what each sample is over that of the same round."""
    return statistics.median(mine - theirs for mine, theirs in zip(samples, base, strict=True))


def over(samples: Sequence[float], base: Sequence[float]) -> float:
    """The median of what each sample is as a multiple of that of the same round."""
    return statistics.median(mine / theirs for mine, theirs in zip(samples, base, strict=True))


def p95(samples: Sequence[float]) -> float:
    """The 95th percentile by nearest rank: with fewer than 20 samples the largest one."""
    return percentile(samples, 95)


def percentile(samples: Sequence[float], percent: float) -> float:
    """By nearest rank."""
    return sorted(samples)[max(0, math.ceil(percent / 100 * len(samples)) - 1)]


def quartiles(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high


# ------------------------------------------------------------------ telling them


def table(found: Sequence[Figure]) -> list[str]:
    """The figures as lines, below a line that names the columns."""
    wide = max((len(one.name) for one in found), default=0) + 2
    lines = [
        f"{'part':10}{'measured':{wide}}{'median':>10}{'p95':>10} {'unit':6}{'ratio (quartiles) to baseline'}"
    ]
    for one in found:
        ratio = ""
        if one.ratio is not None:
            ratio = f"{one.ratio:.3f} ({one.ratio_low:.3f}-{one.ratio_high:.3f}) to {one.baseline}"
        numbers = f"{_told(one.median):>10}{_told(one.p95):>10}"
        lines.append(f"{one.part:10}{one.name:{wide}}{numbers} {one.unit:6}{ratio}".rstrip())
    return lines


def verdicts(figures: Mapping[str, float]) -> list[str]:
    """A line for each figure: those with a target first, with whether it is met."""
    lines = []
    for key, target in TARGETS.items():
        if key in figures:
            verdict = "met" if target.is_met(figures[key]) else "NOT MET"
            told = f"{key:30}{_told(figures[key]):>10} {target.unit:5}"
            lines.append(f"{told}{target.bound} {target.value:<8g}{verdict}")
    return [*lines, *(f"{key:30}{_told(value):>10}" for key, value in figures.items() if key not in TARGETS)]


def _told(value: float) -> str:
    """Four digits that count, and no more than three behind the point."""
    return f"{value:.{max(0, min(3, 3 - int(math.log10(abs(value)))))}f}" if value else "0"


def document(
    measured: Mapping[str, Measured], *, rounds: int, is_short: bool, machine: Mapping[str, Any]
) -> dict[str, Any]:
    """What stands in build/bench.json. `machine`: on what, and with which versions and commit."""
    rows = [row for part in measured.values() for row in part.rows]
    return {
        "version": VERSION,
        "rounds": rounds,
        "short": is_short,
        **machine,
        "figures": {key: value for part in measured.values() for key, value in part.figures.items()},
        "rows": figures_of(rows),
        "notes": {name: part.notes for name, part in measured.items() if part.notes},
    }
