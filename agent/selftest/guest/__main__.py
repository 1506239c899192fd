"""One attempt after the other, as the only argument lists them."""

import json
import os
import sys
from collections.abc import Callable

from agent.selftest.guest import bombs, calls, files, world
from agent.selftest.guest.attempt import in_child, told

# Made in this process: a child of its own would be seen by itself, or the process's end is the answer.
HERE: dict[str, Callable[..., str | None]] = {
    "call-here": calls.call,
    "connect-abstract": world.connect_abstract,
    "controls": bombs.controls,
    "daemon": bombs.daemon,
    "descriptors": world.descriptors,
    "devices": world.devices,
    "endless-line": bombs.endless_line,
    "environment": world.environment,
    "exit": bombs.quit_with,
    "family": world.family,
    "first-process": world.first_process,
    "flood": bombs.flood,
    "id-map": world.id_map,
    "look-for": bombs.look_for,
    "memory": bombs.memory,
    "mounts": world.mounts,
    "processes": world.processes,
    "segfault": bombs.segfault,
    "signals": world.signals,
    "socketpair": world.socketpair,
    "stay": bombs.stay,
    "stubborn": bombs.stubborn,
}

# Made in a forked child, whose death is part of the answer.
APART: dict[str, Callable[..., str]] = {
    "ask-name": world.ask_name,
    "call": calls.call,
    "chmod": files.chmod,
    "connect": world.connect,
    "control-sockets": world.control_sockets,
    "core": files.core,
    "cpu": bombs.cpu,
    "fill": bombs.fill,
    "fork": lambda: "done",
    "forks": bombs.forks,
    "inodes": bombs.inodes,
    "int80": calls.int80,
    "interfaces": world.interfaces,
    "leave": files.leave,
    "many-descriptors": bombs.descriptors,
    "other-families": world.other_families,
    "read": world.read,
    "remove": files.remove,
    "run-from": files.run_from,
    "run-set-id": files.run_set_id,
    "search": world.search,
    "sparse": bombs.sparse,
    "status": world.status,
    "threads": bombs.threads,
    "touch": files.touch,
    "write": files.write,
}


def attempt(act: str, words: list[str]) -> str:
    """What was seen."""
    if act in HERE:
        return told(lambda: HERE[act](*words) or "done")
    return told(lambda: in_child(lambda: APART[act](*words)))


def main(listed: str) -> None:
    """Attempt all, in order."""
    for probe, act, *words in json.loads(listed):
        line = json.dumps({"probe": probe, "seen": attempt(act, words)})
        os.write(1, line.encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1])
