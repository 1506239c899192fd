"""What the kernel's accounts tell of one container: was something in it killed for want of memory, what did it use.

    memory = MemoryEvents(pid)                  # the container's first process, while it lives
    ended = ends_within(pidfd, memory, 60)      # waits, and keeps the last reading meanwhile
    memory.was_out_of_memory(), memory.peak_bytes, memory.cpu_s

An engine's own word is not enough: Podman 4.3 with crun says `OOMKilled: false` of a container that was. The accounts lie in
the container's cgroup, which is removed soon after the last process ended: so they are read while it lives, and again when
the kernel says that they changed. Source: the kernel's cgroup-v2.rst and cgroup-v1/memory.rst.
"""

import contextlib
import os
import re
import select
import time
from pathlib import Path

from msgspec import Struct

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
# Usage is read from time to time too, for after the end there may be nothing left to read: it lacks at most what the last
# eighth of a run used, or its last two seconds.
READ_AGAIN_S, READ_LEAST_S, READ_PART = 2.0, 0.02, 1 / 8
V1_UNLIMITED = 1 << 62  # cgroup v1 writes "no limit" as the highest multiple of a page
MOST_BYTES = 1 << 16


class _Accounts(Struct, frozen=True):
    """Where the accounts lie. `memory` and `cpu` are folders of cgroups that hold this container alone, or None."""

    is_v1: bool
    memory: Path | None
    cpu: Path | None


class MemoryEvents:
    """One container's accounts, read again by `update`. Where it has no cgroup of its own nothing is told.

    `descriptor` and `mask` are for select.poll: ready when `update` is worth calling; the descriptor is None when there is
    nothing to wait for. `peak_bytes`: most memory it had at once; `cpu_s`: CPU seconds of all its processes; None: unknown.
    """

    def __init__(
        self, pid: int, *, membership: str | None = None, proc: Path = PROC, cgroups: Path = CGROUPS
    ) -> None:
        """`pid` is a process of the container, not of the engine; `membership`: what its /proc/<pid>/cgroup said.

        Raises: OSError, without `membership`, when the process is gone or may not be seen.
        """
        told = (proc / str(pid) / "cgroup").read_text() if membership is None else membership
        found = _accounts(told, (proc / "self/cgroup").read_text(), cgroups)
        self._is_v1 = found.is_v1
        self._events = _open(found.memory, "memory.oom_control" if found.is_v1 else "memory.events")
        self._peak = _open(found.memory, "memory.max_usage_in_bytes" if found.is_v1 else "memory.peak")
        self._cpu = _open(found.cpu, "cpuacct.usage" if found.is_v1 else "cpu.stat")
        self._bell = _v1_bell(found.memory, self._events) if found.is_v1 else None
        self.descriptor = self._bell if found.is_v1 else self._events
        self.mask = select.POLLIN if found.is_v1 else select.POLLPRI
        self._kills = 0
        self.peak_bytes: int | None = None
        self.cpu_s: float | None = None
        self.update()

    def update(self) -> None:
        """Read the accounts again. What is gone keeps its last reading, and is no longer waited for."""
        if self._bell is not None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._bell)
        events = _read(self._events)
        if events is None:
            self.descriptor = None  # it would be ready for ever
        self._kills = max(self._kills, _number(r"^oom_kill (\d+)$", events) or 0)
        self.peak_bytes = _most(self.peak_bytes, _number(r"^(\d+)$", _read(self._peak)))
        spent = _number(r"^(\d+)$" if self._is_v1 else r"^usage_usec (\d+)$", _read(self._cpu))
        if spent is not None:
            self.cpu_s = round(spent / (1e9 if self._is_v1 else 1e6), 3)

    def was_out_of_memory(self) -> bool:
        """Whether the kernel killed a process of the container, the first or another, at its memory ceiling."""
        return self._kills > 0

    def close(self) -> None:
        """Let go of the files. What was read stays."""
        for fd in (self._events, self._peak, self._cpu, self._bell):
            if fd is not None:
                os.close(fd)
        self._events = self._peak = self._cpu = self._bell = self.descriptor = None


