"""What a run does and when: a pure function of its seed. Nothing here knows a process or a clock."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

HOSPITALS = ("A", "B", "C")
ORCHESTRATORS = 2
TRAIN_EACH, TEST_EACH, PREDICT_EACH = 2, 1, 1  # datasets of a hospital
PACES_S = (0.0, 0.0, 0.0, 6.0, 14.0)


class Kind(StrEnum):
    """What is done."""

    KILL = "kill"  # SIGKILL; it is back after `s`
    TERM = "term"  # SIGTERM, as a restart of the service; it is back when it has ended
    STALL = "stall"  # SIGSTOP, SIGCONT after `s`
    CUT = "cut"  # packets, or requests, from `source` to `target`, for `s`
    MANGLE = "mangle"  # the proxy before `target` does `act` with what comes, `count` times
    CLOCK = "clock"  # the agent's clock moves by `s_moved`, for `s`
    FILL = "fill"  # the disk of the agent, for `s`


@dataclass(frozen=True, slots=True)
class Act:
    """One act, `at_s` seconds after the start."""

    at_s: float
    kind: Kind
    target: str
    values: dict[str, Any] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """For the journal."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Wish:
    """An order to be sent. `train`, `test`, `predict`: datasets as (hospital, number); a preduplet has `predict` alone."""

    at_s: float
    number: int
    orchestrator: int
    train: tuple[tuple[str, int], ...] = ()
    test: tuple[tuple[str, int], ...] = ()
    predict: tuple[tuple[str, int], ...] = ()
    pace_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole run. `points`: the fault points in the order in which they are tried, with what is done there."""

    seed: int
    duration_s: float
    acts: tuple[Act, ...]
    wishes: tuple[Wish, ...]
    points: tuple[tuple[str, str], ...]


SERVICES = (*(f"{service}-{hospital}" for hospital in HOSPITALS for service in ("serve", "work")), "second-A")
OTHERS = (
    *(f"storage-{hospital}" for hospital in HOSPITALS),
    *(f"orchestrator-{number + 1}" for number in range(ORCHESTRATORS)),
    "podman",
)
PARTIES = (
    *(f"agent-{hospital}" for hospital in HOSPITALS),
    *(f"storage-{hospital}" for hospital in HOSPITALS),
    *(f"orchestrator-{number + 1}" for number in range(ORCHESTRATORS)),
)
CALLED = [
    2 if name.startswith("agent-") else 1 if name.startswith("storage-") else 3 for name in PARTIES
]  # how often mangled
WRITES = (
    "ledger.commit",
    "storage.fetch_blob.",
    "storage.open_dataset.",
    "runtime.load.",
)  # where a disk may be full
MANGLES = ("drop", "lose", "after500", "garbage", "half", "slow", "repeat", "late", "hold", "forbid")


def make_plan(
    seed: int, duration_s: float, points: Sequence[str], *, every_s: float = 4.0, order_every_s: float = 5.0
) -> Plan:
    """The plan of this seed: the same for the same arguments."""
    dice = random.Random(f"acts of {seed}")
    acts = tuple(sorted(_acts(dice, duration_s, every_s), key=lambda act: act.at_s))
    wishes = tuple(_wishes(random.Random(f"orders of {seed}"), duration_s, order_every_s))
    return Plan(seed, duration_s, acts, wishes, tuple(_points(random.Random(f"points of {seed}"), points)))


def _acts(dice: random.Random, duration_s: float, every_s: float) -> Iterator[Act]:
    for first_s, rest_s, make in ((4.0, every_s, _act), (3.0, every_s / 2, _mangle)):
        at_s = first_s
        while at_s < duration_s:
            yield make(dice, at_s)
            at_s += dice.uniform(0.4, 1.6) * rest_s


def _act(dice: random.Random, at_s: float) -> Act:
    kinds = {
        "worker": 5, "api": 3, "conmon": 2, "guest": 1, "other": 3, "stall": 2, "term": 2, "cut": 4, "clock": 1,
        "fill": 1,
    }  # fmt: skip
    hospital = dice.choice(HOSPITALS)
    which = round(dice.random(), 3)
    down_s = round(dice.choice((0.1, 0.5, 2.0, 5.0)), 2)
    match dice.choices(list(kinds), list(kinds.values()))[0]:
        case "worker":
            return Act(at_s, Kind.KILL, f"work-{hospital}", {"s": down_s})
        case "api":
            return Act(at_s, Kind.KILL, f"serve-{hospital}", {"s": down_s})
        case "conmon":
            return Act(at_s, Kind.KILL, "conmon", {"which": which})
        case "guest":
            return Act(at_s, Kind.KILL, "guest", {"which": which})
        case "other":
            return Act(at_s, Kind.KILL, dice.choice(OTHERS), {"s": down_s})
        case "stall":  # longer than a lease, now and then: the one that comes back must be fenced
            return Act(at_s, Kind.STALL, dice.choice((*SERVICES, *OTHERS)), {"s": dice.choice((3.0, 20.0))})
        case "term":
            return Act(at_s, Kind.TERM, dice.choice((*SERVICES, *OTHERS)), {"s": down_s})
        case "cut":
            return Act(at_s, Kind.CUT, *_cut(dice))
        case "clock":
            moved_s = dice.choice((-7200.0, -600.0, -45.0, 45.0, 600.0, 2400.0))
            return Act(at_s, Kind.CLOCK, hospital, {"s_moved": moved_s, "s": dice.choice((3.0, 10.0))})
        case _:
            return Act(at_s, Kind.FILL, hospital, {"s": dice.choice((3.0, 8.0))})


def _mangle(dice: random.Random, at_s: float) -> Act:
    told = {"act": dice.choice(MANGLES), "count": dice.randint(1, 4), "s": dice.choice((0.5, 2.0, 6.0))}
    return Act(at_s, Kind.MANGLE, dice.choices(PARTIES, CALLED)[0], told)


def _cut(dice: random.Random) -> tuple[str, dict[str, Any]]:
    """One link one way, one link both ways, or a host off the network; for how long."""
    hosts = (*HOSPITALS, "desk")
    source, target = dice.sample(hosts, 2)
    match dice.choice(("one way", "both ways", "off")):
        case "one way":
            ways = [(source, target)]
        case "both ways":
            ways = [(source, target), (target, source)]
        case _:
            ways = [pair for other in hosts if other != source for pair in ((source, other), (other, source))]
    return source, {"ways": ways, "s": dice.choice((3.0, 10.0))}


def _wishes(dice: random.Random, duration_s: float, every_s: float) -> Iterator[Wish]:
    number, at_s = 0, 1.0
    train = [(hospital, n) for hospital in HOSPITALS for n in range(TRAIN_EACH)]
    test = [(hospital, n) for hospital in HOSPITALS for n in range(TEST_EACH)]
    predict = [(hospital, n) for hospital in HOSPITALS for n in range(PREDICT_EACH)]
    while at_s < duration_s:
        sender = dice.randrange(ORCHESTRATORS)
        if dice.random() < 0.25:
            yield Wish(at_s, number, sender, predict=tuple(dice.sample(predict, dice.randint(1, 2))))
        else:
            yield Wish(
                at_s,
                number,
                sender,
                train=tuple(dice.sample(train, dice.randint(2, 3))),
                test=tuple(dice.sample(test, dice.randint(1, 2))),
                pace_s=dice.choice(PACES_S),
            )
        number += 1
        at_s += dice.uniform(0.5, 1.5) * every_s


def _points(dice: random.Random, points: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each point to be killed at, and now and then something else as well: it fails, the disk is full, it takes long."""
    tried = [(point, "kill") for point in points]
    for point in points:
        if dice.random() < 0.3:
            may = ("raise", "raise", "sleep", *(("full", "full") if point.startswith(WRITES) else ()))
            tried.append((point, dice.choice(may)))
    dice.shuffle(tried)
    yield from tried
