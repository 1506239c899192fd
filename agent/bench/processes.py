"""What processes take of a host, read from /proc by whoever started them: memory, CPU time, wake-ups.

A process that holds keys lets nobody of its own user look into its memory, nor at how large it is (`agent/process.py`). Whoever
starts one may open the kernel's summary in the milliseconds before it says so, and read it as often as wanted afterwards.
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

KIB, MIB = 1 << 10, 1 << 20
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# In /proc/PID/stat, from the state on.
PPID = 1
OWN, OF_CHILDREN = (
    (11, 12),
    (13, 14),
)  # ticks in user and in kernel mode, of its own and of the children that it waited for


class Memory(Struct, frozen=True):
    """Bytes in use. `pss_bytes`: pages that n processes share count 1/n; None where the kernel does not tell this user.

    `rss_bytes`: every page in full, so at least as much.
    """

    pss_bytes: int | None
    rss_bytes: int

    @property
    def most_bytes(self) -> int:
        """PSS, or what it is at most."""
        return self.rss_bytes if self.pss_bytes is None else self.pss_bytes


class Watched:
    """A process whose use of the host is read. Make it right after the process was started. Raises: OSError when it is gone."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._folder = Path(f"/proc/{pid}")
        self._summary: int | None = None
        with suppress(PermissionError):
            self._summary = os.open(self._folder / "smaps_rollup", os.O_RDONLY | os.O_CLOEXEC)

    def memory(self) -> Memory:
        """As it is now. Raises: OSError when it is gone."""
        told = _fields((self._folder / "status").read_text())
        rss = told["VmRSS"] * KIB
        if self._summary is None:
            return Memory(None, rss)
        summary = _fields(os.pread(self._summary, 1 << 14, 0).decode())
        return Memory(summary["Pss"] * KIB, summary["Rss"] * KIB)

    def cpu_s(self) -> float:
        """CPU time of all its threads since its start, those that ended too, to the nanosecond. Raises: OSError."""
        return time.clock_gettime(~self.pid << 3 | 2)  # the kernel's CPUCLOCK_SCHED of another process

    def wakeups(self) -> dict[str, int]:
        """How often each of its threads waited for something and went on, by the thread's number."""
        found = {}
        for thread in (self._folder / "task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                found[thread.name] = _fields((thread / "status").read_text())["voluntary_ctxt_switches"]
        return found

    def close(self) -> None:
        """Look no more."""
        if self._summary is not None:
            os.close(self._summary)
            self._summary = None


def woken(before: dict[str, int], after: dict[str, int]) -> int:
    """Wake-ups between two looks; a thread that ended in between took its own with it."""
    return sum(count - before.get(thread, 0) for thread, count in after.items())


def descendants(pids: Iterable[int]) -> list[int]:
    """The processes that these started, and those that they started, as far as they are still theirs."""
    children: dict[int, list[int]] = {}
    for pid, fields in stats().items():
        children.setdefault(int(fields[PPID]), []).append(pid)
    found, left = [], list(pids)
    while left:
        mine = children.get(left.pop(), [])
        found += mine
        left += mine
    return found


def with_word(word: str) -> list[int]:
    """The processes of this user whose command line has this word."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if word.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def stats() -> dict[int, list[str]]:
    """The fields of /proc/PID/stat from the state on, of every process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            found[int(folder.name)] = _stat(int(folder.name))
    return found


def cpu_s_of(pid: int) -> float:
    """CPU time of a process so far, all its threads together, in steps of 10 ms. Raises: OSError when it is gone."""
    return cpu_s_in(_stat(pid), OWN)


def cpu_s_in(fields: list[str], which: Iterable[int]) -> float:
    """Seconds in these fields of its stat."""
    return sum(int(fields[number]) for number in which) / TICKS_PER_S


def _stat(pid: int) -> list[str]:
    # The name of the program stands in brackets and may hold anything.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _fields(text: str) -> dict[str, int]:
    """`Name:  123 kB` lines: the first number by name."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0])
    return found