def ends_within(pidfd: int, memory: MemoryEvents, seconds: float, *, or_out_of_memory: bool = False) -> bool:
    """Whether the process ends in time, or if so asked the kernel kills another one of its container for want of memory.

    `memory` has been updated on the way, and right after the end.
    """
    began_s = time.monotonic()
    deadline_s = began_s + seconds
    while True:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if memory.descriptor is not None:
            poll.register(memory.descriptor, memory.mask)
        now_s = time.monotonic()
        left_s = deadline_s - now_s
        rest_s = min(READ_AGAIN_S, max(READ_LEAST_S, (now_s - began_s) * READ_PART))
        ready = {fd for fd, _ in poll.poll(min(max(0.0, left_s), rest_s) * 1000)}
        memory.update()
        if pidfd in ready or (or_out_of_memory and memory.was_out_of_memory()):
            return True
        if left_s <= 0:
            return False


# ------------------------------------------------------------------ where the accounts lie


def _accounts(membership: str, own: str, cgroups: Path) -> _Accounts:
    """`membership` and `own` are /proc/<pid>/cgroup of the container's process and of this one."""
    theirs, ours = _paths(membership), _paths(own)
    if "memory" in theirs:  # a controller is mounted as v1 or as v2, never as both
        folders = {
            name: _alone(cgroups / name, theirs[name], ours.get(name))
            for name in ("memory", "cpuacct")
            if name in theirs
        }
        return _Accounts(
            True, _limited(folders["memory"], "memory.limit_in_bytes"), _first(folders.get("cpuacct"))
        )
    levels = _alone(cgroups, theirs.get("", "/"), ours.get(""))
    memory = _limited(levels, "memory.max")
    return _Accounts(False, memory, memory or _first(levels))


def _paths(membership: str) -> dict[str, str]:
    """The path of a process in each hierarchy, by controller; that of cgroup v2 under ""."""
    rows = (line.split(":", 2) for line in membership.splitlines())
    return {name: path for _, names, path in rows for name in names.split(",")}


def _alone(root: Path, path: str, own: str | None) -> list[Path]:
    """The cgroup and those above it, nearest first, as far as this process is in none of them."""
    levels = [root / path.lstrip("/"), *(root / path.lstrip("/")).parents]
    ours = root / own.lstrip("/") if own is not None else root
    return [
        level
        for level in levels
        if level.is_relative_to(root) and ".." not in level.parts and not ours.is_relative_to(level)
    ]


def _limited(levels: list[Path], name: str) -> Path | None:
    """The level that has a limit: the process's own, or the one above, for crun puts the process one below it. A limit
    further up is of more than this container."""
    for level in levels[:2]:
        with contextlib.suppress(OSError):
            limit = (level / name).read_text().strip()
            if limit != "max" and int(limit) < V1_UNLIMITED:
                return level
    return None


def _first(levels: list[Path] | None) -> Path | None:
    return next(iter(levels or ()), None)


# ------------------------------------------------------------------ reading them


def _open(folder: Path | None, name: str) -> int | None:
    """The open file, or None where this kernel has none (memory.peak came with 5.19)."""
    if folder is None:
        return None
    with contextlib.suppress(OSError):
        return os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
    return None


def _v1_bell(folder: Path | None, events: int | None) -> int | None:
    """An eventfd that the kernel rings when this cgroup is out of memory, and when it is removed."""
    if folder is None or events is None:
        return None
    bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        (folder / "cgroup.event_control").write_text(f"{bell} {events}")
    except OSError:  # another's cgroup may be read and not asked for a bell
        os.close(bell)
        return None
    return bell


def _read(fd: int | None) -> str | None:
    """What the file says, None when its cgroup is gone."""
    if fd is None:
        return None
    with contextlib.suppress(OSError):
        return os.pread(fd, MOST_BYTES, 0).decode()
    return None


def _number(pattern: str, text: str | None) -> int | None:
    match = re.search(pattern, text or "", flags=re.MULTILINE)
    return int(match[1]) if match else None


def _most(one: int | None, other: int | None) -> int | None:
    return max((value for value in (one, other) if value is not None), default=None)
