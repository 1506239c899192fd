"""An agent, its helper or conmon dies at any moment of a run on runc: all of it is found and removed, and its name is free."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from agent.errors import CageNotApplied, RuntimeUnavailable
from agent.ports import runtime_runc_frames, user_namespace
from agent.ports.process_times import seconds_since
from agent.ports.runtime_runc import RuncRuntime
from agent.ports.runtime_runc_programs import Programs
from agent.ports.runtime_runc_runs import Known
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
if moment == "made ahead":
    with runtime.framed(desk.spec("sleep", "600", name="orphan")):
        runtime._frames.take("orphan")  # once it is made
        die()
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
    "made ahead",
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


# ------------------------------------------------------------------ made ahead of its run


def made_of(runtime: RuncRuntime, name: str) -> Known:
    """What is noted of one that is being made ahead, once it is made."""
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        known = runtime._runs.read(runtime._runs.folder_of(name))
        if known is not None and known.pid:
            return known
        time.sleep(0.01)
    raise AssertionError(f"{name} was not made")


def note_of(runtime: RuncRuntime, name: str) -> Known:
    known = runtime._runs.read(runtime._runs.folder_of(name))
    assert known is not None
    return known


def test_a_run_takes_the_very_container_that_was_made_ahead_and_its_clock_begins_with_it(
    runc_desk: Desk,
) -> None:
    runtime = runc_desk.runtime
    assert isinstance(runtime, RuncRuntime)
    spec = runc_desk.spec("sleep", "60", name="ahead")

    with runtime.framed(spec):
        ahead = made_of(runtime, "ahead")
        threading.Event().wait(1.5)
        with runtime.run(spec):
            taken = note_of(runtime, "ahead")

            assert (taken.mark, taken.pid) == (ahead.mark, ahead.pid)
            assert seconds_since(taken.began) >= 1.5
            assert taken.age_s() < 1.4

    assert traces(runtime, "ahead") == []


def old(monkeypatch: pytest.MonkeyPatch, _runtime: RuncRuntime, _pid: int) -> None:
    monkeypatch.setattr(runtime_runc_frames, "FRESH_S", 0.0)


def ended(_monkeypatch: pytest.MonkeyPatch, _runtime: RuncRuntime, pid: int) -> None:
    pidfd = os.pidfd_open(pid)
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    select.select([pidfd], [], [], 10)
    os.close(pidfd)


def helper_died(_monkeypatch: pytest.MonkeyPatch, runtime: RuncRuntime, _pid: int) -> None:
    assert runtime._inside._process is not None
    runtime._inside._process.kill()
    runtime._inside._process.wait()


@pytest.mark.parametrize("what", [old, ended, helper_died])
def test_one_that_waited_too_long_or_is_not_whole_any_more_is_made_anew(
    runc_desk: Desk,
    monkeypatch: pytest.MonkeyPatch,
    what: Callable[[pytest.MonkeyPatch, RuncRuntime, int], None],
) -> None:
    runtime = runc_desk.runtime
    assert isinstance(runtime, RuncRuntime)
    spec = runc_desk.spec("exit", "0", name="ahead")

    with runtime.framed(spec):
        ahead = made_of(runtime, "ahead")
        what(monkeypatch, runtime, ahead.pid)
        with runtime.run(spec) as run:
            taken = note_of(runtime, "ahead")
            outcome = run.wait()

    assert outcome.cause is None
    assert taken.mark != ahead.mark
    assert settle(runtime, "ahead") == []


def test_what_was_changed_in_one_that_was_made_ahead_is_seen_before_its_program_begins(
    runc_desk: Desk,
) -> None:
    """The look is at the start, not when it is made: here its folder is not the one that is mounted any more."""
    output = runc_desk.output()
    spec = runc_desk.spec("write", f"{output.target}/ran", "", name="ahead", mounts=(output,))

    runtime = runc_desk.runtime
    assert isinstance(runtime, RuncRuntime)

    with runtime.framed(spec):
        made_of(runtime, "ahead")
        output.source.rename(output.source.with_name("elsewhere"))
        output.source.mkdir()
        with pytest.raises(CageNotApplied, match="another folder"), runc_desk.runtime.run(spec):
            pass

    assert list(output.source.with_name("elsewhere").iterdir()) == []


def test_no_place_is_waited_for_to_make_one_ahead(runc_desk: Desk) -> None:
    runtime = runc_desk.runtime
    assert isinstance(runtime, RuncRuntime)

    with ExitStack() as stack:
        for number in range(runtime._pool_size):
            stack.enter_context(runtime.framed(runc_desk.spec("exit", "0", name=f"one-{number}")))
            made_of(runtime, f"one-{number}")
        with runtime.framed(runc_desk.spec(name="more")):
            assert runtime._frames.take("more") is None

    assert runtime.leftovers() == ()
