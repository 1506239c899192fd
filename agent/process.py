"""The memory of a process: one that holds keys keeps it to itself, one that lives long gives back what it has no use for."""

import ctypes
import os
import resource
from typing import Final

# 0 still hands a dump to the program of a piped core_pattern (systemd-coredump, apport), which writes it to the disk;
# 1 is refused there too, and is less than any file of a dump has. Source: the kernel's fs/coredump.c; a test looks.
NO_DUMP_BYTES: Final = 1

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h


def keep_memory_private() -> None:
    """No core dump of this process, and no other process of the same user may read its memory, environment or descriptors.

    A program started from here may be looked into again, unless it does the same: the kernel forgets this at exec. The
    limit is inherited. Raises: OSError when neither can be had.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if hard != 0:  # only root raises a limit again; a unit sets 1
        resource.setrlimit(resource.RLIMIT_CORE, (NO_DUMP_BYTES, NO_DUMP_BYTES))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"core dumps stay possible: {os.strerror(number)}")


def give_memory_back() -> None:
    """Give pages that hold nothing any more back to the kernel: a large archive read once would stay with the process.

    A matter of a millisecond. glibc does so by itself only at the end of its heap; another C library is left alone.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
