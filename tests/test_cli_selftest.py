"""`dc-compute selftest`: what it prints and with which code it ends, on a container engine in memory.

Its guests are Python functions, which say what they are told to have seen. The real cage: tests/host/test_selftest.py.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import wiring
from agent.cli import run
from agent.selftest.image import guest_image
from agent.selftest.probe import Probe, Scene
from agent.selftest.probes import PROBES
from tests.fakes.runtime import Guest, MemoryRuntime

OK, FAILED, USAGE = 0, 1, 2
INSIDE = {probe.name: probe for probe in PROBES if probe.scene is Scene.INSIDE}
PROGRAM = "agent.selftest"  # how the engine in memory calls the entry point agent.selftest.guest
KEYS = {"runtime", "probe", "expected", "seen", "held"}


def saying(seen: Callable[[Probe], str], absent: tuple[str, ...] = ()) -> MemoryRuntime:
    """A runtime whose guest saw this, attempt by attempt."""

    def guest(guest: Guest) -> None:
        for name, act, *_ in json.loads(guest.args[0]):
            if name in INSIDE:
                guest.say(json.dumps({"probe": name, "seen": seen(INSIDE[name])}))
            if act == "stay":
                guest.say("progress: 1")
                guest.sleep(60)

    return MemoryRuntime({PROGRAM: guest}, absent=absent)


@pytest.fixture(scope="module")
def guest_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The guest's image, made once."""
    folder = tmp_path_factory.mktemp("guest")
    guest_image(folder)
    return folder


@pytest.fixture
def selftest(
    guest_cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """The command of an agent that has these runtimes: code, output, errors."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "240")
    home = str(tmp_path / "home")
    assert run(["--home", home, "init"]) == OK
    shutil.copytree(guest_cache, tmp_path / "home/data/selftest", copy_function=os.link)

    def call(*words: str, runtimes: tuple[MemoryRuntime, ...]) -> tuple[int, str, str]:
        monkeypatch.setattr(wiring, "runtimes", lambda *_: runtimes)
        capfd.readouterr()
        code = run(["--home", home, "selftest", *words])
        told = capfd.readouterr()
        return code, told.out, told.err

    return call


def test_an_attempt_that_succeeds_ends_in_1_and_json_says_which(selftest: Any) -> None:
    seen = {"mount": "done"}
    runtime = saying(lambda probe: seen.get(probe.name, probe.expected))

    code, out, _ = selftest("--json", "--quick", runtimes=(runtime,))

    told = {finding["probe"]: finding for finding in json.loads(out)["probes"]}
    assert code == FAILED
    assert all(finding.keys() == KEYS for finding in told.values())
    assert told["mount"] == {
        "runtime": runtime.name,
        "probe": "mount",
        "expected": "killed by SIGSYS",
        "seen": "done",
        "held": False,
    }
    assert told["unshare"]["held"] is True
    assert len(told) >= 60


def test_the_table_says_what_was_attempted_what_must_happen_and_what_happened(selftest: Any) -> None:
    runtime = saying(lambda probe: "\x1b[2Jdone" if probe.name == "mount" else probe.expected)

    code, out, _ = selftest("--quick", runtimes=(runtime,))

    row = next(line for line in out.splitlines() if "mount a file system" in line)
    assert code == FAILED
    assert "killed by SIGSYS" in row
    assert "\\x1b[2Jdone" in row
    assert row.rstrip().endswith("NO")
    assert "\x1b" not in out
    assert f"{runtime.name}: " in out.splitlines()[-1]


def test_a_runtime_that_does_not_answer_is_a_line_too(selftest: Any) -> None:
    runtime = saying(lambda probe: probe.expected)
    runtime.is_down = True

    code, out, _ = selftest("--json", runtimes=(runtime,))

    (finding,) = json.loads(out)["probes"]
    assert code == FAILED
    assert (finding["probe"], finding["held"]) == ("runtime", False)
    assert "does not answer" in finding["seen"]


def test_a_ceiling_that_is_absent_is_named_in_the_table(selftest: Any) -> None:
    runtime = saying(lambda probe: probe.expected, absent=("cpu_millis",))

    _, out, _ = selftest("--quick", runtimes=(runtime,))

    row = next(line for line in out.splitlines() if "ceiling half a CPU" in line)
    assert "named absent: cpu_millis" in row
    assert row.rstrip().endswith("absent")


def test_one_runtime_is_chosen_by_its_name(selftest: Any) -> None:
    one, other = saying(lambda probe: probe.expected), saying(lambda probe: probe.expected)
    other.name = "other"

    _, out, _ = selftest("--json", "--quick", "--runtime", "other", runtimes=(one, other))
    code, _, err = selftest("--runtime", "none", runtimes=(one, other))

    assert {finding["runtime"] for finding in json.loads(out)["probes"]} == {"other"}
    assert one.specs == []
    assert code == USAGE
    assert "this host has" in err


def test_nothing_is_left_in_the_workspaces(selftest: Any, tmp_path: Path) -> None:
    runtime = saying(lambda probe: probe.expected)

    selftest("--quick", runtimes=(runtime,))

    (root,) = tmp_path.glob("dc-compute*/work")
    assert list(root.iterdir()) == []
    assert runtime.leftovers() == ()
