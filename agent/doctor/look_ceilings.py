"""Reads how cgroups are mounted and which controllers the agent's user was given."""

import os
from collections.abc import Iterable
from pathlib import Path

from agent.doctor.ceilings import Cgroups, Hierarchy, hierarchy_of
from agent.doctor.lines import Unknown
from agent.doctor.look import attempt, read_text, text_or

CGROUPS = Path("/sys/fs/cgroup")
NOT_CONTROLLERS = {"systemd", "unified"}


def look_at_cgroups(uid: int) -> Cgroups:
    """The cgroups of this host as this user has them."""
    hierarchy = hierarchy_of(text_or("/proc/self/mountinfo", ""))
    delegated = _delegated_v2(uid) if hierarchy is Hierarchy.V2 else attempt(lambda: _owned_v1(uid))
    return Cgroups(uid=uid, hierarchy=hierarchy, delegated=delegated)


def _delegated_v2(uid: int) -> tuple[str, ...] | Unknown:
    """Of the user's own systemd, else of whatever group of v2 belongs to the user and this process is in."""
    told = read_text(CGROUPS / f"user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers")
    if isinstance(told, str):
        return tuple(told.split())
    own = next(
        (line[3:] for line in text_or("/proc/self/cgroup", "").splitlines() if line.startswith("0::")), "/"
    )
    for group in (CGROUPS / own.lstrip("/"), *(CGROUPS / own.lstrip("/")).parents):
        if not group.is_relative_to(CGROUPS):
            break
        controllers = read_text(group / "cgroup.controllers")
        if isinstance(controllers, str) and group.stat().st_uid == uid:
            return tuple(controllers.split())
    return Unknown(f"user {uid} has no systemd --user and no group of its own here")


def _owned_v1(uid: int) -> tuple[str, ...]:
    return tuple(sorted({name for folder in _hierarchies() for name in _names(folder, uid)}))


def _hierarchies() -> Iterable[Path]:
    return (folder for folder in CGROUPS.iterdir() if folder.is_dir() and folder.name not in NOT_CONTROLLERS)


def _names(folder: Path, uid: int) -> list[str]:
    """The controllers of a v1 hierarchy when a group right below it belongs to the user."""
    with os.scandir(folder) as entries:
        is_owned = any(
            entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == uid
            for entry in entries
        )
    return folder.name.split(",") if is_owned else []
