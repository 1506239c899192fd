"""Many agents are many consortia: districts of at most a hundred, each with a clock and a plan of its own.

A hospital's orders stay within its consortium, so nothing is lost by it. The district `number` of the seed 7 is the plan of the
seed 7000 + number: one that fails is played again alone.
"""

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from tests.checker import Violation
from tests.simulate.guards import without
from tests.simulate.plan import Blow, Plan, draw, without_faults
from tests.simulate.world import Played, play

LARGEST = 100  # agents of a district
LOOK_EVERY_S = 10.0


@dataclass(frozen=True)
class Total:
    """What came of all of them, in the order of their plans."""

    played: tuple[Played, ...]

    @property
    def failed(self) -> tuple[int, ...]:
        """Numbers of those that found something."""
        return tuple(number for number, each in enumerate(self.played) if each.violations)

    @property
    def violations(self) -> tuple[Violation, ...]:
        return tuple(violation for each in self.played for violation in each.violations)

    @property
    def counts(self) -> Counter[str]:
        return sum((each.counts for each in self.played), Counter[str]())

    @property
    def virtual_s(self) -> float:
        return sum(each.virtual_s for each in self.played)

    @property
    def trace(self) -> str:
        """Of one district its own; of several a digest of theirs."""
        traces = [each.trace for each in self.played]
        return (
            traces[0] if len(traces) == 1 else blake2b("".join(traces).encode(), digest_size=16).hexdigest()
        )


def split(
    seed: int, agents: int, tasks: int, *, blows: frozenset[Blow] = frozenset(Blow), is_peace: bool = False
) -> tuple[Plan, ...]:
    """The plans of as few districts as there may be, all of about one size."""
    drawn = [draw(*each, blows=blows) for each in parts(seed, agents, tasks)]
    return tuple(without_faults(plan) if is_peace else plan for plan in drawn)


def parts(seed: int, agents: int, tasks: int) -> tuple[tuple[int, int, int], ...]:
    """(seed, agents, tasks) of each."""
    count = -(-agents // LARGEST)
    return tuple(
        (
            seed if count == 1 else seed * 1000 + number,
            agents // count + (number < agents % count),
            tasks // count + (number < tasks % count),
        )
        for number in range(count)
    )


def play_all(
    plans: Sequence[Plan],
    guards_off: Collection[str],
    tell: Callable[[int, Played], None],
    look: Callable[[int], None] = lambda tasks: None,
) -> Total:
    """Play each in a process of its own, as many at once as there are cores.

    `tell` hears (number, what came of it) of each; `look`, all ten seconds, how many tasks are over in all of them.
    """
    context = multiprocessing.get_context("spawn")  # a district begins with nothing that another has left
    cores = len(os.sched_getaffinity(0))
    over = context.Array("q", len(plans))
    played: dict[int, Played] = {}
    with ProcessPoolExecutor(min(cores, len(plans)), context, _share, (over,), max_tasks_per_child=1) as pool:
        asked = {
            pool.submit(_play_one, number, plan, tuple(guards_off)): number
            for number, plan in enumerate(plans)
        }
        while asked:
            answered, _ = wait(asked, LOOK_EVERY_S, FIRST_COMPLETED)
            for each in answered:
                number = asked.pop(each)
                played[number] = each.result()
                tell(number, played[number])
            if not answered:
                look(sum(over[:]))
    return Total(tuple(played[number] for number in range(len(plans))))


_shared: list[Any] = []  # in each process: how many tasks are over, by the number of the plan


def _share(over: Any) -> None:
    _shared[:] = [over]


def _play_one(number: int, plan: Plan, guards_off: tuple[str, ...]) -> Played:
    def look(tasks: int) -> None:
        _shared[0][number] = tasks

    with without(*guards_off):
        return play(plan, look)
