"""`make simulate`: see `python -m tests.simulate --help`."""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence, Set
from itertools import count

from tests.simulate.districts import parts, play_all, split
from tests.simulate.guards import GUARDS, without
from tests.simulate.plan import Blow, Plan, paste
from tests.simulate.shrink import shrink
from tests.simulate.world import Played, play


def main() -> int:
    """Play one plan; 1 when something was violated, after it was made smaller and printed as a test case."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", choices=[str(blow) for blow in Blow], action="append", help="a blow that is drawn"
    )
    parser.add_argument("--peace", action="store_true", help="nothing is done to them")
    parser.add_argument(
        "--without", choices=sorted(GUARDS), action="append", default=[], help="a guard that is off"
    )
    parser.add_argument("--no-shrink", action="store_true", help="a plan that fails is not made smaller")
    args = parser.parse_args()
    began_s = time.monotonic()
    blows = frozenset(map(Blow, args.only or Blow))
    plans = split(args.seed, args.agents, args.tasks, blows=blows, is_peace=args.peace)
    again = [
        f"make simulate AGENTS={agents} TASKS={tasks} SEED={seed}"
        for seed, agents, tasks in parts(args.seed, args.agents, args.tasks)
    ]
    tasks = sum(plan.tasks for plan in plans)
    played = play_all(plans, args.without, _tell(began_s, again), _look(began_s, tasks))
    wall_s, cpu_s = time.monotonic() - began_s, sum(os.times()[:4])
    for name, times in sorted(played.counts.items()):
        print(f"  {times:>8}  {name}")
    for violation in played.violations[:50]:
        print(f"  {violation}")
    for number in played.failed:
        print(f"  alone: {again[number]}")
    if played.failed and not args.no_shrink:
        with without(*args.without):
            _print_smaller(plans[played.failed[0]], {violation.rule for violation in played.violations})
    print(
        f"  trace {played.trace}, {played.virtual_s / 3600:.1f} h of virtual time in {wall_s:.1f} s, "
        f"{cpu_s:.1f} s of CPU ({1000 * cpu_s / max(1, tasks):.2f} ms a task), "
        f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10} MiB in the largest process"
    )
    apart = f" in {len(plans)} consortia" if len(plans) > 1 else ""
    print(
        f"simulate: {args.agents} agents{apart}, {tasks} tasks, "
        f"{sum(len(plan.faults) for plan in plans)} faults, seed {args.seed}: {len(played.violations)} violations"
    )
    return 1 if played.violations else 0


def _tell(began_s: float, again: Sequence[str]) -> Callable[[int, Played], None]:
    """Progress on the error stream, after each consortium."""
    over = count(1)

    def tell(number: int, played: Played) -> None:
        told = f"{len(played.violations)} violations, {time.monotonic() - began_s:.0f} s"
        print(f"  {next(over)} of {len(again)}: {again[number]}: {told}", file=sys.stderr, flush=True)

    return tell


def _look(began_s: float, tasks: int) -> Callable[[int], None]:
    """Progress on the error stream, between two of those lines."""

    def look(over: int) -> None:
        wall_s = time.monotonic() - began_s
        print(f"  {over} of {tasks} tasks over, {wall_s:.0f} s", file=sys.stderr, flush=True)

    return look


def _print_smaller(plan: Plan, rules: Set[str]) -> None:
    def fails(candidate: Plan) -> bool:
        return any(violation.rule in rules for violation in play(candidate).violations)

    smaller = shrink(plan, fails)
    print("# for tests/simulate/test_seeds.py:")
    print(paste(smaller, f"SEED_{plan.seed}"))
    for violation in play(smaller).violations:
        print(f"# {str(violation).splitlines()[0]}")


if __name__ == "__main__":
    sys.exit(main())
