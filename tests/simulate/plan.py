"""What a simulated consortium is given to do and what is done to it: drawn from a seed, all of it before anything runs.

A plan is plain values, so its `repr` is a test case. Leaving an order or a fault out of it changes nothing else in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final


class Guest(StrEnum):
    """What an order's algorithm does."""

    GOOD = "good"
    FAILS = "fails"  # it ends with an exit code, every time


class Blow(StrEnum):
    """What can be done to a host. `for_s` of a fault bounds how long it lasts, `nth` counts calls of ports."""

    WORKER_KILLED = "worker killed"  # -9, at the nth port call from then on, before or behind its effect
    API_KILLED = "api killed"
    WORKER_STALLED = "worker stalled"  # as SIGSTOP, at the nth call with a task in hand, until another took over, or `for_s`
    BELLS_LOST = "bells lost"
    BELLS_DOUBLED = "bells doubled"
    BELLS_REFUSED = "bells refused"  # the file of the queues cannot be written
    REQUESTS_LOST = "requests lost"
    ANSWERS_LOST = "answers lost"  # recorded, and then a 500 or nothing
    ANSWERS_GARBLED = "answers garbled"
    MESSAGES_DOUBLED = "messages doubled"  # the second one comes up to minutes later
    MESSAGES_DELAYED = "messages delayed"  # up to minutes, beyond the asker's patience and past each other
    LINK_CUT = "link cut"  # nothing passes from the host to `other`
    LINK_CUT_BOTH = "link cut both ways"
    CLOCK_JUMPED = "clock jumped"  # by `by_s`
    STORAGE_DOWN = "storage down"
    ORCHESTRATORS_DOWN = "orchestrators down"
    DISK_FULL = "disk full"
    CONTAINER_KILLED = "container killed"  # its process: a death by signal 9, which is told as the job's
    CONTAINER_LOST = "container lost"  # whoever watched it: it ended, and nobody knows how
    ENGINE_DOWN = "engine down"
    HOST_REBOOTED = "host rebooted"  # memory is gone: processes, containers, workspaces


# How often each is drawn, beside the others.
WEIGHTS: Final = dict.fromkeys(Blow, 2) | {
    Blow.WORKER_KILLED: 10,
    Blow.API_KILLED: 5,
    Blow.WORKER_STALLED: 8,
    Blow.CLOCK_JUMPED: 1,
    Blow.CONTAINER_KILLED: 1,
    Blow.HOST_REBOOTED: 1,
}

CALM_S: Final = 240.0  # after the last order, until no more faults begin
LONGEST_S: Final = 240.0  # that a fault lasts, but for stalls
DATASETS_PER_HOST: Final = 3


@dataclass(frozen=True, slots=True)
class OrderPlan:
    """An order. Datasets by number: number modulo hosts says where one lies. `model`: a preduplet's, by number."""

    number: int
    at_s: float
    to: int  # the host that its orchestrator asks
    train: tuple[int, ...] = ()
    test: tuple[int, ...] = ()
    predict: tuple[int, ...] = ()
    guest: Guest = Guest.GOOD
    max_attempts: int = 50
    expires_s: float = 86_400.0  # after `at_s`
    cancel_s: float | None = None  # after `at_s`

    @property
    def tasks(self) -> int:
        return len(self.train) + len(self.test) + len(self.predict)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is done to a host."""

    blow: Blow
    host: int
    at_s: float
    for_s: float = 0.0
    nth: int = 0
    other: int = 0
    by_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it. `seed` decides what is left: latencies, which of two goes first, how long a container runs."""

    seed: int
    hosts: int
    orders: tuple[OrderPlan, ...]
    faults: tuple[Fault, ...]

    @property
    def tasks(self) -> int:
        return sum(order.tasks for order in self.orders)

    @property
    def calm_at_s(self) -> float:
        """When the last fault is over."""
        return max((fault.at_s + fault.for_s for fault in self.faults), default=0.0)


