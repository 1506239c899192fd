"""The self-test in the real cages of this host, and a few of its protections taken away; all of them: slow/."""

import os
from pathlib import Path

import pytest

from agent.ports.runtime import Runtime
from agent.selftest.probes import PROBES
from tests.host.removals import CANNOT_UNDER, REMOVALS
from tests.host.selftest import found, found_without

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]


def test_every_attempt_fails_in_the_real_cage_and_nothing_is_left(runtime: Runtime, workspaces: Path) -> None:
    before = in_shared_memory()

    findings = found(runtime, workspaces)

    assert [finding for finding in findings if not finding.held] == []
    assert [finding.probe for finding in findings] == sorted_as_run([probe.name for probe in PROBES])
    assert runtime.leftovers() == ()
    assert os.listdir(workspaces) == []
    assert in_shared_memory() <= before


def test_what_a_worker_tries_at_its_start_holds(runtime: Runtime, workspaces: Path) -> None:
    findings = found(runtime, workspaces, is_quick=True)

    assert [finding for finding in findings if not finding.held] == []
    assert {finding.probe for finding in findings} == {probe.name for probe in PROBES if probe.is_quick}


def in_shared_memory() -> set[str]:
    """What ids of guests own in the host's /dev/shm; tests beside this one own the rest."""
    with os.scandir("/dev/shm") as entries:
        return {one.name for one in entries if one.stat(follow_symlinks=False).st_uid not in (0, os.getuid())}


def sorted_as_run(names: list[str]) -> list[str]:
    """The probes' names, scene by scene."""
    scenes = {probe.name: list(type(probe.scene)).index(probe.scene) for probe in PROBES}
    return sorted(names, key=lambda name: scenes[name])


# One of each sort; the others are alike.
SOME = (
    "seccomp",
    "process namespace",
    "read-only inputs",
    "sizes of tmpfs",
    "kinds of files",
)


@pytest.mark.parametrize("removal", SOME)
def test_a_probe_goes_red_when_its_protection_is_taken_away(
    runtime: Runtime, removal: str, workspaces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = found_without(removal, runtime, workspaces, monkeypatch)

    held = {finding.probe for finding in findings if finding.held}
    assert held == {probe for name, probe in CANNOT_UNDER if name == runtime.name} & held
    assert {finding.probe for finding in findings} == REMOVALS[removal].reds
