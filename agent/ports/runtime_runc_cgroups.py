"""Where runc's runs get a cgroup of their own, which holds their ceilings: what this host gave to the agent's user.

Three ways, the first that works: a folder of the cgroup file system that root gave to the agent (`[runtime] cgroup_parent`; on
cgroup v1 one in each controller's hierarchy); the user's own systemd, which delegates controllers on cgroup v2; none, and then
rlimits and a watcher stand in.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from agent.errors import BadSettings

ROOT = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpu", "memory", "pids")
HELPERS = "helpers"  # no run is called so


class Cgroups(Struct, frozen=True, kw_only=True):
    """What runs get. `parent`: the folder below the cgroup root, or systemd's slice; None: nothing was given."""

    version: int
    controllers: frozenset[str] = frozenset()
    parent: str | None = None
    by_systemd: bool = False
    environment: Mapping[str, str] = {}  # what runc needs to reach the user's systemd

    def path_of(self, name: str) -> str | None:
        """What the OCI config calls a run's cgroup."""
        if self.parent is None:
            return None
        return f"{self.parent}:dc-compute:{name}" if self.by_systemd else f"{self.parent}/{name}"

    def helpers(self, root: Path = ROOT) -> str | None:
        """The file by which the helper, and with it conmon, comes into a cgroup of their own, without ceilings. None where it
        may not be moved: on cgroup v2 that takes rights above the folder that was given.
        """
        if self.version != 1 or self.parent is None or "pids" not in self.controllers:
            return None
        return f"{root}/pids{self.parent}/{HELPERS}/cgroup.procs"

    def remove(self, name: str, root: Path = ROOT) -> None:
        """Take away a run's cgroups that runc left, because it was killed before it wrote them down. systemd does so itself."""
        if self.parent is None or self.by_systemd:
            return
        below = f"{self.parent}/{name}".lstrip("/")
        for folder in (root / below,) if self.version == 2 else root.glob(f"*/{below}"):
            with contextlib.suppress(OSError):
                folder.rmdir()

    @property
    def options(self) -> tuple[str, ...]:
        """Global options of runc, and of conmon, which passes them on."""
        return ("--systemd-cgroup",) if self.by_systemd else ()


def find_cgroups(parent: str, environment: Mapping[str, str], root: Path = ROOT) -> Cgroups:
    """The cgroups of this host. `parent` is the setting, "" when there is none. Raises: BadSettings when it cannot be used."""
    version = 2 if (root / "cgroup.controllers").exists() else 1
    if parent:
        if not parent.startswith("/") or ".." in parent.split("/"):
            raise BadSettings(f"[runtime] cgroup_parent {parent!r} is no path like /dc-compute")
        controllers = _of_folder(root, parent.rstrip("/"), version)
        if not controllers:
            raise BadSettings(f"[runtime] cgroup_parent {parent} gives this user no controller below {root}")
        return Cgroups(version=version, controllers=controllers, parent=parent.rstrip("/"))
    bus = _user_bus(environment)
    if version == 2 and bus:
        uid = os.getuid()
        own = root / f"user.slice/user-{uid}.slice/user@{uid}.service"
        controllers = _listed(own / "cgroup.controllers")
        if controllers:
            return Cgroups(
                version=2, controllers=controllers, parent="user.slice", by_systemd=True, environment=bus
            )
    return Cgroups(version=version)


def _of_folder(root: Path, parent: str, version: int) -> frozenset[str]:
    """The controllers of a folder in which this user may make cgroups."""
    if version == 2:
        folder = Path(f"{root}{parent}")
        return _listed(folder / "cgroup.subtree_control") if os.access(folder, os.W_OK) else frozenset()
    folders = {name: Path(f"{root}/{name}{parent}") for name in CONTROLLERS}
    return frozenset(name for name, folder in folders.items() if os.access(folder, os.W_OK | os.X_OK))


def _listed(file: Path) -> frozenset[str]:
    try:
        return frozenset(file.read_text().split()) & set(CONTROLLERS)
    except OSError:
        return frozenset()


def _user_bus(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables by which the user's systemd is reached; empty when it is not there."""
    session = environment.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    bus = Path(session) / "bus"
    try:
        is_there = bus.is_socket() and (Path(session) / "systemd").is_dir()
    except PermissionError:  # a hardened unit, from whose sight /run/user was taken
        return {}
    if not is_there:
        return {}
    return {"XDG_RUNTIME_DIR": session, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus}"}
