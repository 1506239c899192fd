"""What CPU time the processes of a town took, by name: who does the work of a task, and how much of it the other side does."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from agent.bench.processes import OF_CHILDREN, OWN, PPID, cpu_s_in, stats
from agent.devkit.consortium import Consortium

SERVICES = ("serve", "work")


def cpu_s(consortium: Consortium) -> dict[str, float]:
    """Seconds of CPU by process so far, with the children that it waited for; an agent's services apart."""
    known = stats()
    parties = {process.pid: name for name, process in consortium.processes.items()}
    found: dict[str, float] = {}
    for pid, fields in known.items():
        party = parties.get(_oldest(pid, known, parties))
        if party is not None:
            name = f"{party}{_service(pid)}"
            found[name] = found.get(name, 0.0) + cpu_s_in(fields, (*OWN, *OF_CHILDREN))
    return found


def _oldest(pid: int, known: Mapping[int, list[str]], parties: Mapping[int, str]) -> int:
    """The process of a party that this one descends from; 0 when it is nobody's."""
    while pid in known and pid not in parties:
        pid = int(known[pid][PPID])
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
