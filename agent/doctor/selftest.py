"""What the self-test found, judged: an attempt that succeeded is a failing line."""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from agent.doctor.lines import Check, Group, Unknown

GROUP = Group("selftest")
ABSENT = "named absent"  # how an attempt against a ceiling that this host lacks says what must happen
MEND = "apt-get install --only-upgrade podman runc crun conmon"


class Tried(Struct, frozen=True):
    """One attempt of hostile code: what had to be seen, what was, and whether that holds."""

    probe: str
    expected: str
    seen: str
    held: bool


def judge(runtime: str, tried: Sequence[Tried]) -> Iterable[Check]:
    """One line when the cage of this engine held, else one for each attempt that succeeded."""
    broken = [one for one in tried if not one.held]
    for one in broken:
        words = f"{one.expected} had to be seen, seen was {one.seen[:200]}: this worker takes no jobs"
        yield GROUP.fail(f"{runtime} {one.probe}", words, MEND)
    if not broken:
        absent = sum(one.expected.startswith(ABSENT) for one in tried)
        against = f", {absent} of them against ceilings that are absent here" if absent else ""
        yield GROUP.ok(runtime, f"{len(tried)} attempts of hostile code, none succeeded{against}")


def not_tried(runtime: str, why: Unknown) -> Check:
    """The line of an engine that does not answer; `ceilings` judges that."""
    return GROUP.unknown(runtime, why)
