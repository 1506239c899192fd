"""`make simulate`: see `python -m tests.simulate --help`."""

import argparse
import sys
import time

from tests.simulate.guards import GUARDS, without
from tests.simulate.plan import draw, without_faults
from tests.simulate.world import play


def main() -> int:
    """Play one plan; 1 when something was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--peace", action="store_true", help="nothing is done to them")
    parser.add_argument("--without", choices=sorted(GUARDS), action="append", default=[], help="a guard that is off")
    args = parser.parse_args()
    plan = draw(args.seed, args.agents, args.tasks)
    if args.peace:
        plan = without_faults(plan)
    began_s = time.monotonic()
    with without(*args.without):
        played = play(plan)
    wall_s = time.monotonic() - began_s
    for name, times in sorted(played.counts.items()):
        print(f"  {times:>8}  {name}")
    for violation in played.violations[:50]:
        print(f"  {violation}")
    print(f"  trace {played.trace}, {played.virtual_s / 3600:.1f} h of virtual time in {wall_s:.1f} s")
    print(
        f"simulate: {plan.hosts} agents, {plan.tasks} tasks, {len(plan.faults)} faults, seed {plan.seed}: "
        f"{len(played.violations)} violations"
    )
    return 1 if played.violations else 0


if __name__ == "__main__":
    sys.exit(main())
