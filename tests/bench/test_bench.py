"""The bench runs, and its output has the shape that readers of build/bench.json count on. No test asserts a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.devkit.podman_service import why_not
from tests.bench.figures import Sample, figures, order_of, p95, quartiles, run_rounds, table
from tests.host.runtimes import RUNTIMES

ROOT = Path(__file__).resolve().parent.parent.parent
PAIRS = [("plain", "noop"), ("caged", "noop"), ("plain", "fit"), ("caged", "fit")]


def sample(side: str, work: str, number: int) -> Sample:
    """In round n (from 0) a plain fit takes n + 1 s, a caged one twice that, and a no-op a tenth."""
    seconds = float(number + 1) * (2 if side == "caged" else 1) * (0.1 if work == "noop" else 1)
    train_s = seconds / 2 if work == "fit" else 0.0
    return Sample(side=side, work=work, round=number, total_s=seconds, train_s=train_s, train_cpu_s=train_s)


def test_every_round_runs_every_pair_once_and_begins_with_another() -> None:
    orders = [order_of(number, PAIRS) for number in range(len(PAIRS))]

    assert all(sorted(order) == sorted(PAIRS) for order in orders)
    assert [order[0] for order in orders] == PAIRS


def test_a_ratio_compares_runs_of_one_round() -> None:
    # The rounds themselves grow slower and slower; within each the caged side takes exactly twice as long.
    found = figures(run_rounds(7, PAIRS, sample), "plain")

    ratios = {(one.side, one.work, one.measure): (one.ratio_low, one.ratio, one.ratio_high) for one in found}
    assert ratios[("caged", "fit", "total_s")] == (2.0, 2.0, 2.0)
    assert ratios[("plain", "fit", "train_s")] == (1.0, 1.0, 1.0)


def test_a_work_that_trains_nothing_has_a_total_only() -> None:
    found = figures(run_rounds(2, PAIRS, sample), "plain")

    assert {one.measure for one in found if one.work == "noop"} == {"total_s"}
    assert {one.measure for one in found if one.work == "fit"} == {"total_s", "train_s", "train_cpu_s"}


def test_the_figures_are_median_and_95th_percentile_of_the_samples() -> None:
    (one,) = figures([sample("plain", "noop", number) for number in range(5)], "plain")

    assert [one.median, one.p95] == pytest.approx([0.3, 0.5])
    assert p95([float(number) for number in range(1, 101)]) == 95.0
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([1.5]) == (1.5, 1.5, 1.5)


def test_the_table_has_a_line_for_each_figure() -> None:
    found = figures(run_rounds(3, PAIRS, sample), "plain")

    assert len(table(found)) == len(found) + 1


@pytest.mark.host
def test_one_run_of_the_bench_tells_every_side_in_the_documented_shape() -> None:
    if lacking := why_not():
        pytest.skip(f"real containers need {lacking}")

    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--short"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["version"], told["rounds"], told["baseline"]) == (1, 1, "podman run")
    assert set(told["machine"]) == {"cpus", "kernel", "processor", "python", "oci_runtime", "load"}
    sides = {"bare process", "podman run", *(f"cage ({name})" for name in RUNTIMES)}
    assert {(one["side"], one["work"], one["measure"]) for one in told["figures"]} == {
        (side, work, "total_s") for side in sides for work in ("noop", "fit")
    }
    for one in told["figures"]:
        assert set(one) == {
            "side",
            "work",
            "measure",
            "median",
            "p95",
            "ratio",
            "ratio_low",
            "ratio_high",
            "samples",
        }
        assert len(one["samples"]) == 1
    assert "podman run" in done.stderr
