"""What no kernel ceiling bounds is watched: a run that goes over is killed, with the cause told.

Watched are the bytes and entries of the folders a guest writes to, and the memory of its processes where no cgroup holds
that. A watcher looks every quarter of a second, so it is named as what it is: a guest can go over for a moment.
"""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from agent.errors import AgentError, RuntimeUnavailable
from agent.ports.cage_check import PAGE_BYTES
from agent.ports.run_kept import Kept, Lying
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
        self, spec: RunSpec, kept: Kept, pid: int, inside: UserNamespace, kill: Callable[[], None]
    ) -> None:
        """`pid`: of the container's first process; `inside`: where the guest's own folders can be looked into."""
        self.cause: str | None = None
        self._kept, self._pid, self._inside, self._kill = kept, pid, inside, kill
        self._folders = _folders_of(spec)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watch-{pid}", daemon=True)

    def start(self) -> None:
        """Begin."""
        if self._folders or not self._kept.holds_memory:
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
        if self._folders and (cause := _over_in(self._folders, self._kept, self._inside, self._pid)):
            return cause
        most_bytes = self._kept.ceilings.memory_bytes
        if not self._kept.holds_memory and memory_of(self._pid, most_bytes) > most_bytes:
            return "oom"
        return None


def lying_before(spec: RunSpec, inside: UserNamespace) -> Lying:
    """What lies in the run's folders now, before the guest begins. Raises: RuntimeUnavailable."""
    folders = _folders_of(spec)
    if not folders:
        return Lying(0, 0)
    try:
        told = inside.ask("measure", folders, UNCOUNTED, 0)
    except Failed as refusal:
        raise RuntimeUnavailable(f"the run's folders cannot be looked into: {refusal}") from refusal
    return Lying(told["bytes"], told["entries"])


def over_after(spec: RunSpec, kept: Kept, inside: UserNamespace) -> str | None:
    """Whether the guest left more in its folders than it may, in a word of the container contract; None when not, or when
    nobody can look any more.
    """
    folders = _folders_of(spec)
    try:
        return _over_in(folders, kept, inside, 0) if folders else None
    except Failed:
        return None


def _folders_of(spec: RunSpec) -> list[str]:
    return [str(mount.source) for mount in spec.mounts if mount.is_writable]


def _over_in(folders: list[str], kept: Kept, inside: UserNamespace, pid: int) -> str | None:
    most_bytes = kept.before.bytes + kept.ceilings.output_bytes
    most_entries = kept.before.entries + kept.ceilings.output_files
    told = inside.ask("measure", folders, most_entries + 1, pid)
    if told["bytes"] > most_bytes or told["entries"] > most_entries:
        return "disk"
    if told["is_deep"]:  # what cannot be looked into is bounded by nothing, and refused at the harvest anyway
        return "output"
    return None


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
