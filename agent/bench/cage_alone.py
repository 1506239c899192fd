"""A no-op image's run by itself, from its RunSpec to its outcome: the part of a task that is the cage's own.

Under each runtime beside what is there without an agent: bare `runc run`, and `podman run --rm`.
"""

import itertools
import time
from collections.abc import Callable
from pathlib import Path

from agent.bench.bare import BarePodman, BareRunc, default_network, unpacked
from agent.bench.engines import engines, podman_name, podman_program, runtime_of
from agent.bench.figures import Bench, Measured, Row, beyond, interleaved
from agent.bench.images import BARE_WORDS, noop_image
from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest
from agent.ports.runtime import Mount, RunKind, RunOutcome, RunSpec, Runtime

PART = "cage"
MOST_ROUNDS = 15
BASES = {"runc": "bare runc run", "podman": "podman run --rm"}


def measure_alone(bench: Bench, socket: Path, ceilings: Ceilings) -> Measured:
    """The rows, and by how many milliseconds each runtime's run is longer than what is there without an agent."""
    archive, digest = noop_image()
    sides: dict[str, Callable[[], float]] = {}
    for engine, section in engines(socket).items():
        runtime = runtime_of(section)
        runtime.load(archive, digest)
        sides[side_of(engine)] = run_of(runtime, digest, bench.memory / engine, ceilings)
    podman = podman_program(socket)
    sides[BASES["podman"]] = BarePodman(podman, podman_name(podman, digest), network=default_network()).run
    if side_of("runc") in sides:
        root = unpacked(archive, digest, bench.memory / "root")
        sides[BASES["runc"]] = BareRunc(bench.memory, root, BARE_WORDS).run
    interleaved(1, sides)  # the first run of an image is another one's: it copies, it unpacks
    samples = interleaved(min(bench.rounds, MOST_ROUNDS), sides)
    rows = [
        Row(part=PART, name=name, unit="s", samples=mine, baseline=base_of(name))
        for name, mine in samples.items()
    ]
    found = {
        f"run_{engine}_over_bare_ms": 1000 * beyond(samples[side_of(engine)], samples[base])
        for engine, base in BASES.items()
        if side_of(engine) in samples
    }
    return Measured(rows=tuple(rows), figures=found)


def side_of(engine: str) -> str:
    """The name of a runtime's row."""
    return f"no-op run ({engine})"


def base_of(name: str) -> str | None:
    """The baseline of a row, None for one that is a baseline itself."""
    return next((base for engine, base in BASES.items() if name == side_of(engine)), None)


def run_of(runtime: Runtime, digest: Digest, place: Path, ceilings: Ceilings) -> Callable[[], float]:
    """Seconds of a training that leaves an empty model: made, looked at, let go, awaited, and its files taken back."""
    numbers = itertools.count()
    place.mkdir(mode=0o711)

    def run() -> float:
        model = place / f"model-{next(numbers)}"
        model.mkdir()
        model.chmod(0o777)
        began_s = time.perf_counter()
        caged_run(
            runtime,
            digest,
            f"bench-alone-{model.name}",
            args=("-V", "/data", "-T", "train"),
            mounts=(Mount(model, "/data/model", is_writable=True),),
            ceilings=ceilings,
        )
        runtime.reclaim(model)
        seconds = time.perf_counter() - began_s
        runtime.leftovers()  # waits for what Podman still takes away: it is not to be in the next one's time
        return seconds

    return run


def caged_run(
    runtime: Runtime,
    digest: Digest,
    name: str,
    *,
    args: tuple[str, ...],
    mounts: tuple[Mount, ...],
    ceilings: Ceilings,
) -> RunOutcome:
    """A training as a worker runs it. Raises: RuntimeError when the guest did not end well."""
    spec = RunSpec(
        name=name,
        labels={"job": "bench.0"},
        image=digest,
        kind=RunKind.TRAIN,
        args=args,
        mounts=mounts,
        ceilings=ceilings,
        accept_missing=frozenset({"cpu_millis", "memory_bytes"}),
    )
    with runtime.run(spec) as running:
        outcome = running.wait()
    if outcome.cause is not None:
        raise RuntimeError(f"the guest ended as {outcome.cause}: {outcome.log.decode(errors='replace')}")
    return outcome
