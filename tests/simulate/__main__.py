"""`make simulate`: see `python -m tests.simulate --help`."""

import argparse
import sys
import time
from collections.abc import Callable

from tests.simulate.guards import GUARDS, without
from tests.simulate.plan import Blow, Plan, draw, paste, without_faults
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
    blows = frozenset(map(Blow, args.only or Blow))
    plan = draw(args.seed, args.agents, args.tasks, blows=blows)
    if args.peace:
        plan = without_faults(plan)
    with without(*args.without):
        began_s = time.monotonic()
        played = play(plan, _tell(began_s))
        wall_s = time.monotonic() - began_s
        if played.violations and not args.no_shrink:
            _print_smaller(plan, played)
    for name, times in sorted(played.counts.items()):
        print(f"  {times:>8}  {name}")
    for violation in played.violations[:50]:
        print(f"  {violation}")
    print(
        f"  trace {played.trace}, {played.virtual_s / 3600:.1f} h of virtual time in {wall_s:.1f} s, "
        f"{time.process_time():.1f} s of CPU"
    )
    print(
        f"simulate: {plan.hosts} agents, {plan.tasks} tasks, {len(plan.faults)} faults, seed {plan.seed}: "
        f"{len(played.violations)} violations"
    )
    return 1 if played.violations else 0


def _tell(began_s: float) -> Callable[[float], None]:
    """Progress on a terminal's error stream, every tenth."""
    told = [0]

    def tell(part: float) -> None:
        if int(part * 10) > told[0]:
            told[0] = int(part * 10)
            wall_s, cpu_s = time.monotonic() - began_s, time.process_time()
            print(f"  {told[0] * 10} %, {wall_s:.0f} s, {cpu_s:.0f} s of CPU", file=sys.stderr, flush=True)

    return tell


def _print_smaller(plan: Plan, played: Played) -> None:
    rules = {violation.rule for violation in played.violations}

    def fails(candidate: Plan) -> bool:
        return any(violation.rule in rules for violation in play(candidate).violations)

    smaller = shrink(plan, fails)
    print("# for tests/simulate/test_seeds.py:")
    print(paste(smaller, f"SEED_{plan.seed}"))
    for violation in play(smaller).violations:
        print(f"# {str(violation).splitlines()[0]}")


if __name__ == "__main__":
    sys.exit(main())
