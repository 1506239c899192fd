"""The containers of this machine as the kernel lists them: their monitors and their first processes, found and killed."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NAME = re.compile(rb"dc-([0-9a-f-]{36})\.(\d+)-(\d+)-([a-z]+)")


@dataclass(frozen=True, order=True)
class Monitored:
    """A container: the name of its run, its conmon, and its first process when there is one."""

    name: str
    order_id: str
    conmon: int
    first: int | None


def containers() -> tuple[Monitored, ...]:
    """Every container of a task that has a monitor now, by name. Those of self-tests are none."""
    found: dict[str, Monitored] = {}
    for pid, words in _processes():
        name = NAME.search(words)
        if name is None or not words.split(b"\0")[0].endswith(b"conmon"):
            continue
        children = _children(pid)
        told = Monitored(name[0].decode(), name[1].decode(), pid, children[0] if children else None)
        if told.first is not None or told.name not in found:  # conmon forks: the one with a child counts
            found[told.name] = told
    return tuple(sorted(found.values(), key=lambda one: one.name))


def kill_conmon(target: Monitored) -> None:
    """SIGKILL to the monitor, which is the caller's own."""
    with suppress(ProcessLookupError):
        os.kill(target.conmon, signal.SIGKILL)


def kill_first(target: Monitored) -> bool:
    """SIGKILL to the container's first process, which belongs to an id of its own: as root of the namespace of its monitor."""
    if target.first is None:
        return False
    command = ["nsenter", "--user", "--preserve-credentials", "--target", str(target.conmon), "--"]
    done = subprocess.run([*command, "kill", "-9", str(target.first)], capture_output=True, check=False)
    return done.returncode == 0


def guests() -> tuple[str, ...]:
    """What of containers still lives: monitors, runtimes, and processes of ids that are nobody's outside."""
    own, left = os.getuid(), []
    for pid, words in _processes():
        with suppress(OSError):
            uid = Path(f"/proc/{pid}").stat().st_uid
            program = words.split(b"\0")[0]
            if program.endswith((b"conmon", b"runc", b"crun")) or uid not in {0, own, 65534}:
                left.append(f"process {pid}: {words[:120].replace(bytes(1), b' ').decode(errors='replace')}")
    return tuple(left)


def _processes() -> Iterator[tuple[int, bytes]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                words = Path(f"/proc/{name}/cmdline").read_bytes()
                if words:
                    yield int(name), words


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
