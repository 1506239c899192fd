"""What a guest leaves or brings: its outputs as they are harvested, images as they are loaded, models as they are unpacked."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from agent.domain.ids import digest_of
from agent.errors import BadImage, BadOutput
from agent.pipeline.outputs import inspect, read_performance, unpack
from agent.ports.runtime import Mount
from agent.selftest import archives
from agent.selftest.probe import Probe
from agent.selftest.stage import CEILINGS, MIB, Stage, attempts_of

HARVESTED = replace(CEILINGS, output_bytes=8 * MIB, output_files=200)
DATASET = "dataset"


def outputs(stage: Stage, probes: Sequence[Probe]) -> Mapping[str, str]:
    """Left in a folder each by one run; then each folder is taken back and judged as a task's outputs are."""
    model = _folders(stage, "outputs/model", probes)
    mounts = (Mount(model, "/data/model", is_writable=True),)
    run = stage.run(stage.spec("outputs", attempts_of(probes), mounts=mounts, ceilings=HARVESTED))
    seen = {}
    for probe in probes:
        left = run.seen(probe)
        if (
            left != "done"
        ):  # the cage kept the guest from it: the host leaves it in its place, for the harvest to judge
            left = _plant(model / probe.name, probe.act[-1])
        seen[probe.name] = _harvested(stage, model / probe.name, probe) if left == "done" else left
    return seen


def filler(stage: Stage, probes: Sequence[Probe]) -> Mapping[str, str]:
    """A run for each, which may be ended for what it writes; what is left is judged otherwise."""
    seen = {}
    for probe in probes:
        model = _folders(stage, f"filler/{probe.name}", [probe])
        mounts = (Mount(model, "/data/model", is_writable=True),)
        run = stage.run(stage.spec(probe.name, attempts_of([probe]), mounts=mounts, ceilings=HARVESTED))
        cause = run.outcome.cause
        if cause is not None:
            seen[probe.name] = f"refused: the run ended with {cause}"
        else:
            seen[probe.name] = _harvested(stage, model / probe.name, probe)
    return seen


def _folders(stage: Stage, name: str, probes: Sequence[Probe]) -> Path:
    model = stage.writable(name)
    for probe in probes:
        stage.writable(f"{name}/{probe.name}")
    return model


def _plant(folder: Path, what: str) -> str:
    """What a guest could not make: a fifo, and the one device that anybody may."""
    try:
        match what:
            case "fifo":
                os.mkfifo(folder / "model")
            case "device":
                os.mknod(folder / "model", 0o020600, os.makedev(0, 0))
            case _:
                return "the guest could not leave it"
    except OSError as error:
        return f"refused: nobody can make a {what} here ({error.strerror})"
    return "done"


def _harvested(stage: Stage, folder: Path, probe: Probe) -> str:
    try:
        stage.runtime.reclaim(folder)
        if probe.act[-1].startswith("performance:"):
            told = read_performance(folder, frozenset({DATASET}), HARVESTED)
            return f"taken: {told.perf}"
        names = inspect(folder, HARVESTED)
    except BadOutput as refusal:
        return _refused(refusal)
    return f"taken: {len(names)} file{'s' * (len(names) != 1)}"


def _refused(refusal: BadImage | BadOutput) -> str:
    """Why, with the words that are the guest's own: this guest is ours, and they carry no data."""
    own = refusal.seen if isinstance(refusal, BadOutput) else ""
    return f"refused: {refusal}" + (f" ({own})" if own else "")


# ------------------------------------------------------------------ archives


def images(stage: Stage, probes: Sequence[Probe]) -> Mapping[str, str]:
    """Archives as the owner of an image could send them, given to the runtime."""
    return _judged(stage, probes, archives.IMAGES, lambda path: _load(stage, path))


def _load(stage: Stage, archive: Path) -> None:
    stage.runtime.load(archive, digest_of(archive.read_bytes()))


def models(stage: Stage, probes: Sequence[Probe]) -> Mapping[str, str]:
    """Archives as another agent could send them, unpacked for the next task."""

    def take(archive: Path) -> None:
        folder = archive.with_suffix(".d") / "model"
        folder.mkdir(parents=True)
        unpack(archive, folder, HARVESTED)

    return _judged(stage, probes, archives.MODELS, take)


def _judged(
    stage: Stage,
    probes: Sequence[Probe],
    made: Mapping[str, Callable[[], bytes]],
    take: Callable[[Path], None],
) -> dict[str, str]:
    seen = {}
    for probe in probes:
        archive = stage.folder / f"{probe.name}.tar"
        archive.write_bytes(made[probe.name]())
        try:
            take(archive)
            seen[probe.name] = "taken"
        except (BadImage, BadOutput) as refusal:
            seen[probe.name] = _refused(refusal)
        finally:
            with suppress(FileNotFoundError):
                archive.unlink()
    return seen
