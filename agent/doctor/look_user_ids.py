"""Reads subordinate ids, the map helpers, and the kernel's settings about user namespaces."""

import grp
import os
import pwd
import stat
import struct
from collections.abc import Mapping
from pathlib import Path

from agent.doctor.lines import Unknown
from agent.doctor.look import attempt, find_program, read_text
from agent.doctor.user_ids import MapHelper, Range, UserIds, parse_ranges

SYSCTLS = (
    "user.max_user_namespaces",
    "kernel.unprivileged_userns_clone",
    "kernel.apparmor_restrict_unprivileged_userns",
)
APPARMOR_PROFILE = Path("/etc/apparmor.d/podman")
CAP_OF = {"newuidmap": 7, "newgidmap": 6}  # CAP_SETUID, CAP_SETGID


def look_at_user_ids(user: str, uid: int) -> UserIds:
    """What this user was given."""
    return UserIds(
        user=user,
        uid=uid,
        ranges={name: look_at_ranges(name) for name in ("subuid", "subgid")},
        taken={one.pw_name: one.pw_uid for one in pwd.getpwall()}
        | {f"group {one.gr_name}": one.gr_gid for one in grp.getgrall()},
        helpers={name: look_at_helper(name, cap) for name, cap in CAP_OF.items()},
        sysctls=look_at_sysctls(SYSCTLS),
        has_apparmor_profile=APPARMOR_PROFILE.exists(),
    )


def look_at_ranges(name: str) -> tuple[Range, ...] | Unknown:
    """Everybody's ranges, unless this host keeps them somewhere else than in files."""
    switch = read_text("/etc/nsswitch.conf")
    if isinstance(switch, str):
        for line in switch.splitlines():
            if line.startswith("subid:") and "files" not in line:
                return Unknown(f"/etc/nsswitch.conf keeps them elsewhere ({line.split(':')[1].strip()})")
    text = read_text(f"/etc/{name}")
    if isinstance(text, Unknown):
        return () if not Path(f"/etc/{name}").exists() else text
    return parse_ranges(text)


def look_at_helper(name: str, capability: int) -> MapHelper | Unknown | None:
    """One of the two programs; None when there is none."""
    path = find_program(name)
    if path is None:
        return None

    def look() -> MapHelper:
        about = os.stat(path)
        is_set_id = about.st_uid == 0 and bool(about.st_mode & stat.S_ISUID)
        is_nosuid = bool(os.statvfs(path).f_flag & os.ST_NOSUID)
        return MapHelper(path, is_set_id or _has_capability(path, capability), is_nosuid)

    return attempt(look)


def _has_capability(path: str, capability: int) -> bool:
    """Whether the file's permitted set holds it: `struct vfs_cap_data` of capabilities(7)."""
    try:
        data = os.getxattr(path, "security.capability")
    except OSError:
        return False
    return len(data) >= 8 and bool(struct.unpack_from("<I", data, 4)[0] & 1 << capability)


def look_at_sysctls(names: tuple[str, ...]) -> Mapping[str, str]:
    """The values of those that this kernel has and lets be read."""
    found = {}
    for name in names:
        text = read_text(Path("/proc/sys", *name.split(".")))
        if isinstance(text, str):
            found[name] = text
    return found
