"""The suite: every probe of a runtime, or its quick part, made and judged.

    for finding in probe(runtime, root=settings.workspace.root, cache=settings.paths.data / "selftest"): ...

A probe that does not hold is an attempt that succeeded, or one of whose outcome nobody can tell.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from agent.errors import AgentError, BadImage, CageNotApplied
from agent.pipeline.trials import trial
from agent.ports.runtime import Enforcement, Runtime, runs_outputs
from agent.selftest.image import guest_image
from agent.selftest.probe import Probe, Scene
from agent.selftest.probes import PROBES
from agent.selftest.probes_runs import TMP_FILES
from agent.selftest.scenes import SCENES
from agent.selftest.stage import Stage

ABSENT = "named absent"
RUN_FROM_OUTPUT = "run-from-output"
EXACT_ENDS_SINCE = (6, 15)  # Linux: PIDFD_GET_INFO tells an exit code from a signal
NOT_TOLD_APART = {"exit-137": "signal:9", "exit-139": "signal:11", "exit-159": "seccomp"}


class Finding(Struct, frozen=True):
    """One probe of one runtime: what must be seen, what was seen, and whether that holds."""

    runtime: str
    probe: str
    expected: str
    seen: str
    held: bool


def probe(
    runtime: Runtime,
    *,
    root: Path,
    cache: Path,
    show: Callable[[str], str] = repr,
    is_quick: bool = False,
    only: Callable[[Probe], bool] = lambda _: True,
) -> Iterator[Finding]:
    """The findings of this runtime, scene by scene, as they come. Nothing is left behind.

    `root`: the workspaces' folder, in memory; `cache`: where the guest's image stays; `show`: how the operator is shown what
    a guest says. Raises: RuntimeUnavailable, NoSpace, CageNotApplied when the engine can hold no cage at all.
    """
    enforcement = runtime.enforcement()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    archive, digest = guest_image(cache)
    runtime.load(archive, digest)
    probes = [one for one in PROBES if only(one) and (one.is_quick or not is_quick)]
    with trial(root, runtime) as folder:
        stage = Stage(runtime, enforcement, digest, folder, show)
        for scene in Scene:
            wanted = [_on_this_host(one, enforcement) for one in probes if one.scene is scene]
            if wanted:
                yield from _findings(stage, scene, wanted)


def _findings(stage: Stage, scene: Scene, probes: list[Probe]) -> Iterator[Finding]:
    try:
        seen = SCENES[scene](stage, probes)
    except (CageNotApplied, BadImage) as error:
        seen = {one.name: f"{error.code}: {error.detail}" for one in probes}
    for one in probes:
        yield Finding(stage.runtime.name, one.name, one.expected, seen[one.name], one.holds(seen[one.name]))


def not_tried(runtime: Runtime, error: AgentError) -> Finding:
    """The finding of a runtime in which attempts cannot be made."""
    return Finding(runtime.name, "runtime", "it answers", f"{error.code}: {error.detail}", held=False)


def attempt_of(finding: Finding) -> str:
    """In words, what was attempted."""
    return next((one.attempt for one in PROBES if one.name == finding.probe), "run a container")


def is_named_absent(finding: Finding) -> bool:
    """Whether nothing on this host enforces the ceiling that it ran against."""
    return finding.expected.startswith(ABSENT)


def _on_this_host(one: Probe, enforcement: Enforcement) -> Probe:
    """The probe as it can hold here: what this host cannot do is named in what is expected, and only there."""
    if one.name in NOT_TOLD_APART and _kernel() < EXACT_ENDS_SINCE:
        other = NOT_TOLD_APART[one.name]
        words = f"{one.expected} or {other}: before Linux 6.15 nobody can tell them apart"
        return replace(one, expected=words, pattern=f"{re.escape(one.expected)}|{re.escape(other)}")
    if one.ceiling == TMP_FILES and "inodes" not in enforcement.means.get("tmp_bytes", ""):
        return replace(one, expected=f"{ABSENT}: this engine sets no number of files", pattern=".*")
    if one.name == RUN_FROM_OUTPUT and runs_outputs(enforcement.version):
        return replace(one, expected=f"{ABSENT}: crun leaves noexec out of writable binds", pattern=".*")
    if one.ceiling in enforcement.absent:
        stand_in = enforcement.means.get(one.ceiling)
        if stand_in is None:
            return replace(one, expected=f"{ABSENT}: {one.ceiling}", pattern=".*")
        words = f"{ABSENT}: {one.ceiling}; {stand_in} stands in: exit:12 or oom"
        return replace(one, expected=words, pattern="exit:12|oom")
    return one


def _kernel(release: str | None = None) -> tuple[int, ...]:
    """(6, 18) of "6.18.44-generic"."""
    numbers = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    return tuple(map(int, numbers.groups())) if numbers else (0, 0)
