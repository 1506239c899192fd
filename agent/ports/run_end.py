"""How a container's first process ended, in the words of the container contract.

Engines tell a death by signal n as code 128 + n, which a program can also give itself. The kernel tells both apart, also after
the process was reaped, to who holds its pidfd: since Linux 6.15. Before, 128 + n counts as the signal.
Source: linux/pidfd.h, PIDFD_GET_INFO.
"""

import fcntl
import os
import select
import struct
import subprocess
import time
from collections.abc import Callable
from typing import Final

from msgspec import Struct

PIDFD_GET_INFO: Final = 0xC040FF0B  # _IOWR(0xFF, 11, 64 bytes)
PIDFD_INFO_EXIT: Final = 1 << 3
_INFO = struct.Struct("=QQ11Ii")  # mask, cgroupid, eleven ids, exit_code
_INFO_BYTES = 64

SIGKILL, SIGPIPE, SIGXFSZ, SIGSYS = 9, 13, 25, 31
POLL_S = 86400.0  # one poll takes milliseconds in 31 bits


class End(Struct, frozen=True):
    """The end of a process: one of the two is set, none when nobody can tell."""

    code: int | None = None
    signal: int | None = None


def end_of_engine_code(code: int | None) -> End:
    """What an engine's exit code says: a death by signal n is 128 + n there."""
    if code is None or not 0 <= code < 256:
        return End()
    return End(signal=code - 128) if code > 128 else End(code=code)


def end_of(pidfd: int, engine_code: Callable[[], int | None], *, wait_s: float = 1.0) -> End:
    """The end of the process of this pidfd: the kernel's word where it gives one, else the engine's, which is asked only then.

    `wait_s`: how long its parent may take to reap it, before which the kernel says nothing.
    """
    deadline_s = time.monotonic() + wait_s
    try:
        while (status := _exit_status(pidfd)) is None:
            if time.monotonic() > deadline_s:
                return end_of_engine_code(engine_code())
            time.sleep(0.002)  # nothing wakes us when it is reaped
    except OSError:  # before Linux 6.15
        return end_of_engine_code(engine_code())
    end = End(signal=os.WTERMSIG(status)) if os.WIFSIGNALED(status) else End(code=os.WEXITSTATUS(status))
    # Who records no code has died itself, and took the guest's streams along: what the guest made of that is not its fault.
    is_of_broken_streams = end.signal == SIGPIPE or end.code not in {None, 0}
    return End() if is_of_broken_streams and end_of_engine_code(engine_code()) == End() else end


def cause_of(end: End, *, was_out_of_memory: bool) -> str | None:
    """A word of the container contract; None on exit code 0."""
    if end.code == 0:
        return None
    if end.code is None and end.signal is None:
        return "unknown"
    if was_out_of_memory:  # of any process of the container: what remains seldom knows what to do without it
        return "oom"
    if end.signal is None:
        return f"exit:{end.code}"
    return {SIGSYS: "seccomp", SIGXFSZ: "disk"}.get(end.signal, f"signal:{end.signal}")


def tells_exact_ends() -> bool:
    """Whether this kernel tells an exit code over 128 from a death by signal."""
    with subprocess.Popen(["/bin/true"], env={}) as child:
        pidfd = os.pidfd_open(child.pid)
        try:
            child.wait()
            return _exit_status(pidfd) is not None
        except OSError:
            return False
        finally:
            os.close(pidfd)


def ends_within(pidfd: int, seconds: float) -> bool:
    """Whether the process of this pidfd ends in time; a container's first process takes its pid namespace along."""
    deadline_s = time.monotonic() + seconds
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    while True:
        left_s = deadline_s - time.monotonic()
        if poll.poll(min(max(0.0, left_s), POLL_S) * 1000):
            return True
        if left_s <= 0:
            return False


def _exit_status(pidfd: int) -> int | None:
    """The wait status once the process was reaped, None before. Raises: OSError where the kernel does not tell."""
    buffer = bytearray(_INFO.pack(PIDFD_INFO_EXIT, *[0] * 13).ljust(_INFO_BYTES, b"\0"))
    fcntl.ioctl(pidfd, PIDFD_GET_INFO, buffer)
    mask, *_, status = _INFO.unpack_from(buffer)
    return status if mask & PIDFD_INFO_EXIT else None
