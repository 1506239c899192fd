"""An agent, its helper or conmon dies at any moment of a run on runc: all of it is found and removed, and its name is free."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.errors import RuntimeUnavailable
from agent.ports import user_namespace
from agent.ports.runtime_runc import RuncRuntime
from agent.ports.runtime_runc_programs import Programs
from tests.host.podman import Desk

pytestmark = pytest.mark.host

# An agent that dies at a moment of its own choice.
AGENT = """
import json, os, signal, sys
from pathlib import Path
from agent.domain.ids import Digest
from agent.ports import user_namespace
from agent.ports.runtime_runc_programs import Programs
from agent.ports.runtime_runc_runs import Runs
from tests.host.podman import Desk, runc_runtime

def die(*_words, **_more):
    os.kill(os.getpid(), signal.SIGKILL)

def after(honest):
    def act(*words, **more):
        honest(*words, **more)
        die()
    return act

moment, place, instance, image, root = sys.argv[1:]
runtime = runc_runtime(Path(place), instance)
runtime._inside.stage  # it is there
if moment == "folder made":
    Runs._write = die
elif moment == "claimed":
    Runs.claim = after(Runs.claim)
elif moment == "set up":
    RuncRuntime = type(runtime)
    RuncRuntime._set_up = after(RuncRuntime._set_up)
elif moment.startswith("conmon asked for"):
    send = user_namespace._send
    def send_and_die(process, document):
        send(process, document)
        if document[0] == "monitor":
            if moment.endswith("and the helper too"):
                import time
                time.sleep(0.02)
                process.kill()
            die()
    user_namespace._send = send_and_die
elif moment == "made":
    Programs.create = after(Programs.create)
desk = Desk(runtime, Digest(image), Path(root))
with desk.runtime.run(desk.spec("sleep", "600", name="orphan")) as run:
    print("started", flush=True)
    if moment == "running":
        die()
    run.wait()
"""
MOMENTS = (
    "folder made",
    "claimed",
    "set up",
    "conmon asked for",
    "conmon asked for, and the helper too",
    "made",
    "running",
)


def dead_agent(desk: Desk, moment: str) -> RuncRuntime:
    """The runtime of an agent whose other process died at this moment of a run named "orphan"."""
    runtime = desk.runtime
    assert isinstance(runtime, RuncRuntime)
    place = runtime._runs._folder.parent.parent
    words = [moment, place, runtime._runs._instance, desk.image, desk.root]
    died = subprocess.run([sys.executable, "-c", AGENT, *map(str, words)], cwd=os.getcwd(), check=False)
    assert died.returncode == -signal.SIGKILL
    return runtime


def traces(runtime: RuncRuntime, name: str) -> list[str]:
    """Everything that still bears the run's mark."""
    folder = runtime._runs.folder_of(name)
    parent = runtime._cgroups.parent
    found = [str(path) for path in (folder, runtime._programs._root / folder.name) if path.exists()]
    found += [f"process {pid}" for pid in processes_of(folder.name)]
    if parent is not None:
        found += map(str, Path("/sys/fs/cgroup").glob(f"*{parent}/{folder.name}"))
    return found


def processes_of(mark: str) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (path / "cmdline").read_text() and int(path.name) != os.getpid():
                yield int(path.name)


def settle(runtime: RuncRuntime, name: str) -> list[str]:
    """The traces once nothing changes any more for a second."""
    deadline_s = time.monotonic() + 2
    while time.monotonic() < deadline_s:
        time.sleep(0.05)
    return traces(runtime, name)


@pytest.mark.parametrize("moment", MOMENTS)
def test_whatever_a_dead_agent_left_is_found_and_removed(runc_desk: Desk, moment: str) -> None:
    runtime = dead_agent(runc_desk, moment)

    for leftover in runtime.leftovers():
        runtime.remove(leftover.name)

    assert settle(runtime, "orphan") == []
    with runtime.run(runc_desk.spec("exit", "0", name="orphan")) as run:
        assert run.wait().cause is None
    assert traces(runtime, "orphan") == []


def test_a_run_whose_conmon_died_ends_unknown_and_leaves_nothing(
    runc_desk: Desk,
) -> None:
    runtime = runc_desk.runtime
    assert isinstance(runtime, RuncRuntime)

    with runtime.run(runc_desk.spec("sleep", "1", "+", "exit", "3", name="orphan")) as run:
        os.kill(monitor_of(runtime, "orphan"), signal.SIGKILL)
        outcome = run.wait()

    assert outcome.cause == "unknown"  # and not the guest's fault, whose streams broke
    assert settle(runtime, "orphan") == []


def monitor_of(runtime: RuncRuntime, name: str) -> int:
    known = runtime._runs.read(runtime._runs.folder_of(name))
    assert known is not None
    return known.monitor


def test_a_run_goes_on_while_the_helper_dies_and_leaves_nothing(runc_desk: Desk) -> None:
    runtime = runc_desk.runtime
    assert isinstance(runtime, RuncRuntime)
    mounts = (runc_desk.output(),)

    with runtime.run(runc_desk.spec("sleep", "1", "+", "exit", "3", name="orphan", mounts=mounts)) as run:
        process = runtime._inside._process
        assert process is not None
        process.kill()
        outcome = run.wait()

    assert outcome.cause == "exit:3"
    assert settle(runtime, "orphan") == []


def test_a_helper_that_dies_while_a_run_is_taken_away_is_followed_by_another(
    runc_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runc_desk.runtime
    assert isinstance(runtime, RuncRuntime)
    send = user_namespace._send
    killed: list[str] = []

    def send_and_kill(process: "subprocess.Popen[str]", document: object) -> None:
        send(process, document)
        if isinstance(document, list) and document[0] == "unstage_run" and not killed:
            process.kill()
            killed.append("unstage_run")

    with runtime.run(runc_desk.spec("exit", "0", name="orphan")) as run:
        assert run.wait().cause is None
        monkeypatch.setattr(user_namespace, "_send", send_and_kill)

    assert killed == ["unstage_run"]
    assert runtime.leftovers() == ()
    assert settle(runtime, "orphan") == []


def test_a_helper_that_dies_before_the_container_is_made_is_no_fault_of_the_cage(
    runc_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runc_desk.runtime
    assert isinstance(runtime, RuncRuntime)
    honest = Programs.create

    def create(self: Programs, *words: Any) -> int:
        assert runtime._inside._process is not None
        runtime._inside._process.kill()
        runtime._inside._process.wait()  # and with it goes what was set up in its namespace
        return honest(self, *words)

    monkeypatch.setattr(Programs, "create", create)

    with pytest.raises(RuntimeUnavailable), runtime.run(runc_desk.spec("exit", "0", name="orphan")):
        pass

    assert traces(runtime, "orphan") == []


def test_an_agent_that_died_while_conmon_did_too_leaves_nothing(runc_desk: Desk) -> None:
    runtime = dead_agent(runc_desk, "running")
    os.kill(monitor_of(runtime, "orphan"), signal.SIGKILL)

    for leftover in runtime.leftovers():
        assert leftover.is_running
        runtime.remove(leftover.name)

    assert settle(runtime, "orphan") == []
