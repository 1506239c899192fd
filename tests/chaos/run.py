"""One run, whole: settle in, break and order, heal, come to rest, check."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.chaos.desk import Desk
from tests.chaos.hosts import find_hosts
from tests.chaos.nemesis import Journal, Nemesis, raging
from tests.chaos.outside import attempts_spent, crashes, left, look, secrets_left
from tests.chaos.plan import HOSPITALS, make_plan
from tests.chaos.points import points
from tests.chaos.stage import Stage, find_engines, open_stage
from tests.chaos.town import Town, guest_images
from tests.checker import Violation, check

TAKEN_S = 60.0  # for orders under way to be taken, once all is healed
LOOK_EVERY_S = 3.0
MOST_RESTS = 4  # of the time without news that is given, in all
LOST_ATTEMPTS = frozenset(
    {"attempts-spent", "worker-lost", "unavailable", "no-space", "blob-missing", "cage-not-made"}
)


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    seed: int
    violations: tuple[Violation, ...]
    done: Counter[str]
    ends: Counter[str]
    points: int
    points_hit: frozenset[str]
    points_fired: Counter[str]
    duration_s: float

    @property
    def line(self) -> str:
        """The closing line."""
        done = self.done
        kills = sum(count for act, count in done.items() if act.startswith("kill"))
        mangled = sum(count for act, count in done.items() if act.startswith("mangle"))
        faults = sum(count for act, count in done.items() if act.startswith("fault"))
        at_points = done["fault kill"]
        return (
            f"{len(self.violations)} violations: seed {self.seed}, {self.duration_s:.0f} s, {done['order']} orders "
            f"({self.ends['done']} done, {self.ends['failed']} failed), {kills + at_points} kills ({at_points} at points), "
            f"{done['stall']} stalls, {done['term']} restarts, {done['cut']} cuts, {mangled} mangled links, "
            f"{faults - at_points} other faults, {done['clock']} clocks moved, {done['fill']} disks filled"
        )

    @property
    def points_line(self) -> str:
        """What became of the fault points."""
        killed = {name.removesuffix(" kill") for name in self.points_fired if name.endswith(" kill")}
        never = self.points - len(self.points_hit)
        return f"{self.points} fault points: {len(self.points_hit)} reached, {len(killed)} killed at, {never} never reached"


def run(
    *,
    seed: int,
    duration_s: float,
    settle_s: float,
    runtime: str,
    folder: Path,
    memory: Path,
    is_strict: bool,
    without: str | None = None,
    say: Callable[[str], None],
) -> Outcome:
    """The run of this seed; `without`: a guard of `maimed.py` that the agents lack.

    Raises: NotStarted when somebody cannot be started at all.
    """
    since_s = time.time() - 1
    hosts = find_hosts(HOSPITALS)
    if hosts.are_apart:
        say("each hospital in a network namespace of its own")
    else:
        say("no network namespaces (root makes them): hosts are loopback addresses, the proxies cut")
    engines, images = find_engines(runtime), guest_images()
    plan = make_plan(seed, duration_s, points())
    journal = Journal(folder / "journal.jsonl")
    digests = [digest for _, digest in images.values()]
    with open_stage(hosts, folder, memory, digests, engines, without) as stage:
        stage.start_all()
        town = Town(stage.consortium, seed, images)
        town.settle_in()
        say(
            f"{len(stage.services)} processes, {len(town.refs)} datasets; seed {seed}, {len(plan.acts)} acts planned"
        )
        desk, nemesis = Desk(stage, town, journal.note), Nemesis(stage, plan, journal)
        desk.begin(plan.wishes)
        with raging(nemesis):
            nemesis.rage()
        say("healed; waiting for rest")
        desk.finish(TAKEN_S)
        violations = _rest(stage, desk, nemesis, settle_s, frozenset() if is_strict else LOST_ATTEMPTS)
        if violations:
            stage.dump()
        ends = _ends(stage, desk)
        hit, fired = nemesis.points_hit(), nemesis.fired
        say("everybody ends")
    lying = [Violation("clean", "", what) for what in secrets_left(stage, town.canary, since_s)]
    spent = attempts_spent(stage, nemesis.excused) if is_strict else ()
    fell = [Violation("no-crash", "", what) for what in crashes(stage)]
    return Outcome(
        seed,
        (*violations, *lying, *spent, *fell),
        journal.counts,
        ends,
        len(points()),
        frozenset(hit),
        fired,
        duration_s,
    )


def _rest(
    stage: Stage, desk: Desk, nemesis: Nemesis, settle_s: float, may_fail: frozenset[str]
) -> tuple[Violation, ...]:
    """What the checker finds once it finds nothing, or nothing was told for so long: a slow machine has much to do."""
    told, deadline, last = -1, 0.0, time.monotonic() + MOST_RESTS * settle_s
    while True:
        nemesis.keep_alive()
        seen = replace(look(stage, desk, may_fail, nemesis.excused), left=list(left(stage)))
        violations = check(seen, stage.consortium.roster)
        if len(seen.reports) + len(seen.results) > told:
            told, deadline = len(seen.reports) + len(seen.results), time.monotonic() + settle_s
        if not violations or time.monotonic() > min(deadline, last):
            return violations
        time.sleep(LOOK_EVERY_S)


def _ends(stage: Stage, desk: Desk) -> Counter[str]:
    """How orders stand in their orchestrators' books."""
    states: Counter[str] = Counter()
    for order_id, sending in desk.sent.items():
        issued = stage.consortium.book(sending.wish.orchestrator).order(order_id)
        states[str(issued.state) if issued else "unknown"] += 1
    return states
