"""Subordinate ids of the agent's user, the programs that hand them out, and whether the kernel lets users make namespaces.

A container's ids are taken from these, so that nobody inside is anybody outside: each running container has 65536 of its own.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from agent.doctor.lines import Check, Group, Unknown

GROUP = Group("user ids")

IDS_OF_A_CONTAINER = 65536
FEW_NAMESPACES = 64  # each running job needs a few of them, and so does Podman


class Range(Struct, frozen=True):
    """A line of /etc/subuid or /etc/subgid: whose, the first id, how many."""

    owner: str
    first: int
    count: int

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    def overlaps(self, other: "Range") -> bool:
        """Whether an id is in both."""
        return self.first <= other.last and other.first <= self.last


class MapHelper(Struct, frozen=True):
    """newuidmap or newgidmap. `can_map`: set-id root or a file capability; `is_nosuid`: its mount ignores both."""

    path: str
    can_map: bool
    is_nosuid: bool


class UserIds(Struct, frozen=True, kw_only=True):
    """What is there. `user`: name and id; the ranges are everybody's, by file; `taken`: ids of real users by name.

    `sysctls`: values as text, absent when the kernel has none of that name.
    """

    user: str
    uid: int
    ranges: Mapping[str, tuple[Range, ...] | Unknown]
    taken: Mapping[str, int]
    helpers: Mapping[str, MapHelper | Unknown | None]
    sysctls: Mapping[str, str]
    has_apparmor_profile: bool


def parse_ranges(text: str) -> tuple[Range, ...]:
    """The lines of a subid file that can be read: name or number, first, count."""
    found = []
    for line in text.splitlines():
        parts = line.split("#")[0].strip().split(":")
        if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit() and int(parts[2]) > 0:
            found.append(Range(parts[0], int(parts[1]), int(parts[2])))
    return tuple(found)


def judge(facts: UserIds, pool_size: int) -> list[Check]:
    """`pool_size`: how many containers may run at once by the settings."""
    if facts.uid == 0:
        seen = "the agent's files belong to root: it wants a user of its own, who has subordinate ids"
        return [GROUP.fail("agent's user", seen, "sh install.sh")]
    lines = []
    for file in ("subuid", "subgid"):
        lines.append(_count(file, facts, pool_size))
        lines += _overlaps(file, facts)
    lines += [_helper(name, facts.helpers.get(name)) for name in ("newuidmap", "newgidmap")]
    return lines + _namespaces(facts)


def _count(file: str, facts: UserIds, pool_size: int) -> Check:
    ranges = facts.ranges[file]
    if isinstance(ranges, Unknown):
        return GROUP.unknown(file, ranges)
    count = sum(one.count for one in _own(ranges, facts))
    maps, wanted = count // IDS_OF_A_CONTAINER, (pool_size + 1) * IDS_OF_A_CONTAINER
    mend = _give(file, ranges, facts, wanted)
    if maps == 0:
        return GROUP.fail(file, f"{facts.user} has {count} ids, a container needs {IDS_OF_A_CONTAINER}", mend)
    if count < wanted:
        seen = f"{facts.user} has {count} ids: {max(1, maps - 1)} containers at once, the settings want {pool_size}"
        return GROUP.warn(file, seen, mend)
    return GROUP.ok(file, f"{facts.user} has {count} ids, enough for {maps - 1} containers at once")


def _overlaps(file: str, facts: UserIds) -> list[Check]:
    ranges = facts.ranges[file]
    if isinstance(ranges, Unknown):
        return []
    own = _own(ranges, facts)
    others = sorted(
        {one.owner for one in ranges if one not in own and any(one.overlaps(mine) for mine in own)}
    )
    users = sorted(
        name for name, uid in facts.taken.items() if any(one.first <= uid <= one.last for one in own)
    )
    if not others and not users:
        return []
    wanted = max(sum(one.count for one in own), IDS_OF_A_CONTAINER)
    option = "uids" if file == "subuid" else "gids"
    away = "".join(f" --del-sub{option} {one.first}-{one.last}" for one in own)
    whose = " and ".join(
        part
        for part in (f"the subordinate ids of {', '.join(others)}" if others else "", ", ".join(users))
        if part
    )
    mend = f"usermod{away}{_give(file, ranges, facts, wanted).removeprefix('usermod')}"
    return [GROUP.fail(f"{file} overlap", f"the ids of {facts.user} are also those of {whose}", mend)]


def _own(ranges: Sequence[Range], facts: UserIds) -> list[Range]:
    return [one for one in ranges if one.owner in (facts.user, str(facts.uid))]


def _give(file: str, ranges: Sequence[Range], facts: UserIds, wanted: int) -> str:
    """The command that gives the user that many ids which nobody has."""
    ends = [one.last for one in ranges] + [uid for uid in facts.taken.values() if uid < 1 << 20]
    first = max([99_999, *ends]) + 1
    option = "uids" if file == "subuid" else "gids"
    return f"usermod --add-sub{option} {first}-{first + wanted - 1} {facts.user}"


def _helper(name: str, helper: MapHelper | Unknown | None) -> Check:
    if isinstance(helper, Unknown):
        return GROUP.unknown(name, helper)
    if helper is None:
        return GROUP.fail(name, "not installed", "apt-get install uidmap")
    if not helper.can_map:
        seen = f"{helper.path} is neither set-id root nor has a capability: it can hand out nothing"
        return GROUP.fail(name, seen, f"chmod u+s {helper.path}")
    if helper.is_nosuid:
        seen = f"{helper.path} lies on a file system that is mounted nosuid: it can hand out nothing"
        return GROUP.fail(name, seen, f'mount -o remount,suid "$(findmnt -no TARGET -T {helper.path})"')
    return GROUP.ok(name, helper.path)


def _namespaces(facts: UserIds) -> list[Check]:
    lines = []
    name, value = "user.max_user_namespaces", facts.sysctls.get("user.max_user_namespaces")
    if value is None:
        lines.append(GROUP.note(name, "this kernel has no such setting"))
    elif int(value) == 0:
        lines.append(GROUP.fail(name, "0: nobody can make a user namespace", f"sysctl -w {name}=15000"))
    elif int(value) < FEW_NAMESPACES:
        lines.append(GROUP.warn(name, f"{value}: few", f"sysctl -w {name}=15000"))
    else:
        lines.append(GROUP.ok(name, value))
    name = "kernel.unprivileged_userns_clone"
    if facts.sysctls.get(name) == "0":
        seen = "0: only root can make a user namespace"
        lines.append(GROUP.fail(name, seen, f"sysctl -w {name}=1"))
    name = "kernel.apparmor_restrict_unprivileged_userns"
    if facts.sysctls.get(name, "0") != "0":
        if facts.has_apparmor_profile:
            lines.append(GROUP.ok(name, "on, and AppArmor has a profile for podman"))
        else:
            seen = "on, without a profile for podman: it gets namespaces without rights in them"
            lines.append(GROUP.fail(name, seen, f"sysctl -w {name}=0"))
    return lines
