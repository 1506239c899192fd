"""The scenes: each makes the attempts of its probes in real containers and tells what was seen, from inside and outside."""

import fcntl
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from agent.ports.runtime import Mount
from agent.selftest import leavings
from agent.selftest.image import GUEST_ENV
from agent.selftest.probe import Probe, Scene
from agent.selftest.stage import CEILINGS, MIB, Ended, Stage, attempts_of, await_progress, ended, lures

Seen = Mapping[str, str]

OWN_ENV = ("HOME", "HOSTNAME", "TMPDIR", "LC_CTYPE")  # the cage's, and Python's own where no locale is set
INPUT = b"x,y\n1,2\n"
LOG_BYTES = 64 << 10
SMALL = replace(CEILINGS, pids=24, open_files=64, tmp_bytes=4 * MIB, output_bytes=6 * MIB, cpu_millis=500)


def inside(stage: Stage, probes: Sequence[Probe]) -> Seen:
    """All of these in one training run, with the folders of one."""
    train, model = stage.writable("inside/train"), stage.writable("inside/model")
    (train / "input").write_bytes(INPUT)
    (train / "input").chmod(0o666)  # so that nothing but the mount protects it
    (train / "pred").mkdir(mode=0o755)
    mounts = (
        Mount(train, "/data/train"),
        Mount(stage.writable("inside/pred"), "/data/train/pred", is_writable=True),
        Mount(model, "/data/model", is_writable=True),
    )
    with lures(stage.folder.name) as doors:
        words = doors.words() | {
            "$env": [*GUEST_ENV, *OWN_ENV],
            "$host": _names_of_host(),
            "$mounts": [mount.target for mount in mounts],
        }
        run = stage.run(stage.spec("inside", attempts_of(probes, words), mounts=mounts))
        reached = doors.reached()
    seen = {probe.name: run.seen(probe) for probe in probes}
    for probe in probes:
        if reached & set(probe.act):
            seen[probe.name] = f"the host was reached: {seen[probe.name]}"
    if "input-kept" in seen:
        seen["input-kept"] = _kept(train, run)
    if seen.get("own-id") == "done":
        seen["own-id"] = _owner(model / "owned")
    return seen


def _names_of_host() -> list[str]:
    """What would tell a guest where it is, but for a name that every machine has."""
    return [name for name in (os.uname().nodename,) if name != "localhost"]


def _kept(train: Path, run: Ended) -> str:
    if run.outcome.cause is not None:
        return f"the run ended with {run.outcome.cause}"
    names = sorted(path.name for path in train.iterdir())
    is_kept = names == ["input", "pred"] and (train / "input").read_bytes() == INPUT
    return "as they were" if is_kept else f"changed: {', '.join(names)}"


def _owner(path: Path) -> str:
    """Whose file the guest made, as the host sees it."""
    is_own = path.lstat().st_uid in {os.getuid(), os.geteuid(), 0}
    return "the agent's own id" if is_own else "another id than the agent's"


def small(stage: Stage, probes: Sequence[Probe]) -> Seen:
    """All of these in one training run under small ceilings."""
    mounts = (Mount(stage.writable("small/model"), "/data/model", is_writable=True),)
    run = stage.run(stage.spec("small", attempts_of(probes), mounts=mounts, ceilings=SMALL))
    return {probe.name: run.seen(probe) for probe in probes}


def neighbours(stage: Stage, probes: Sequence[Probe]) -> Seen:
    """Beside a task that has secrets; then that one is killed."""
    token = secrets.token_hex(8)
    theirs = stage.writable("neighbours/model")
    (theirs / "secret").write_text(token)
    (theirs / "secret").chmod(0o666)
    mounts = (Mount(theirs, "/data/model", is_writable=True),)
    words = {"$token": [token], "$secret": [str(theirs / "secret")], "$neighbour": [f"secret-{token}"]}
    first = stage.spec("neighbour", [["ids", "id-map"], ["", "stay", token]], mounts=mounts)
    with stage.runtime.run(first) as neighbour:
        if not await_progress(neighbour):
            return {probe.name: "the other task did not start" for probe in probes}
        run = stage.run(stage.spec("intruder", attempts_of(probes, words)))
        neighbour.kill()
        other = ended(neighbour)
    seen = {probe.name: run.seen(probe) for probe in probes}
    if "neighbour-ids" in seen:
        seen["neighbour-ids"] = _overlap(other.said.get("ids", ""), seen["neighbour-ids"])
    if "killed" in seen:
        seen["killed"] = str(other.outcome.cause)
    return seen


