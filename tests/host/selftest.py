"""The self-test on real runtimes, whole or with a protection taken away."""

import shutil
from pathlib import Path

import pytest

from agent.cli.out import clean
from agent.ports.runtime import Runtime
from agent.selftest.suite import Finding, probe
from tests.host.podman import image_cache
from tests.host.removals import REMOVALS, SHARED


def found(runtime: Runtime, workspaces: Path, *, is_quick: bool = False) -> list[Finding]:
    """What the self-test finds."""
    return list(
        probe(runtime, root=workspaces, cache=image_cache() / "selftest", show=shown, is_quick=is_quick)
    )


def found_without(
    removal: str, runtime: Runtime, workspaces: Path, monkeypatch: pytest.MonkeyPatch
) -> list[Finding]:
    """What it finds of the probes that must go red, while this protection is gone."""
    gone = REMOVALS[removal]
    gone.apply(runtime.name, monkeypatch)
    show = str if removal == "cleaned text" else shown
    try:
        return list(
            probe(
                runtime,
                root=workspaces,
                cache=image_cache() / "selftest",
                show=show,
                only=lambda one: one.name in gone.reds,
            )
        )
    finally:
        monkeypatch.undo()
        shutil.rmtree(SHARED, ignore_errors=True)


def shown(text: str) -> str:
    """As the command line shows what a guest says."""
    return clean(text, keeps_lines=True)
