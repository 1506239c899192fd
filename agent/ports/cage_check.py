"""Is the cage what was asked for? The effective OCI config and the kernel's own view of the process, held against it.

The kernel's view (`cage_seen.py`) is read after the engine has made the container and before it starts the image's program.
Every function gives the differences as short sentences; none is the only good answer. Nothing here talks to an engine.
Source: docs/contracts/container.md, "The cage".
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

from agent.ports.cage_seen import MASKED, READ_ONLY, Mounted, Process

PAGE_BYTES = 4096
GUEST_ID = 1000  # user and group inside the container
OCI_NAMESPACES = frozenset({"cgroup", "ipc", "mount", "network", "pid", "user", "uts"})

# What an engine mounts by itself. Device files below /dev, and masks below /proc and /sys, are judged apart.
ENGINE_MOUNTS = frozenset(
    {
        "/proc",
        "/sys",
        "/sys/fs/cgroup",
        "/dev",
        "/dev/mqueue",
        "/dev/pts",
        "/etc/group",
        "/etc/hostname",
        "/etc/passwd",
        "/run/.containerenv",
    }
)
DEVICES = frozenset(f"/dev/{name}" for name in ("null", "zero", "full", "tty", "random", "urandom"))
# What an engine mounts anew for each container, by the kind of file system.
FRESH = {"/proc": "proc", "/dev": "tmpfs", "/dev/pts": "devpts", "/dev/mqueue": "mqueue"}
HARMLESS = frozenset({"nosuid", "nodev", "noexec"})
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
SWAP_FILES = {"memory.swap.max", "memory/memory.memsw.limit_in_bytes"}
RLIMIT_LINES = {
    "RLIMIT_CORE": "Max core file size",
    "RLIMIT_DATA": "Max data size",
    "RLIMIT_FSIZE": "Max file size",
    "RLIMIT_NOFILE": "Max open files",
    "RLIMIT_NPROC": "Max processes",
}


class Bind(Struct, frozen=True):
    """A folder of the host at a place in the container."""

    source: str
    target: str
    is_writable: bool


class Asked(Struct, frozen=True, kw_only=True):
    """What was asked for. Ids as the engine counts them: `map_start` is where container id 0 lies in its user namespace."""

    args: tuple[str, ...]
    env: Mapping[str, str]
    work_dir: str
    binds: tuple[Bind, ...]
    tmpfs: Mapping[str, int]  # place -> the most bytes it holds
    hostname: str
    umask: int
    rlimits: Mapping[str, int]
    cgroup: Mapping[str, str]  # file of its cgroups -> content, see `cage.cgroup_files`
    seccomp: Mapping[str, Any]
    map_start: int
    map_size: int
    runs_outputs: bool = False  # the engine leaves noexec out of writable binds, though it was asked for


# ------------------------------------------------------------------ the effective OCI config


def config_differences(config: Mapping[str, Any], asked: Asked) -> list[str]:
    """How the OCI config that the runtime was given differs from what was asked for."""
    process, linux = config.get("process", {}), config.get("linux", {})
    return [
        *_identity(process, linux, asked),
        *_program(process, asked),
        *_files(config, linux, asked),
        *_kernel(linux, asked),
    ]


def _identity(process: Mapping[str, Any], linux: Mapping[str, Any], asked: Asked) -> Iterator[str]:
    user = process.get("user", {})
    if (user.get("uid"), user.get("gid")) != (GUEST_ID, GUEST_ID):
        yield f"the user inside is {user.get('uid')}:{user.get('gid')}"
    if set(user.get("additionalGids") or ()) - {GUEST_ID}:
        yield "the user inside has more groups"
    wanted = [{"containerID": 0, "hostID": asked.map_start, "size": asked.map_size}]
    for kind in ("uidMappings", "gidMappings"):
        if linux.get(kind) != wanted:
            yield f"{kind} are {linux.get(kind)}"
    if any((process.get("capabilities") or {}).values()):
        yield "capabilities are left"
    if process.get("noNewPrivileges") is not True:
        yield "no_new_privileges is off"


def _program(process: Mapping[str, Any], asked: Asked) -> Iterator[str]:
    if tuple(process.get("args") or ()) != asked.args:
        yield "the arguments differ"
    if process.get("cwd") != asked.work_dir:
        yield f"the working directory is {process.get('cwd')!r:.80}"
    if process.get("terminal"):
        yield "a terminal is attached"
    if process.get("user", {}).get("umask") != asked.umask:
        yield f"the umask is {process.get('user', {}).get('umask')}"
    env = set(process.get("env") or ())
    wanted = {f"{key}={value}" for key, value in asked.env.items()}
    names = {entry.partition("=")[0] for entry in env ^ wanted}
    if env != wanted:
        yield f"the environment differs in {', '.join(sorted(names))}"
    limits = {one["type"]: (one["soft"], one["hard"]) for one in process.get("rlimits") or ()}
    for name, value in asked.rlimits.items():
        if limits.get(name) != (value, value):
            yield f"{name} is {limits.get(name)}"


def _files(config: Mapping[str, Any], linux: Mapping[str, Any], asked: Asked) -> Iterator[str]:
    if config.get("root", {}).get("readonly") is not True:
        yield "the root file system is writable"
    if config.get("hooks"):
        yield "hooks would run"
    if config.get("hostname") != asked.hostname:
        yield f"the container's host is named {config.get('hostname')!r:.80}"
    binds = {bind.target: bind for bind in asked.binds}
    mounts = {mount["destination"]: mount for mount in config.get("mounts") or ()}
    for target in set(mounts) - set(binds) - set(asked.tmpfs) - ENGINE_MOUNTS:
        yield f"{target!r:.80} is mounted"
    for target, bind in binds.items():
        mount = mounts.get(target, {})
        options = set(mount.get("options") or ())
        if mount.get("type") != "bind" or mount.get("source") != bind.source:
            yield f"{target} is not the folder that was asked for"
        if ("ro" in options) is bind.is_writable or not {"nosuid", "nodev", "noexec"} <= options:
            yield f"{target} is mounted {','.join(sorted(options))}"
    for what, wanted in (("maskedPaths", MASKED), ("readonlyPaths", READ_ONLY)):
        missing = wanted - set(linux.get(what) or ())
        if missing:
            yield f"{what} lack {', '.join(sorted(missing))}"


def _kernel(linux: Mapping[str, Any], asked: Asked) -> Iterator[str]:
    namespaces = {one["type"]: one.get("path") for one in linux.get("namespaces") or ()}
    if OCI_NAMESPACES - set(namespaces) or any(namespaces.values()):
        yield f"namespaces of its own are only {', '.join(sorted(namespaces))}"
    if linux.get("devices"):
        yield "devices are added"
    if not linux.get("seccomp"):
        yield "there is no seccomp profile"
    elif canonical_seccomp(linux["seccomp"]) != canonical_seccomp(asked.seccomp):
        yield "the seccomp profile is another one"


def canonical_seccomp(profile: Mapping[str, Any]) -> object:
    """A profile as a value that is equal for equal filters, however the rules are grouped and ordered."""
    rules = {
        (
            name,
            rule["action"],
            rule.get("errnoRet"),
            tuple(
                (arg["index"], arg["value"], arg.get("valueTwo") or 0, arg["op"])
                for arg in rule.get("args") or ()
            ),
        )
        for rule in profile.get("syscalls") or ()
        for name in rule["names"]
    }
    return (
        profile.get("defaultAction"),
        profile.get("defaultErrnoRet"),
        frozenset(profile.get("architectures") or ()),
        frozenset(rules),
        tuple(profile.get("flags") or ()),
    )


# ------------------------------------------------------------------ the kernel's view


def process_differences(process: Process, asked: Asked, own_uid: int) -> list[str]:
    """How the waiting process differs from what was asked for. `own_uid` is the agent's: no guest may be mapped to it."""
    return [
        *_status(process),
        *_maps(process, asked, own_uid),
        *_world(process),
        *_mounted(process, asked),
        *_limited(process, asked),
    ]


