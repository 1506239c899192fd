"""The bench runs, and its output has the shape that readers of build/bench.json count on. No test asserts a time."""

from pathlib import Path
from typing import cast

import pytest

from agent.bench.figures import (
    Measured,
    Row,
    Target,
    beyond,
    document,
    figures_of,
    interleaved,
    order_of,
    over,
    p95,
    percentile,
    quartiles,
    table,
    verdicts,
)
from agent.bench.quiet import settle
from agent.bench.run import PARTS, measure_of, parts_of
from tests.bench.short import QUICK, SLOW, run_short

NAMES = ["bare", "task", "podman"]


def row(name: str, *samples: float, baseline: str | None = None) -> Row:
    return Row(part="task", name=name, unit="ms", samples=samples, baseline=baseline)


def test_every_round_measures_every_side_once_and_begins_with_another() -> None:
    orders = [order_of(number, NAMES) for number in range(len(NAMES))]

    assert all(sorted(order) == sorted(NAMES) for order in orders)
    assert [order[0] for order in orders] == NAMES


def test_samples_of_one_round_stand_at_one_place() -> None:
    clock = iter(range(100))

    found = interleaved(3, {name: lambda: float(next(clock)) for name in NAMES})

    assert [sorted(found[name][number] for name in NAMES) for number in range(3)] == [
        [0.0, 1.0, 2.0],
        [3.0, 4.0, 5.0],
        [6.0, 7.0, 8.0],
    ]


@pytest.mark.parametrize(("after", "rests"), [("2 0 1 96 1 0 0 0", True), ("20 0 5 75 0 0 0 0", False)])
def test_a_sample_waits_for_idle_processors_and_not_for_long(after: str, rests: bool) -> None:
    # Each look at the file sees as much time more as the line `after` tells.
    class Stat:
        looks = 0

        def read_text(self) -> str:
            self.looks += 1
            return f"cpu {' '.join(str(int(word) * self.looks) for word in after.split())} 0 0\ncpu0 0\n"

    stat = Stat()

    assert settle(cast(Path, stat), look_s=0.001, patience_s=0.02) is rests
    assert (stat.looks == 2) is rests


def test_a_ratio_compares_runs_of_one_round() -> None:
    # The rounds themselves grow slower and slower; within each the task takes exactly twice as long.
    base, mine = row("bare", 1.0, 2.0, 7.0), row("task", 2.0, 4.0, 14.0, baseline="bare")

    told = figures_of([base, mine])[1]

    assert (told.ratio_low, told.ratio, told.ratio_high) == (2.0, 2.0, 2.0)
    assert (beyond(mine.samples, base.samples), over(mine.samples, base.samples)) == (2.0, 2.0)


def test_a_baseline_must_be_a_row_of_the_part() -> None:
    with pytest.raises(KeyError):
        figures_of([row("task", 1.0, baseline="nobody")])


def test_the_figures_are_median_and_95th_percentile_of_the_samples() -> None:
    (one,) = figures_of([row("task", 5.0, 1.0, 2.0, 4.0, 3.0)])

    assert [one.median, one.p95] == [3.0, 5.0]
    assert p95([float(number) for number in range(1, 101)]) == 95.0
    assert percentile([float(number) for number in range(1, 101)], 99) == 99.0
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([1.5]) == (1.5, 1.5, 1.5)


def test_the_table_has_a_line_for_each_row_and_one_of_names() -> None:
    found = figures_of([row("bare", 0.0, 2.0), row("task", 12345.6, 4.0, baseline="bare")])

    assert len(table(found)) == len(found) + 1


def test_a_target_is_met_at_its_bound_and_told() -> None:
    assert [Target("<=", 60, "ms").is_met(value) for value in (60, 60.1)] == [True, False]
    assert [Target(">=", 0.7, "x").is_met(value) for value in (0.7, 0.69)] == [True, False]

    told = verdicts({"hop_ms": 151.0, "chain3_ms": 900.0, "own": 1.0})

    assert [line.split()[-1] for line in told] == ["MET", "met", "1.000"]


def test_the_document_holds_every_figure_by_its_key() -> None:
    measured = {
        "task": Measured(rows=(row("bare", 1.0),), figures={"task_runc_over_bare_ms": 9.0}, notes=("quiet",)),
        "hop": Measured(rows=(), figures={"hop_ms": 99.0}),
    }

    told = document(measured, rounds=3, is_short=False, machine={"commit": "abc"})

    assert told["figures"] == {"task_runc_over_bare_ms": 9.0, "hop_ms": 99.0}
    assert (told["version"], told["rounds"], told["short"], told["commit"]) == (2, 3, False, "abc")
    assert [one.name for one in told["rows"]] == ["bare"]
    assert told["notes"] == {"task": ("quiet",)}


def test_parts_are_named_with_commas_and_run_in_their_own_order() -> None:
    assert parts_of("hop, task") == ("task", "hop")
    with pytest.raises(ValueError, match="'hopp' is no part"):
        parts_of("hopp")


def test_every_part_is_run_once_somewhere() -> None:
    assert set(PARTS) == QUICK | SLOW
    assert not QUICK & SLOW


@pytest.mark.host
@pytest.mark.parametrize("part", [part for part in PARTS if part in QUICK and measure_of(part) is not None])
def test_one_short_run_of_a_part_tells_its_rows_and_figures(part: str) -> None:
    run_short(part)
