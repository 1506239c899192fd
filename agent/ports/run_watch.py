"""What no kernel ceiling bounds is watched: a run that goes over is killed, with the cause told.

Watched are the bytes and entries of the folders a guest writes to, and the memory of its processes where no cgroup holds
that. A watcher looks every quarter of a second, so it is named as what it is: a guest can go over for a moment.
"""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from agent.errors import AgentError, RuntimeUnavailable
from agent.ports.cage import EngineFacts
from agent.ports.cage_check import PAGE_BYTES
from agent.ports.runtime import RunSpec
from agent.ports.user_namespace import Failed, UserNamespace

FIRST_LOOK_S = 0.5  # short runs are judged at their harvest
EVERY_S = 0.25
MOST_FAILED = 120  # looks in a row, half a minute and more
UNCOUNTED = 1 << 30
MOST_PROCESSES = 10_000  # who forks on and on is not followed for ever


class RunWatch:
    """One run's watcher, a thread from `start` to `stop`. `cause`: why it killed the run, None when it did not."""

    def __init__(
        self, spec: RunSpec, pid: int, facts: EngineFacts, inside: UserNamespace, kill: Callable[[], None]
    ) -> None:
        """`pid`: of the container's first process; `inside`: where the guest's own folders can be looked into."""
        self.cause: str | None = None
        self._pid, self._ceilings, self._inside, self._kill = pid, spec.ceilings, inside, kill
        self._folders = [str(mount.source) for mount in spec.mounts if mount.is_writable]
        self._holds_memory = "memory" in facts.controllers
        self._before = (0, 0)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watch-{pid}", daemon=True)

    def start(self) -> None:
        """Begin, before the guest does: what lies in its folders now, an earlier model, does not count.

        Raises: RuntimeUnavailable.
        """
        try:
            self._before = self._measure(UNCOUNTED)[:2]
        except Failed as refusal:
            raise RuntimeUnavailable(f"the run's folders cannot be looked into: {refusal}") from refusal
        if self._folders or not self._holds_memory:
            self._thread.start()

    def stop(self) -> None:
        """End; the run is over."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        rest_s, failed = FIRST_LOOK_S, 0
        while not self._is_over.wait(rest_s):
            rest_s = EVERY_S
            try:
                self.cause, failed = self._over(), 0
            except (AgentError, Failed, OSError):  # an engine that is away for a moment: the next look tells
                failed += 1
            if failed >= MOST_FAILED:  # a ceiling that nobody watches holds nothing
                self.cause = "unknown"
            if self.cause is not None:
                self._kill()
                return

    def _over(self) -> str | None:
        if self._folders:
            most_bytes = self._before[0] + self._ceilings.output_bytes
            most_entries = self._before[1] + self._ceilings.output_files
            taken, entries, is_deep = self._measure(most_entries + 1)
            if taken > most_bytes or entries > most_entries:
                return "disk"
            if is_deep:  # what cannot be looked into is bounded by nothing, and refused at the harvest anyway
                return "output"
        if (
            not self._holds_memory
            and memory_of(self._pid, self._ceilings.memory_bytes) > self._ceilings.memory_bytes
        ):
            return "oom"
        return None

    def _measure(self, most_entries: int) -> tuple[int, int, bool]:
        """Bytes taken and entries, counted up to `most_entries`; whether folders lie too deep to be counted."""
        if not self._folders:
            return 0, 0, False
        told = self._inside.ask("measure", self._folders, most_entries, self._pid)
        return told["bytes"], told["entries"], told["is_deep"]


def memory_of(pid: int, enough: int, proc: Path = Path("/proc")) -> int:
    """Bytes that the processes of a container use, `pid` its first: resident pages, and shared ones once if those are more
    than `enough`.
    """
    tree = _tree(pid, proc)
    resident = sum(_number(proc / str(one) / "statm", 1) * PAGE_BYTES for one in tree)
    if resident <= enough:
        return resident
    return sum(_proportional(proc / str(one) / "smaps_rollup") for one in tree)


def _tree(pid: int, proc: Path) -> list[int]:
    """The process and all below it; whoever loses its parent in a container gets the first process as one."""
    found: list[int] = []
    todo = [pid]
    while todo and len(found) < MOST_PROCESSES:
        one = todo.pop()
        found.append(one)
        with contextlib.suppress(OSError):
            for task in (proc / str(one) / "task").iterdir():
                todo += map(int, (task / "children").read_text().split())
    return found


def _number(file: Path, column: int) -> int:
    try:
        return int(file.read_text().split()[column])
    except (OSError, ValueError, IndexError):
        return 0  # it ended


def _proportional(file: Path) -> int:
    with contextlib.suppress(OSError):
        for line in file.read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return 0