def draw(seed: int, hosts: int, tasks: int, *, blows: frozenset[Blow] = frozenset(Blow)) -> Plan:
    """A plan of so many hosts and at least so many tasks, with blows of these kinds."""
    dice = Random(f"plan {seed} {hosts} {tasks}")
    length_s = max(600.0, 20.0 * tasks / hosts)
    orders: list[OrderPlan] = []
    left = tasks
    while left > 0:
        orders.append(_order(dice, len(orders), hosts, length_s))
        left -= orders[-1].tasks
    orders.sort(key=lambda order: order.at_s)
    weights = {blow: weight for blow, weight in WEIGHTS.items() if blow in blows}
    faults = [_fault(dice, weights, hosts, length_s + CALM_S) for _ in range(max(8, tasks // 6))]
    return Plan(seed, hosts, tuple(orders), tuple(sorted(faults, key=lambda fault: fault.at_s)))


def without_faults(plan: Plan) -> Plan:
    """The same in peace."""
    return Plan(plan.seed, plan.hosts, plan.orders, ())


def _order(dice: Random, number: int, hosts: int, length_s: float) -> OrderPlan:
    count = min(dice.choice((1, 2, 2, 3, 3, 4, 5, 6)), hosts * DATASETS_PER_HOST)
    data = _datasets(dice, count, hosts)
    is_short = dice.random() < 0.04
    common = {
        "number": number,
        "at_s": round(dice.uniform(0.0, length_s), 1),
        "to": dice.randrange(hosts),
        "guest": Guest.FAILS if dice.random() < 0.04 else Guest.GOOD,
        "max_attempts": dice.choice((1, 2, 3)) if dice.random() < 0.06 else 50,
        "cancel_s": round(dice.uniform(0.0, 60.0), 1) if dice.random() < 0.05 else None,
        "expires_s": round(dice.uniform(60.0, 900.0)) if is_short else 86_400.0,
    }
    if dice.random() < 0.25:
        return OrderPlan(**common, predict=data)  # type: ignore[arg-type]
    tests = dice.randint(0, min(2, count - 1))
    return OrderPlan(**common, train=data[: count - tests], test=data[count - tests :])  # type: ignore[arg-type]


def _datasets(dice: Random, count: int, hosts: int) -> tuple[int, ...]:
    """Different ones; every third stays on the host of the one before, so that chains also go on where they are."""
    chosen: list[int] = []
    while len(chosen) < count:
        if chosen and dice.random() < 0.33:
            number = chosen[-1] % hosts + hosts * dice.randrange(DATASETS_PER_HOST)
        else:
            number = dice.randrange(hosts * DATASETS_PER_HOST)
        if number not in chosen:
            chosen.append(number)
    return tuple(chosen)


def _fault(dice: Random, weights: Mapping[Blow, int], hosts: int, until_s: float) -> Fault:
    blow = dice.choices(list(weights), list(weights.values()))[0]
    shortest_s, longest_s = (
        (80.0, 600.0) if blow is Blow.WORKER_STALLED else (5.0, LONGEST_S)
    )  # beyond a lease
    return Fault(
        blow,
        host=dice.randrange(hosts),
        at_s=round(dice.uniform(0.0, until_s), 1),
        for_s=round(dice.uniform(shortest_s, longest_s), 1),
        nth=dice.choice((1, 2, 3, 5, 8, 13, 21, 34, 55)) + dice.randrange(8),
        other=dice.randrange(hosts),
        by_s=round(dice.choice((-1, 1)) * dice.choice((5.0, 90.0, 700.0)) * dice.uniform(0.5, 1.0), 1),
    )


# ------------------------------------------------------------------ as a test case


def paste(plan: Plan, name: str) -> str:
    """The plan as lines of tests/simulate/test_seeds.py."""
    orders = "".join(f"        {_short(order)},\n" for order in plan.orders)
    faults = "".join(f"        {_short(fault)},\n" for fault in plan.faults)
    return (
        f"{name} = Plan(\n    seed={plan.seed},\n    hosts={plan.hosts},\n"
        f"    orders=(\n{orders}    ),\n    faults=(\n{faults}    ),\n)\n"
    )


def _short(value: OrderPlan | Fault) -> str:
    """Only what differs from the defaults, enums by their names."""
    kind = type(value)
    defaults = {name: field.default for name, field in kind.__dataclass_fields__.items()}
    said = [
        f"{name}={type(found).__name__}.{found.name}" if isinstance(found, StrEnum) else f"{name}={found!r}"
        for name in defaults
        if (found := getattr(value, name)) != defaults[name]
    ]
    return f"{kind.__name__}({', '.join(said)})"
