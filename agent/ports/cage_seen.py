"""What the kernel says of a process that waits in its cage, as a value; `cage_check.py` judges it. No engine is asked."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from msgspec import Struct

from agent.errors import CageNotApplied, RuntimeUnavailable

T = TypeVar("T")

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
MASKED = frozenset(
    {
        "/proc/acpi",
        "/proc/cmdline",
        "/proc/config.gz",
        "/proc/interrupts",
        "/proc/kallsyms",
        "/proc/kcore",
        "/proc/keys",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/sys/firmware",
    }
)
READ_ONLY = frozenset({"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"})


class Mounted(Struct, frozen=True, kw_only=True):
    """What the kernel says of one mount: `root` is the folder of the file system that is seen there, `device` the file system's
    number, `is_passed_on` whether mounts below come from elsewhere or go there, `of_all` the options of the whole file system.
    """

    options: frozenset[str]
    root: str
    device: str
    kind: str
    is_passed_on: bool
    of_all: frozenset[str]


class Process(Struct, frozen=True, kw_only=True):
    """What the kernel says of one process, as text of its files; `mounts`: by mount point. `own_devices`: file systems that the
    reading process has too; `to_hide`: what masks must cover, as far as this kernel has it.
    """

    status: Mapping[str, str]
    uid_map: tuple[tuple[int, int, int], ...]
    gid_map: tuple[tuple[int, int, int], ...]
    mounts: Mapping[str, Mounted]
    own_devices: frozenset[str]
    to_hide: frozenset[str]
    interfaces: frozenset[str]
    limits: str
    shared_namespaces: frozenset[str]  # those it has in common with this process
    cgroup: Mapping[str, str]
    has_swap: bool  # whether this host swaps at all
    users: frozenset[int]  # of this host, by /etc/passwd and /etc/group
    groups: frozenset[int]


def read_back(how: Callable[[], T]) -> T:
    """The kernel's answer. Raises: CageNotApplied when this host hides it (ProtectProc=invisible does);
    RuntimeUnavailable when the process is gone, which says nothing about the cage.
    """
    try:
        return how()
    except (FileNotFoundError, ProcessLookupError) as cause:
        raise RuntimeUnavailable(f"the container ended before it was started: {cause}") from cause
    except (OSError, ValueError) as cause:
        raise CageNotApplied(f"what was applied cannot be read back: {cause}") from cause


def read_process(pid: int, cgroup_files: Mapping[str, str], proc: Path = Path("/proc")) -> Process:
    """What the kernel says of this process, and of these files of its cgroup. Raises: OSError when it may not be read."""
    own = proc / str(pid)
    return Process(
        status=read_status(own),
        uid_map=id_map(own / "uid_map"),
        gid_map=id_map(own / "gid_map"),
        mounts=_mounts((own / "mountinfo").read_text()),
        own_devices=frozenset(
            mount.device for mount in _mounts((proc / "self/mountinfo").read_text()).values()
        ),
        to_hide=frozenset(path for path in MASKED | READ_ONLY if os.path.exists(path)),
        interfaces=frozenset(re.findall(r"(?m)^ *([^\s:|]+):", (own / "net/dev").read_text())),
        limits=(own / "limits").read_text(),
        shared_namespaces=frozenset(name for name in NAMESPACES if _is_shared(own, proc / "self", name)),
        cgroup=_cgroup((own / "cgroup").read_text(), cgroup_files),
        users=_ids(Path("/etc/passwd")),
        groups=_ids(Path("/etc/group")),
        has_swap=len((proc / "swaps").read_text().splitlines()) > 1 if (proc / "swaps").exists() else False,
    )


def _ids(file: Path) -> frozenset[int]:
    """The third column, which is the number, of /etc/passwd or /etc/group."""
    columns = (line.split(":") for line in file.read_text(errors="replace").splitlines())
    return frozenset(int(one[2]) for one in columns if len(one) > 2 and one[2].isdecimal())


def read_status(own: Path) -> dict[str, str]:
    """/proc/<pid>/status as a table. Raises: OSError."""
    lines = (line.partition(":") for line in (own / "status").read_text().splitlines())
    return {key: value.strip() for key, _, value in lines}


def _is_shared(one: Path, other: Path, namespace: str) -> bool:
    return os.readlink(one / "ns" / namespace) == os.readlink(other / "ns" / namespace)


def id_map(file: Path) -> tuple[tuple[int, int, int], ...]:
    """The rows of /proc/<pid>/uid_map or gid_map: first id inside, first id outside, count. Raises: OSError."""
    rows = (line.split() for line in file.read_text().splitlines())
    return tuple((int(inside), int(outside), int(count)) for inside, outside, count in rows)


def _mounts(mountinfo: str) -> dict[str, Mounted]:
    """By mount point; of two mounts on one point the later one, which is the one seen. Source: proc(5)."""
    mounts = {}
    for line in mountinfo.splitlines():
        first, _, last = line.partition(" - ")
        fields, (kind, _, of_all) = first.split(" "), last.split(" ", 2)
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        mounts[point] = Mounted(
            options=frozenset(fields[5].split(",")),
            root=fields[3],
            device=fields[2],
            kind=kind,
            is_passed_on=bool(fields[6:]),
            of_all=frozenset(of_all.split(",")),
        )
    return mounts


def _cgroup(membership: str, files: Mapping[str, str], root: Path = Path("/sys/fs/cgroup")) -> dict[str, str]:
    """What binds a process, by file of its cgroups; files that stand nowhere are left out.

    Of cgroup v2 it is the nearest value on the way up that is a limit: crun puts the process one level below the cgroup that
    has the limits. A file of cgroup v1 is named "controller/file" and read where the process is.
    """
    found: dict[str, str] = {}
    for name in files:
        controller, _, file = name.rpartition("/")
        folder = root / controller / cgroup_of(membership, controller).lstrip("/")
        for level in (folder, *folder.parents):
            if (
                not level.is_relative_to(root)
                or ".." in level.parts
                or not found.get(name, "max").startswith("max")
            ):
                break
            if (level / file).exists():
                found[name] = (level / file).read_text().strip()
            if controller:
                break
    return found


def cgroup_of(membership: str, controller: str) -> str:
    """The path that /proc/<pid>/cgroup tells for a controller of cgroup v1, or for cgroup v2 when it is ""; else "/"."""
    for line in membership.splitlines():
        number, names, path = line.split(":", 2)
        if controller in names.split(",") and (controller or number == "0"):
            return path
    return "/"