def _overlap(one: str, other: str) -> str:
    """Whether two `begin count` have an id in common."""
    try:
        (first, count), (second, more) = (map(int, told.split()) for told in (one, other))
    except ValueError:
        return f"not told: {one!r} and {other!r}"
    is_apart = first + count <= second or second + more <= first
    return "disjoint" if is_apart else f"shared: {first}+{count} and {second}+{more}"


def ends(stage: Stage, probes: Sequence[Probe]) -> Seen:
    """A run for each: how it ends."""
    seen = {}
    for probe in probes:
        ceilings = replace(CEILINGS, wall_s=probe.wall_s)
        spec = stage.spec(probe.name, attempts_of([probe]), kind=probe.kind, ceilings=ceilings)
        seen[probe.name] = stage.run(spec).outcome.cause or "exit:0"
    return seen


def other_kind(stage: Stage, probes: Sequence[Probe]) -> Seen:
    """All of these in one run of their kind."""
    kind = probes[0].kind
    run = stage.run(stage.spec(kind.value, attempts_of(probes), kind=kind))
    return {probe.name: run.seen(probe) for probe in probes}


def daemon(stage: Stage, probes: Sequence[Probe]) -> Seen:
    """A process that was left behind holds a lock; whether it still does when the run is over."""
    model = stage.writable("daemon/model")
    lock = model / "lock"
    lock.touch()
    lock.chmod(0o666)
    run = stage.run(
        stage.spec("daemon", attempts_of(probes), mounts=(Mount(model, "/data/model", is_writable=True),))
    )
    with lock.open("rb+") as held:
        if held.read() != b"alive":
            return {probe.name: f"it never lived: {run.seen(probe)}" for probe in probes}
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return {probe.name: "alive" for probe in probes}
    return {probe.name: "gone" for probe in probes}


def flood(stage: Stage, probes: Sequence[Probe]) -> Seen:
    """A run for each, under a ceiling of the log."""
    seen = {}
    for probe in probes:
        spec = stage.spec(probe.name, attempts_of([probe]), ceilings=replace(CEILINGS, log_bytes=LOG_BYTES))
        with stage.runtime.run(spec) as run:
            outcome, progress = run.wait(), run.progress()
        if outcome.cause is not None:
            seen[probe.name] = f"the run ended with {outcome.cause}"
        elif probe.act == ("controls",):
            shown = stage.show(outcome.log.decode(errors="replace"))
            foreign = [mark for mark in shown if mark != "\n" and not mark.isprintable()]
            is_plain = "owned" in shown and not foreign
            seen[probe.name] = (
                "shown, not sent" if is_plain else f"{len(foreign)} control characters were sent"
            )
        else:
            kept = f"{probe.act[1]} MiB said, {len(outcome.log) >> 10} KiB kept"
            seen[probe.name] = kept if progress is None else f"{kept}, progress {progress}"
    return seen


SCENES: dict[Scene, Callable[[Stage, Sequence[Probe]], Seen]] = {
    Scene.INSIDE: inside,
    Scene.SMALL: small,
    Scene.NEIGHBOURS: neighbours,
    Scene.ENDS: ends,
    Scene.PREDICT: other_kind,
    Scene.PROBLEM: other_kind,
    Scene.DAEMON: daemon,
    Scene.FLOOD: flood,
    Scene.OUTPUTS: leavings.outputs,
    Scene.FILLER: leavings.filler,
    Scene.IMAGES: leavings.images,
    Scene.MODELS: leavings.models,
}
