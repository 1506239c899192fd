"""A process that looks where the test cannot: root in Podman's user namespace, so that it reads what belongs to guests.

It is told by lines of JSON and answers by lines of JSON; it enters the namespace at its start and outlives Podman's service.

    python -m tests.chain.inside PID          PID: a process of Podman's service
    {"kill": [pid, …]}                        -> null
    {"search": folder, "needles": {name: [hex, …]}, "since": s}
                                              -> {"files": n, "bytes": n, "found": [[path, name], …]}

A search takes every regular file below the folder that was changed since then and lies on no file system in memory
("anywhere": true: on any).
"""

import json
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from agent.ports.user_namespace_inner import join

IN_MEMORY = {"tmpfs", "ramfs"}
NO_FILES = {
    "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs",
    "fusectl", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore", "rpc_pipefs", "securityfs", "sysfs", "tracefs",
}  # fmt: skip
BLOCK_BYTES = 8 << 20


def kinds() -> dict[int, str]:
    """The kind of file system by device number."""
    found = {}
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            about, _, source = line.partition(" - ")
            major, minor = about.split(" ")[2].split(":")
            found[os.makedev(int(major), int(minor))] = source.split(" ")[0]
    return found


def files(folder: str, of_kind: dict[int, str], is_anywhere: bool) -> Iterator[tuple[str, os.stat_result]]:
    """Every regular file that lies on such a file system. What cannot be entered was not written by us."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                about = entry.stat(follow_symlinks=False)
                kind = of_kind.get(about.st_dev, "unknown")
                if kind in NO_FILES:
                    continue
                if stat.S_ISDIR(about.st_mode):
                    yield from files(entry.path, of_kind, is_anywhere)
                elif stat.S_ISREG(about.st_mode) and (is_anywhere or kind not in IN_MEMORY):
                    yield entry.path, about


def search(told: dict[str, Any]) -> dict[str, Any]:
    needles = [(name, bytes.fromhex(form)) for name, forms in told["needles"].items() for form in forms]
    overlap = max(len(needle) for _, needle in needles)
    found: set[tuple[str, str]] = set()
    count = size = 0
    for path, about in files(told["search"], kinds(), told.get("anywhere", False)):
        if about.st_ctime < told["since"]:
            continue
        found.update((path, name) for name, needle in needles if needle in os.fsencode(path))
        with suppress(OSError), open(path, "rb") as file:
            count += 1
            before = b""
            while block := file.read(BLOCK_BYTES):
                size += len(block)
                block = before + block
                found.update((path, name) for name, needle in needles if needle in block)
                before = block[-overlap:]
    return {"files": count, "bytes": size, "found": sorted(found)}


def say(answer: Any) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    join(int(sys.argv[1]))
    say("ready")
    for line in sys.stdin:
        told = json.loads(line)
        answer = None
        if "kill" in told:
            for pid in told["kill"]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        else:
            answer = search(told)
        say(answer)


if __name__ == "__main__":
    main()
