"""Which ceilings this host can hold, and how: as each container engine measured it, and what the cgroups say.

Source: docs/contracts/container.md, "The cage".
"""

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import get_args

from msgspec import Struct

from agent.doctor.lines import Check, Group, Unknown
from agent.ports.runtime import Enforcement
from agent.trust.policy import CeilingName

GROUP = Group("ceilings")

WANTED = ("cpu", "memory", "pids")  # controllers that hold a ceiling

TO_V2 = (
    "sed -i 's/^GRUB_CMDLINE_LINUX=\"/&systemd.unified_cgroup_hierarchy=1 /' /etc/default/grub "
    "&& update-grub && systemctl reboot"
)
TO_DELEGATE = (
    "mkdir -p /etc/systemd/system/user@.service.d "
    "&& printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' > /etc/systemd/system/user@.service.d/delegate.conf "
    "&& systemctl daemon-reload && systemctl restart user@{uid}.service"
)


class Hierarchy(StrEnum):
    """How cgroups are mounted."""

    V2 = "v2"
    V1 = "v1"
    HYBRID = "hybrid"  # v1 controllers, with v2 mounted beside them
    NONE = "none"


class Cgroups(Struct, frozen=True, kw_only=True):
    """What is there. `delegated`: controllers in which this user has a group of their own."""

    uid: int
    hierarchy: Hierarchy
    delegated: Collection[str] | Unknown


def hierarchy_of(mount_table: str) -> Hierarchy:
    """How cgroups are mounted, by /proc/self/mountinfo."""
    kinds = set()
    for line in mount_table.splitlines():
        after = line.partition(" - ")[2]
        kind, options = after.partition(" ")[0], after.rsplit(" ", 1)[-1]
        if kind == "cgroup2":
            kinds.add("v2")
        elif kind == "cgroup" and "name=" not in options:  # systemd's own tree, by name, has no controller
            kinds.add("v1")
    match ("v1" in kinds, "v2" in kinds):
        case (True, True):
            return Hierarchy.HYBRID
        case (True, False):
            return Hierarchy.V1
        case (False, True):
            return Hierarchy.V2
        case _:
            return Hierarchy.NONE


def judge_cgroups(facts: Cgroups) -> list[Check]:
    """The hierarchy, and what of it is delegated."""
    return [_hierarchy(facts), _delegation(facts)]


def judge_runtimes(
    found: Mapping[str, Enforcement | Unknown],
    accepted: Collection[str],
    facts: Cgroups,
    starts: Mapping[str, str],
) -> list[Check]:
    """A line for each ceiling of each engine. `accepted`: what the policy does without, by name; `starts`: the command
    that starts an engine, by its name.

    An engine that does not answer fails when there is no other that does.
    """
    has_one = any(isinstance(told, Enforcement) for told in found.values())
    lines = []
    for name, told in found.items():
        if isinstance(told, Unknown):
            make = GROUP.warn if has_one else GROUP.fail
            mend = starts.get(name, f"apt-get install {name} conmon uidmap")
            lines.append(make(name, f"can hold no cage here: {told.reason}", mend))
            continue
        lines.append(GROUP.ok(name, told.version))
        lines += [_ceiling(name, ceiling, told, accepted, facts) for ceiling in get_args(CeilingName)]
    return lines + _needless(found, accepted)


def _needless(found: Mapping[str, Enforcement | Unknown], accepted: Collection[str]) -> list[Check]:
    """What the policy does without though every engine holds it: it would go unnoticed when one stopped to."""
    told = [one for one in found.values() if isinstance(one, Enforcement)]
    absent = {name for one in told for name in one.absent}
    needless = sorted(set(accepted) - absent) if told else []
    if not needless:
        return []
    return [GROUP.note("accept_missing", f"names {', '.join(needless)}, which this host holds")]


def _ceiling(
    runtime: str, ceiling: str, told: Enforcement, accepted: Collection[str], facts: Cgroups
) -> Check:
    name, means = f"{runtime} {ceiling}", told.means.get(ceiling)
    if ceiling not in told.absent and means is not None:
        return GROUP.ok(name, f"by {means}")
    instead = f" ({means} stands in)" if means else ""
    if ceiling in accepted:
        return GROUP.warn(name, f"absent{instead}; accept_missing of the policy names it", mend_absent(facts))
    seen = f"absent{instead}, and accept_missing of the policy does not name it: jobs are refused"
    return GROUP.fail(name, seen, mend_absent(facts))


def mend_absent(facts: Cgroups) -> str:
    """The command that gives the host what holds the ceiling."""
    return TO_DELEGATE.format(uid=facts.uid) if facts.hierarchy is Hierarchy.V2 else TO_V2


def _hierarchy(facts: Cgroups) -> Check:
    match facts.hierarchy:
        case Hierarchy.V2:
            return GROUP.ok("cgroups", "v2")
        case Hierarchy.NONE:
            return GROUP.warn("cgroups", "not mounted: no cgroup holds any ceiling", TO_V2)
        case kind:
            seen = f"{kind.value}: only v2 lets a user's containers have ceilings of memory and CPU"
            return GROUP.warn("cgroups", seen, TO_V2)


def _delegation(facts: Cgroups) -> Check:
    name = "delegated controllers"
    if isinstance(facts.delegated, Unknown):
        return GROUP.unknown(name, facts.delegated)
    told = ", ".join(sorted(facts.delegated)) or "none"
    lacking = [one for one in WANTED if one not in facts.delegated]
    if not lacking:
        return GROUP.ok(name, told)
    seen = f"{told}; {', '.join(lacking)} would hold ceilings"
    if facts.hierarchy is Hierarchy.V2:
        return GROUP.warn(name, seen, mend_absent(facts))
    return GROUP.note(name, seen)
