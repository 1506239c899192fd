"""Podman's service: whose it is, how it keeps images, and what its environment would give to a job.

An image may ask for every variable of the service (CVE-2026-57231); the cage does not pass them on, and there should be none.
"""

import re
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from agent.doctor.lines import Check, Group, Unknown

GROUP = Group("podman")

# What a clean service has: what `env -i` gives it in our unit, what systemd adds, and Podman's own.
HARMLESS = re.compile(
    r"(PATH|HOME|USER|LOGNAME|SHELL|PWD|OLDPWD|SHLVL|_|LANG|LANGUAGE|LC_[A-Z]+|TZ|TERM|TMPDIR|HOSTNAME"
    r"|XDG_RUNTIME_DIR|XDG_CONFIG_HOME|XDG_DATA_HOME|XDG_DATA_DIRS|XDG_SESSION_[A-Z]+|DBUS_SESSION_BUS_ADDRESS"
    r"|INVOCATION_ID|JOURNAL_STREAM|SYSTEMD_EXEC_PID|MANAGERPID|NOTIFY_SOCKET|LISTEN_(FDS|PID|FDNAMES)|MEMORY_PRESSURE_\w+"
    r"|CREDENTIALS_DIRECTORY|RUNTIME_DIRECTORY|_CONTAINERS_\w+|_PODMAN_\w+|CONTAINERS_\w+|LISTEN_PIDFDID|MANAGERPIDFDID)"
)


class Socket(Struct, frozen=True):
    """The socket's file. `is_socket` is False for anything else; `mode` are its permissions."""

    path: str
    is_socket: bool
    uid: int
    mode: int


class Storage(Struct, frozen=True, kw_only=True):
    """What the service tells of itself."""

    version: str
    driver: str
    graph_root: str
    file_system: str  # below the graph root
    is_rootless: bool
    has_seccomp: bool


class Podman(Struct, frozen=True, kw_only=True):
    """What is there. `uid`: the agent's user; `start`: the command that starts the service; `environment`: names only."""

    uid: int
    start: str
    socket: Socket | Unknown | None
    storage: Storage | Unknown
    environment: Sequence[str] | Unknown


def storage_of(info: Any, file_system: str) -> Storage:
    """The facts in Podman's own /info. Raises: LookupError, TypeError for another document than that."""
    host, store = info["host"], info["store"]
    return Storage(
        version=str(info["version"]["Version"]),
        driver=str(store["graphDriverName"]),
        graph_root=str(store["graphRoot"]),
        file_system=file_system,
        is_rootless=bool(host["security"]["rootless"]),
        has_seccomp=bool(host["security"]["seccompEnabled"]),
    )


def judge(facts: Podman) -> list[Check]:
    """The socket, and when it answers what is behind it."""
    lines = [_socket(facts)]
    storage = facts.storage
    if isinstance(storage, Unknown):
        if facts.socket is not None:
            lines.append(GROUP.fail("service", f"does not answer: {storage.reason}", facts.start))
        return lines
    lines.append(GROUP.ok("service", f"{storage.version} answers"))
    lines += [_rootless(storage, facts), _seccomp(storage), _driver(storage), _graph_root(storage)]
    return [*lines, _environment(facts)]


def _socket(facts: Podman) -> Check:
    name, socket = "socket", facts.socket
    if isinstance(socket, Unknown):
        return GROUP.unknown(name, socket)
    if socket is None:
        return GROUP.fail(name, "there is none: Podman's service does not run", facts.start)
    if not socket.is_socket:
        return GROUP.fail(name, f"{socket.path} is no socket", f"rm {socket.path} && {facts.start}")
    if socket.uid != facts.uid:
        seen = f"{socket.path} belongs to user {socket.uid}, the agent is {facts.uid}: not its own Podman"
        return GROUP.fail(name, seen, facts.start)
    if socket.mode & 0o006:
        seen = f"{socket.path} has mode {socket.mode:04o}: whoever reaches it runs containers as the agent's user"
        return GROUP.warn(name, seen, f"chmod 0600 {socket.path}")
    return GROUP.ok(name, socket.path)


def _rootless(storage: Storage, facts: Podman) -> Check:
    if storage.is_rootless:
        return GROUP.ok("rootless", "yes")
    return GROUP.fail(
        "rootless", "no: the service runs as root", f"systemctl disable --now podman.socket && {facts.start}"
    )


def _seccomp(storage: Storage) -> Check:
    if storage.has_seccomp:
        return GROUP.ok("seccomp", "yes")
    mend = "apt-get install --reinstall podman runc crun"
    return GROUP.fail("seccomp", "this build of Podman knows no seccomp: no cage can be made", mend)


def _driver(storage: Storage) -> Check:
    if storage.driver == "overlay":
        return GROUP.ok("storage driver", "overlay")
    seen = f"{storage.driver}: each container copies its whole image"
    mend = (
        "mkdir -p ~/.config/containers && printf '[storage]\\ndriver = \"overlay\"\\n' > ~/.config/containers/storage.conf "
        "&& podman system reset --force  # forgets its images"
    )
    return GROUP.fail("storage driver", seen, mend)


def _graph_root(storage: Storage) -> Check:
    name, seen = "images", f"in {storage.graph_root} ({storage.file_system})"
    if storage.file_system in {"tmpfs", "ramfs"}:
        mend = "podman --root /var/tmp/containers info  # then the same --root in the unit of the service"
        return GROUP.warn(name, f"{seen}: they take memory, and are gone after a boot", mend)
    if storage.file_system.startswith(("nfs", "cifs", "smb", "9p", "fuse.sshfs")):
        mend = "podman --root /var/lib/containers-of-dc-compute info  # then the same --root in the unit of the service"
        return GROUP.fail(name, f"{seen}: a network's file system keeps no owners of containers", mend)
    return GROUP.ok(name, seen)


def _environment(facts: Podman) -> Check:
    name, names = "environment", facts.environment
    if isinstance(names, Unknown):
        return GROUP.unknown(name, names)
    strange = sorted(one for one in names if HARMLESS.fullmatch(one) is None)
    if not strange:
        return GROUP.ok(name, "nothing but what a service needs")
    told = ", ".join(one[:40] for one in strange[:12]) + (" …" if len(strange) > 12 else "")
    seen = f"the service has variables that it needs not, and that may be secrets: {told}"
    return GROUP.warn(name, seen, facts.start)
