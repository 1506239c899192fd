"""What a process that holds keys does first: it keeps its memory to itself."""

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
