"""What CPU time the processes of a town took, by name: who does the work of a task, and how much of it the other side does."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from agent.devkit.consortium import Consortium

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SERVICES = ("serve", "work")
PPID = 1  # in /proc/PID/stat, from the state on
UTIME, STIME, CUTIME, CSTIME = 11, 12, 13, 14


def cpu_s(consortium: Consortium) -> dict[str, float]:
    """Seconds of CPU by process so far, with the children that it waited for; an agent's services apart."""
    stats = dict(_stats())
    parties = {process.pid: name for name, process in consortium.processes.items()}
    found: dict[str, float] = {}
    for pid, fields in stats.items():
        party = parties.get(_oldest(pid, stats, parties))
        if party is not None:
            name = f"{party}{_service(pid)}"
            ticks = sum(int(fields[n]) for n in (UTIME, STIME, CUTIME, CSTIME))
            found[name] = found.get(name, 0.0) + ticks / TICKS_PER_S
    return found


def _stats() -> Iterator[tuple[int, list[str]]]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            yield int(folder.name), (folder / "stat").read_text().rpartition(")")[2].split()


def _oldest(pid: int, stats: Mapping[int, list[str]], parties: Mapping[int, str]) -> int:
    """The process of a party that this one descends from; 0 when it is nobody's."""
    while pid in stats and pid not in parties:
        pid = int(stats[pid][PPID])
    return pid if pid in parties else 0


def _service(pid: int) -> str:
    words: list[bytes] = []
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return next((f" {word}" for word in SERVICES if word.encode() in words), "")


def spent(before: Mapping[str, float], after: Mapping[str, float], tasks: int) -> dict[str, float]:
    """Milliseconds a task, by process that took any, the busiest first."""
    took = {name: (after[name] - before.get(name, 0.0)) * 1000 / tasks for name in after}
    return dict(sorted(((name, ms) for name, ms in took.items() if ms > 0), key=lambda one: -one[1]))
