"""The simulation: nothing is lost and nothing done twice whatever happens, the same seed does the same, and it finds what is
broken when a guard is taken out.
"""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.simulate.districts import parts, play_all
from tests.simulate.guards import GUARDS, without
from tests.simulate.plan import Blow, Plan, draw, paste, without_faults
from tests.simulate.shrink import fewest, shrink
from tests.simulate.world import Played, play

ROOT = Path(__file__).resolve().parent.parent.parent
STALLS = frozenset({Blow.WORKER_STALLED})


def short(seed: int) -> Plan:
    """The short form: what `make test` plays."""
    return draw(seed, hosts=6, tasks=150)


def stalls(seed: int) -> Plan:
    """The short form of workers that wake up when others have gone on."""
    return draw(seed, hosts=6, tasks=150, blows=STALLS)


@cache
def played(plan: Plan) -> Played:
    return play(plan)


# ------------------------------------------------------------------ nothing lost, nothing twice


@pytest.mark.parametrize("seed", range(1, 5))
def test_whatever_is_done_to_them_every_order_ends_once(seed: int) -> None:
    assert played(short(seed)).violations == ()


@pytest.mark.parametrize("seed", range(1, 4))
def test_workers_that_wake_when_others_went_on_do_no_harm(seed: int) -> None:
    assert played(stalls(seed)).violations == ()


def test_in_peace_every_order_that_can_succeed_does_and_each_task_runs_once() -> None:
    plan = without_faults(short(1))
    over: list[int] = []

    found = play(plan, over.append)

    assert found.violations == ()
    assert over == sorted(over)
    assert over[-1] == plan.tasks
    assert found.counts["accepted"] == len(plan.orders)


@pytest.mark.parametrize("blow", Blow)
def test_one_kind_of_blow_alone_does_no_harm(blow: Blow) -> None:
    plan = draw(1, hosts=4, tasks=40, blows=frozenset({blow}))

    assert play(plan).violations == ()


# ------------------------------------------------------------------ the same again


def test_the_same_seed_does_the_same() -> None:
    assert play(short(3)).trace == played(short(3)).trace
    assert played(short(1)).trace != played(short(3)).trace


def test_it_does_the_same_in_another_process_with_other_hashes() -> None:
    command = [sys.executable, "-m", "tests.simulate", "--agents", "6", "--tasks", "150", "--seed", "3"]

    told = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert re.findall(r"trace (\w+),", told.stdout) == [played(short(3)).trace]
    assert told.stdout.splitlines()[-1].endswith("0 violations")


# ------------------------------------------------------------------ each guard, taken out

# Which short form finds it, and by which rules. A few seeds may be needed: moments move with every call that the agent makes.
FOUND_BY = {
    "fencing": (stalls, {"once-trained", "not-excused", "fenced", "one-receipt"}),
    "sweep": (short, {"ended"}),
    "compare-and-set": (stalls, {"one-receipt"}),
    "outbox": (short, {"ended", "reported"}),
    "handoff-dedup": (short, {"one-receipt"}),
}
SEEDS = range(1, 25)


@pytest.mark.parametrize("guard", sorted(GUARDS))
def test_a_guard_that_is_off_is_found(guard: str) -> None:
    form, by = FOUND_BY[guard]

    def is_found(seed: int) -> bool:
        with without(guard):
            return bool({violation.rule for violation in play(form(seed)).violations} & by)

    seed = next(filter(is_found, SEEDS), None)

    assert seed is not None
    assert played(form(seed)).violations == ()


# ------------------------------------------------------------------ smaller


def test_a_failing_plan_is_made_smaller_and_can_be_pasted() -> None:
    plan = draw(1, hosts=4, tasks=40)

    def fails(candidate: Plan) -> bool:
        return any(violation.rule == "ended" for violation in play(candidate).violations)

    with without("sweep"):
        smaller = shrink(plan, fails, most_runs=60)
        assert fails(smaller)

    assert len(smaller.orders) + len(smaller.faults) < (len(plan.orders) + len(plan.faults)) / 3
    assert _read_back(paste(smaller, "FOUND")) == smaller


def test_of_many_the_few_that_matter_are_left() -> None:
    assert fewest(range(100), lambda some: {3, 71} <= set(some)) == [3, 71]
    assert fewest(range(5), lambda some: True) == []


def _read_back(text: str) -> Plan:
    names: dict[str, object] = {}
    exec("from tests.simulate.plan import *\n" + text, names)  # noqa: S102 - what was printed just now
    found = names["FOUND"]
    assert isinstance(found, Plan)
    return found


# ------------------------------------------------------------------ districts


def test_many_agents_are_parted_evenly_and_each_part_can_be_played_alone() -> None:
    found = parts(7, agents=250, tasks=1001)

    assert found == ((7000, 84, 334), (7001, 83, 334), (7002, 83, 333))
    assert parts(7, agents=100, tasks=1001) == ((7, 100, 1001),)


def test_of_several_consortia_the_one_that_fails_is_known_and_the_traces_are_those_they_have_alone() -> None:
    plans = (short(1), stalls(1))

    total = play_all(plans, ["sweep"], lambda number, told: None)

    assert total.failed == (0,)
    with without("sweep"):
        assert total.played[1].trace == play(stalls(1)).trace
    assert total.counts["orders"] == sum(len(plan.orders) for plan in plans)
