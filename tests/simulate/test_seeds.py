"""Plans that failed once, made small: what `python -m tests.simulate` prints is pasted here, and holds from then on.

Those below failed with a guard taken out. Whether one fails again without it is a matter of moments, which move with every call
that the agent makes: that the short form finds each guard's absence is held by tests/simulate/test_simulate.py.
"""

import pytest

from tests.simulate.plan import Blow, Fault, OrderPlan, Plan
from tests.simulate.world import play

# Drawn from seed 1 of 4 agents and 40 tasks with stalls only. In peace even: what the living have is taken from them.
FENCING = Plan(
    seed=1,
    hosts=4,
    orders=(
        OrderPlan(number=1, at_s=574.6, to=1, predict=(6, 0, 8, 10, 11)),
        OrderPlan(number=3, at_s=598.5, to=1, train=(3, 10, 5, 9, 7), test=(4,), max_attempts=3),
    ),
    faults=(),
)

# Drawn from seed 1: a bell that could not be rung.
SWEEP = Plan(
    seed=1,
    hosts=4,
    orders=(OrderPlan(number=3, at_s=598.5, to=1, train=(3, 10, 5, 9, 7), test=(4,), max_attempts=3),),
    faults=(Fault(blow=Blow.BELLS_REFUSED, host=2, at_s=531.4, for_s=155.6),),
)

# Drawn from seed 2 with stalls only: it wakes up and writes what it knew.
COMPARE_AND_SET = Plan(
    seed=2,
    hosts=4,
    orders=(OrderPlan(number=5, at_s=540.4, to=2, predict=(2,)),),
    faults=(Fault(blow=Blow.WORKER_STALLED, host=2, at_s=416.8, for_s=451.7, nth=5),),
)

# Drawn from seed 10: the order comes late to a host whose storage is away, ends there, and nobody hears of it.
OUTBOX = Plan(
    seed=10,
    hosts=4,
    orders=(OrderPlan(number=9, at_s=343.4, to=1, train=(11, 7, 0), test=(10,), expires_s=263),),
    faults=(Fault(blow=Blow.STORAGE_DOWN, host=3, at_s=292.2, for_s=233.9),),
)

# Drawn from seed 1 of 3 agents and 16 tasks with lost answers and doubled messages.
HANDOFF_DEDUP = Plan(
    seed=1,
    hosts=3,
    orders=(
        OrderPlan(number=3, at_s=147.9, to=1, train=(1,)),
        OrderPlan(number=0, at_s=382.8, to=0, predict=(1, 7, 3)),
        OrderPlan(number=1, at_s=493.7, to=0, predict=(7, 1)),
    ),
    faults=(
        Fault(blow=Blow.MESSAGES_DOUBLED, host=1, at_s=374.6, for_s=90.3),
        Fault(blow=Blow.MESSAGES_DOUBLED, host=1, at_s=467.6, for_s=141.0),
    ),
)

RECORDED = {
    "fencing": FENCING,
    "sweep": SWEEP,
    "compare-and-set": COMPARE_AND_SET,
    "outbox": OUTBOX,
    "handoff-dedup": HANDOFF_DEDUP,
}


@pytest.mark.parametrize("guard", sorted(RECORDED))
def test_a_plan_that_failed_once_holds(guard: str) -> None:
    assert play(RECORDED[guard]).violations == ()
