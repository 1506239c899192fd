"""From samples to figures: medians, 95th percentiles, and ratios with their spread. Pure."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct

MEASURES = ("total_s", "train_s", "train_cpu_s")


class Sample(Struct, frozen=True, kw_only=True):
    """One run. `total_s`: from the call to the end, by the wall clock; the others as the guest told them."""

    side: str
    work: str
    round: int
    total_s: float
    train_s: float
    train_cpu_s: float


class Figure(Struct, frozen=True, kw_only=True):
    """One measure of one side at one work, in seconds. A ratio is to the baseline's run of the same round: its median, and
    the quartiles around it; None where the baseline has nothing to compare."""

    side: str
    work: str
    measure: str
    median: float
    p95: float
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    samples: tuple[float, ...]


def order_of(round_number: int, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs (side, work) in the order of this round: each round begins with another one, so that none is always first."""
    at = round_number % len(pairs)
    return [*pairs[at:], *pairs[:at]]


def run_rounds(
    rounds: int, pairs: Sequence[tuple[str, str]], run: Callable[[str, str, int], Sample]
) -> list[Sample]:
    """Every pair once a round, one run at a time."""
    return [run(side, work, number) for number in range(rounds) for side, work in order_of(number, pairs)]


def figures(samples: Sequence[Sample], baseline: str) -> list[Figure]:
    """The figures of every side, work and measure that says something: a work that trains nothing has a total only."""
    found = []
    for side, work in dict.fromkeys((sample.side, sample.work) for sample in samples):
        for measure in MEASURES:
            mine = values(samples, side, work, measure)
            if any(mine.values()):
                found.append(figure(side, work, measure, mine, values(samples, baseline, work, measure)))
    return found


def values(samples: Sequence[Sample], side: str, work: str, measure: str) -> dict[int, float]:
    """Round -> seconds."""
    return {
        sample.round: float(getattr(sample, measure))
        for sample in samples
        if (sample.side, sample.work) == (side, work)
    }


def figure(side: str, work: str, measure: str, mine: dict[int, float], base: dict[int, float]) -> Figure:
    """One row."""
    ratios = [seconds / base[number] for number, seconds in mine.items() if base.get(number)]
    low, middle, high = quartiles(ratios) if ratios else (None, None, None)
    return Figure(
        side=side,
        work=work,
        measure=measure,
        median=statistics.median(mine.values()),
        p95=p95(list(mine.values())),
        ratio=middle,
        ratio_low=low,
        ratio_high=high,
        samples=tuple(mine[number] for number in sorted(mine)),
    )


def p95(seconds: Sequence[float]) -> float:
    """The 95th percentile by nearest rank: with fewer than 20 samples the slowest one."""
    return sorted(seconds)[math.ceil(0.95 * len(seconds)) - 1]


def quartiles(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, middle, high


def table(found: Sequence[Figure]) -> list[str]:
    """The figures as lines: one work and measure after the other, its sides below each other."""
    lines = [f"{'work':8}{'measure':14}{'side':18}{'median s':>10}{'p95 s':>10}   {'ratio (quartiles)':24}"]
    order = {measure: at for at, measure in enumerate(MEASURES)}
    for one in sorted(found, key=lambda one: (one.work, order[one.measure])):
        ratio = "" if one.ratio is None else f"{one.ratio:.3f} ({one.ratio_low:.3f}-{one.ratio_high:.3f})"
        lines.append(
            f"{one.work:8}{one.measure:14}{one.side:18}{one.median:10.3f}{one.p95:10.3f}   {ratio:24}".rstrip()
        )
    return lines


def document(
    found: Sequence[Figure], *, rounds: int, baseline: str, machine: dict[str, Any]
) -> dict[str, Any]:
    """What stands in build/bench.json."""
    return {
        "version": 1,
        "rounds": rounds,
        "baseline": baseline,
        "machine": machine,
        "figures": [{name: getattr(one, name) for name in Figure.__struct_fields__} for one in found],
    }
