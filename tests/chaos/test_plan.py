"""What a run does is a pure function of its seed."""

import subprocess
import sys

from agent.faults import COMMIT
from tests.chaos.plan import Kind, make_plan
from tests.chaos.points import PORTS, points
from tests.host.podman import ROOT


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    one, again, other = (make_plan(seed, 600.0, points()) for seed in (7, 7, 8))

    assert one == again
    assert one.acts != other.acts
    assert one.wishes != other.wishes
    assert one.points != other.points


def test_it_does_not_change_with_the_process_that_makes_it() -> None:
    program = (
        "from tests.chaos.plan import make_plan; from tests.chaos.points import points;"
        "print(make_plan(7, 60.0, points()))"
    )

    told = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT,
                       env={"PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    ]  # fmt: skip

    assert told[0] == told[1] == f"{make_plan(7, 60.0, points())}\n"


def test_a_long_plan_does_everything_there_is_to_do() -> None:
    plan = make_plan(1, 1800.0, points())

    assert {act.kind for act in plan.acts} == set(Kind)
    assert {act.values["act"] for act in plan.acts if act.kind is Kind.MANGLE} >= {"repeat", "hold", "half"}
    assert any(wish.predict for wish in plan.wishes)
    assert {len(wish.train) for wish in plan.wishes} == {0, 2, 3}
    assert all(0 <= act.at_s < 1800 for act in plan.acts)


def test_each_point_is_to_be_killed_at_once() -> None:
    plan = make_plan(1, 60.0, points())

    assert sorted(point for point, act in plan.points if act == "kill") == sorted(points())


def test_there_is_a_point_before_and_after_each_method_of_each_port_and_one_at_the_commit() -> None:
    named = points()

    assert COMMIT in named
    assert {"ledger.admit.after", "runtime.run.before", "runtime.run.wait.after"} < set(named)
    for name in PORTS:
        assert any(point.startswith(f"{name}.") for point in named)
