"""Which system call killed a guest, from the kernel's log where this user may read it, by name where libseccomp knows it.

The kernel writes one audit record (type 1326) for each process that a seccomp filter kills.
"""

import ctypes
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Final

from msgspec import Struct

KERNEL_LOG: Final = Path("/dev/kmsg")
MOST_RECORDS: Final = 100_000
RECORD_BYTES: Final = 8192
READ_S: Final = 10.0

_KILLED = re.compile(
    r'(?:type=1326 audit\((?P<at_s>[0-9.]+):|SECCOMP ).*?comm="(?P<program>[^"]{0,15})".*?'
    r"sig=31 arch=(?P<architecture>[0-9a-f]{1,8}) syscall=(?P<number>[0-9]{1,6})"
)


class KilledCall(Struct, frozen=True):
    """A call that killed: the program that made it, by the kernel's short name, and the call's name, or number."""

    program: str
    call: str


def killed_calls(since: datetime, until: datetime) -> tuple[KilledCall, ...] | None:
    """What was killed in this span, in order; None when this user may not read the kernel's log."""
    lines = _records()
    if lines is None:
        lines = _journal(since, until)
    return None if lines is None else tuple(parse(lines, since.timestamp(), until.timestamp()))


def parse(lines: Iterable[str], since_s: float, until_s: float) -> Iterable[KilledCall]:
    """Those that the lines of a log tell of, in seconds of the epoch; a line without a time is taken."""
    for line in lines:
        found = _KILLED.search(line)
        if found is None:
            continue
        at_s = found["at_s"]
        if at_s is None or since_s - 1 <= float(at_s) <= until_s + 1:
            yield KilledCall(found["program"], name_of(int(found["architecture"], 16), int(found["number"])))


def name_of(architecture: int, number: int) -> str:
    """The name of a system call, or its number where nobody here knows it."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return f"number {number}"
    resolve = library.seccomp_syscall_resolve_num_arch
    resolve.argtypes, resolve.restype = [ctypes.c_uint32, ctypes.c_int], ctypes.c_char_p
    name = resolve(architecture, number)
    return f"number {number}" if name is None else name.decode("ascii")


def deadly_calls(profile: Path) -> tuple[str, ...]:
    """The names of all calls that this profile kills for, sorted."""
    rules = json.loads(profile.read_text("utf-8"))["syscalls"]
    return tuple(
        sorted(
            {name for rule in rules if rule["action"] == "SCMP_ACT_KILL_PROCESS" for name in rule["names"]}
        )
    )


def _records() -> list[str] | None:
    """The kernel's ring of messages, oldest first; None when it is closed to this user."""
    try:
        ring = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    found = []
    try:
        for _ in range(MOST_RECORDS):
            try:
                found.append(os.read(ring, RECORD_BYTES).decode("utf-8", "replace"))
            except BlockingIOError:
                break
            except BrokenPipeError:  # records were overwritten meanwhile: the next read goes on after them
                continue
    except OSError:
        return None
    finally:
        os.close(ring)
    return found


def _journal(since: datetime, until: datetime) -> list[str] | None:
    """The same from the journal, for members of its groups; None when it tells nothing."""
    journalctl = shutil.which("journalctl")
    if journalctl is None:
        return None
    span = [f"--since=@{int(since.timestamp())}", f"--until=@{int(until.timestamp()) + 2}"]
    command = [journalctl, "--quiet", "--output=cat", *span, "_TRANSPORT=audit", "+", "_TRANSPORT=kernel"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=READ_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.splitlines()
    return lines if done.returncode == 0 and lines else None