def _status(process: Process) -> Iterator[str]:
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        if int(process.status.get(name, "1"), 16) != 0:
            yield f"{name} is {process.status.get(name)}"
    if process.status.get("NoNewPrivs") != "1":
        yield "NoNewPrivs is not set"


def _maps(process: Process, asked: Asked, own_uid: int) -> Iterator[str]:
    for name, table in (("uid_map", process.uid_map), ("gid_map", process.gid_map)):
        if len(table) != 1 or table[0][0] != 0 or table[0][2] != asked.map_size:
            yield f"{name} is {table}"
    if any(start <= own_uid < start + size for _, start, size in process.uid_map):
        yield "the agent's own user is mapped into the container"
    for kind, real, table in (
        ("user", process.users, process.uid_map),
        ("group", process.groups, process.gid_map),
    ):
        for one in sorted(one for one in real for _, start, size in table if start <= one < start + size):
            yield f"{kind} {one} of this host is mapped into the container"
    for name, table in (("Uid", process.uid_map), ("Gid", process.gid_map)):
        wanted = str(table[0][1] + GUEST_ID) if table else ""
        if set(process.status.get(name, "").split()) != {wanted}:
            yield f"{name} is {process.status.get(name)}"
    groups = set(process.status.get("Groups", "").split())
    if process.gid_map and groups - {str(process.gid_map[0][1] + GUEST_ID)}:
        yield f"the process has the groups {' '.join(sorted(groups))}"


