"""When a process began, by which it is told from a later one that got its id, and how long it has been there."""

import errno
import os
import time
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def began(pid: int) -> int:
    """Ticks of the kernel from the boot to the beginning of this process. Raises: OSError when it is gone."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def is_there(pid: int, when: int) -> bool:
    """Whether the process that had this id and began then is there still, were it only to be reaped."""
    try:
        return pid > 0 and began(pid) == when
    except OSError:
        return False


def open_process(pid: int, when: int) -> int | None:
    """A pidfd of the process that had this id and began then, None when it is gone."""
    if pid <= 0:
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if is_there(pid, when):  # so it was there when it was opened
        return pidfd
    os.close(pidfd)
    return None


def opened(pid: int, when: int) -> int:
    """The same of one that must be there. Raises: ProcessLookupError."""
    pidfd = open_process(pid, when)
    if pidfd is None:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return pidfd


def seconds_since(ticks: int) -> float:
    """Seconds from then to now, also those in which the host slept."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / TICKS_A_SECOND)
