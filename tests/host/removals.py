"""A test-only cage: one protection taken away at a time, and which probes of the self-test must then go red.

What reads the cage back is switched off too, else it would refuse the run. A removal is written for each runtime in the form
that this one turns the cage into: Podman's create body is changed here. Another runtime plugs in with a Form of its own.
"""

import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agent.domain.ceilings import Ceilings
from agent.pipeline import outputs
from agent.ports import cage, cage_check, run_end, runtime_podman, runtime_podman_body
from agent.ports.run_log import RunLog
from agent.ports.run_watch import RunWatch
from agent.selftest import leavings
from agent.selftest.probes import PROBES

Document = dict[str, Any]
Change = Callable[[Document], Document]
Patch = Callable[[pytest.MonkeyPatch], None]

MIB = 1 << 20


@dataclass(frozen=True)
class Removal:
    """One protection gone. `changes`: by runtime, what is done to its form of the cage; `patch`: what is done to the agent.

    `reds`: the probes that must not hold then.
    """

    reds: frozenset[str]
    changes: Mapping[str, Change] = field(default_factory=dict)
    patch: Patch | None = None

    def apply(self, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take it away until the test is over."""
        if runtime in self.changes:
            FORMS[runtime](self.changes[runtime], monkeypatch)
        if self.patch is not None:
            self.patch(monkeypatch)


def podman_form(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    """Podman's create body, changed, and nobody who reads it back."""
    honest = runtime_podman_body.create_body
    monkeypatch.setattr(runtime_podman_body, "create_body", lambda *args: change(honest(*args)))
    monkeypatch.setattr(cage_check, "config_differences", lambda *_: [])
    monkeypatch.setattr(cage_check, "process_differences", lambda *_: [])
    monkeypatch.setattr(runtime_podman, "_await_filter", lambda _: None)


FORMS: dict[str, Callable[[Change, pytest.MonkeyPatch], None]] = {"podman": podman_form}

# ------------------------------------------------------------------ changes of Podman's create body


def parts(**parts: Any) -> Mapping[str, Change]:
    """These parts of the body, instead of what stood there."""
    return {"podman": lambda body: body | parts}


def mounts(change: Callable[[Document], Document]) -> Mapping[str, Change]:
    """Each mount, changed."""
    return {"podman": lambda body: body | {"mounts": [change(mount) for mount in body["mounts"]]}}


def more(*added: tuple[str, str]) -> Mapping[str, Change]:
    """(source, target) mounted too."""
    extra = [
        {"destination": target, "type": "bind", "source": source, "options": ["rbind", "rw"]}
        for source, target in added
    ]
    return {"podman": lambda body: body | {"mounts": [*body["mounts"], *extra]}}


def options(mount: Document, *, drop: str = "", add: str = "") -> Document:
    """The mount with one of its options another."""
    kept = [one for one in mount["options"] if one != drop and not (add and one.startswith(add[:5]))]
    return mount | {"options": [*kept, add] if add else kept}


UNCONFINED = {"seccomp_profile_path": "unconfined"}
HOST_NETWORK = {"netns": {"nsmode": "host"}}
ROOT = {"user": "0:0"}


def shared_memory(mount: Document) -> Document:
    """/tmp and /dev/shm in common with everybody."""
    if mount["type"] != "tmpfs":
        return mount
    folder = Path("/dev/shm/dcc-shared") / mount["destination"].strip("/")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    return {
        "destination": mount["destination"],
        "type": "bind",
        "source": str(folder),
        "options": ["bind", "rw"],
    }


# ------------------------------------------------------------------ changes of the agent itself


def no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunWatch, "_watch", lambda _: None)


def one_id_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_podman.PodmanRuntime, "_free_map", lambda _, pool: pool[0])


def long_log(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = RunLog.__init__
    monkeypatch.setattr(RunLog, "__init__", lambda self, limit_bytes: honest(self, limit_bytes * 16))


def long_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.ports.container_run import ContainerRun

    honest = ContainerRun.start
    monkeypatch.setattr(
        ContainerRun, "start", lambda self, cage, wall_s, *rest: honest(self, cage, wall_s * 60, *rest)
    )


def engine_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Believe the engine's code, which tells a death by signal n as 128 + n."""
    patch_end(monkeypatch, run_end.end_of_engine_code)


def codes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every end for an exit code."""
    patch_end(monkeypatch, lambda code: run_end.End(code=code))


def patch_end(monkeypatch: pytest.MonkeyPatch, end: Callable[[int | None], run_end.End]) -> None:
    monkeypatch.setattr(run_end, "end_of", lambda _pidfd, code, **_: end(code))


def any_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take whatever kind of file, under whatever name, however deep."""
    monkeypatch.setattr(outputs, "_check_file", lambda *_: None)
    monkeypatch.setattr(outputs, "_check_name", lambda *_: None)
    monkeypatch.setattr(outputs, "MAX_DEPTH", 1000)
    monkeypatch.setattr(cage, "judge_reclaimed", lambda _: None)


def any_amount(monkeypatch: pytest.MonkeyPatch) -> None:
    no_watch(monkeypatch)
    honest = outputs.inspect

    def inspect(folder: Path, ceilings: Ceilings) -> tuple[str, ...]:
        return honest(folder, replace(ceilings, output_files=1 << 30, output_bytes=1 << 40))

    monkeypatch.setattr(leavings, "inspect", inspect)


def any_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read a score as a careless program would."""

    def read(folder: Path, *_: Any) -> outputs.Performance:
        try:
            return outputs.Performance(json.loads((folder / "performance.json").read_text())["perf"])
        except RecursionError:
            return outputs.Performance(0.0)

    monkeypatch.setattr(leavings, "read_performance", read)


def nothing_reclaimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a guest's files as they are."""
    honest = runtime_podman.PodmanRuntime.reclaim

    def reclaim(self: runtime_podman.PodmanRuntime, folder: Path) -> None:
        if folder.name != "output-closed":
            honest(self, folder)

    monkeypatch.setattr(runtime_podman.PodmanRuntime, "reclaim", reclaim)


def any_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every image without a look, and spare the engine."""
    monkeypatch.setattr(leavings, "_load", lambda *_: None)


def any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpack a model as a careless program would."""

    def unpack(archive: Path, folder: Path, _: Ceilings) -> None:
        with tarfile.open(archive) as tar:
            for member in tar:
                if (
                    member.isreg() and member.size < MIB
                ):  # what would fill the disk or needs root, a test leaves out
                    tar.extract(member, folder, filter="fully_trusted")

    monkeypatch.setattr(leavings, "unpack", unpack)


# ------------------------------------------------------------------ the matrix


def names(*prefixes: str, scene: str | None = None, act: str | None = None) -> frozenset[str]:
    """Probes by the beginning of their name, their scene or their act."""
    return frozenset(
        probe.name
        for probe in PROBES
        if (prefixes and probe.name.startswith(prefixes))
        or (scene is not None and probe.scene == scene)
        or (act is not None and probe.act[:1] == (act,))
    )


CALLS = names(act="call") | names(act="call-here") | {"int80"}
FAMILIES = names("family-", "socketpair-", "predict-unix", "predict-inet", "problem-unix", "problem-inet")

REMOVALS: dict[str, Removal] = {}
CANNOT: dict[str, str] = {}