def _world(process: Process) -> Iterator[str]:
    if process.interfaces != {"lo"}:
        yield f"the network interfaces are {', '.join(sorted(process.interfaces))}"
    if process.shared_namespaces:
        yield f"namespaces shared with the host: {', '.join(sorted(process.shared_namespaces))}"


def _mounted(process: Process, asked: Asked) -> Iterator[str]:
    writable = {bind.target for bind in asked.binds if bind.is_writable} | set(asked.tmpfs)
    known = writable | {bind.target for bind in asked.binds} | ENGINE_MOUNTS | DEVICES | {"/"}
    for point in (known - ENGINE_MOUNTS - DEVICES) - set(process.mounts):
        yield f"{point} is not mounted"
    for point, mount in process.mounts.items():
        if point not in known and not point.startswith(("/proc/", "/sys/")):
            yield f"{point!r:.80} is mounted"
        elif (
            "rw" in mount.options
            and point not in writable
            and not point.startswith(("/proc", "/sys/", "/dev"))
        ):
            yield f"{point} is mounted writable"
        elif "ro" in mount.options and point in writable:
            yield f"{point} is mounted read-only"
    yield from _masked(process)
    for bind in asked.binds:
        if bind.target in process.mounts:
            excused = frozenset({"noexec"} if asked.runs_outputs and bind.is_writable else ())
            yield from _harmless(bind.target, process.mounts[bind.target], HARMLESS - excused)
    for point, kind in (FRESH | dict.fromkeys(asked.tmpfs, "tmpfs")).items():
        seen = process.mounts.get(point)
        if seen is not None and (seen.kind != kind or seen.root != "/" or seen.device in process.own_devices):
            yield f"{point} is no {kind} of the container's own"
    for point, most_bytes in asked.tmpfs.items():
        if point in process.mounts:
            yield from _harmless(point, process.mounts[point], HARMLESS)
            size_bytes = _size(process.mounts[point])
            if size_bytes is None or size_bytes >= most_bytes + PAGE_BYTES:
                yield f"{point} holds {size_bytes} bytes"


def _masked(process: Process) -> Iterator[str]:
    """Podman lays its masks twice, so what counts is that something lies there."""
    for point in process.to_hide:
        above = "/" + point.split("/")[1]
        if above in process.mounts and point not in process.mounts:
            yield f"{point} is not hidden"
    for point in READ_ONLY & set(process.mounts):
        if "ro" not in process.mounts[point].options:
            yield f"{point} is writable"


def _harmless(point: str, mount: Mounted, wanted: frozenset[str]) -> Iterator[str]:
    if wanted - mount.options:
        yield f"{point} lacks {', '.join(sorted(wanted - mount.options))}"
    if mount.is_passed_on:
        yield f"what is mounted below {point} is passed on"


def _size(mount: Mounted) -> int | None:
    """Bytes that a tmpfs holds, None when nothing bounds it."""
    for option in mount.of_all:
        if told := re.fullmatch(r"size=(\d+)([kmg]?)", option):
            return int(told[1]) * UNITS[told[2]]
    return None


def _limited(process: Process, asked: Asked) -> Iterator[str]:
    for name, value in asked.rlimits.items():
        line = re.search(rf"^{RLIMIT_LINES[name]} +(\S+) +(\S+)", process.limits, flags=re.MULTILINE)
        if line is None or line.groups() != (str(value), str(value)):
            yield f"{name} is {line.groups() if line else 'unknown'}"
    for name, content in asked.cgroup.items():
        if name in SWAP_FILES and name not in process.cgroup and not process.has_swap:
            continue  # this kernel bounds none, and there is none
        if process.cgroup.get(name) != content:
            yield f"{name} is {process.cgroup.get(name)}"
