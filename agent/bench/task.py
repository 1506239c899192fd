"""Part `task`: what a no-op learn task costs from the accepted order (202) to the acknowledged report, every real step on.

TLS, signatures, durable ledger, sealed input, shares from two orchestrators, cage, upload, receipt; beside it, in the same
rounds, bare rootless `runc run` and `podman run --rm` of the same image, and what a task is made of, each part alone.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from agent.bench.bare import BarePodman, BareRunc, default_network, network_notes, unpacked
from agent.bench.engines import engines, podman_engine, podman_name, podman_program, runtime_of
from agent.bench.figures import Bench, Measured, Row, beyond, interleaved, over
from agent.bench.images import BARE_WORDS, noop_image
from agent.bench.quiet import settle
from agent.bench.task_parts import parts_alone, together_ms
from agent.bench.town import Town, town

PART = "task"
RUNC, RUNC_IDS, PODMAN = "runc run", "runc run, subordinate ids", "podman run --rm"
MS = 1000.0


def measure(bench: Bench) -> Measured:
    """The part, in rounds after one that does not count."""
    with podman_engine() as socket, ExitStack() as stack:
        sides: dict[str, Callable[[], float]] = {}
        known = list(engines(socket).items())
        for engine, told in known[-1:] if bench.is_short else known:
            made = stack.enter_context(town(bench, told, name=engine, hosts=("A",)))
            sides[side_of(engine)] = partial(one_task, made)
            if engine == known[-1][0]:  # the one that is held against the targets where it is there
                sides |= parts_alone(bench, made, told)
        sides |= bare(bench, socket)
        interleaved(1, sides)
        return measured(interleaved(bench.rounds, sides, before=settle))


def one_task(made: Town) -> float:
    """Milliseconds from when an order of one task was recorded, before its 202, to the acknowledged report of its end."""
    sent = made.order(["A"])
    made.wait(sent)
    took_s = made.reported_s(sent) - made.accepted_s(sent)
    made.forget()
    return took_s * MS


def bare(bench: Bench, socket: Path) -> dict[str, Callable[[], float]]:
    """The same program of the same image with no agent around it, by name: milliseconds."""
    archive, digest = noop_image()
    runtime_of(engines(socket)["podman"]).load(archive, digest)
    podman = podman_program(socket)
    plain = BarePodman(podman, podman_name(podman, digest), network=default_network())
    sides = {PODMAN: lambda: plain.run() * MS}
    if "runc" in engines(socket):
        root = unpacked(archive, digest, bench.folder / "root")
        least = BareRunc(bench.memory, root, BARE_WORDS)
        mapped = BareRunc(bench.memory, root, BARE_WORDS, has_ids=True)
        sides |= {RUNC: lambda: least.run() * MS, RUNC_IDS: lambda: mapped.run() * MS}
    return sides


def side_of(engine: str) -> str:
    """The name of the row of tasks with this engine."""
    return f"task ({engine})"


def measured(samples: dict[str, tuple[float, ...]]) -> Measured:
    """The rows, and the figures of the issue's targets."""
    baselines = {side_of("runc"): RUNC, side_of("podman"): PODMAN}
    rows = [
        Row(part=PART, name=name, unit="ms", samples=mine, baseline=baselines.get(name))
        for name, mine in samples.items()
    ]
    figures = {}
    for engine, base in (("runc", RUNC), ("podman", PODMAN)):
        if side_of(engine) in samples:
            figures[f"task_{engine}_over_bare_ms"] = beyond(samples[side_of(engine)], samples[base])
    quickest = side_of("runc") if side_of("runc") in samples else side_of("podman")
    figures["task_over_podman_run_ratio"] = over(samples[quickest], samples[PODMAN])
    if (alone_ms := together_ms(samples)) is not None:
        figures["task_parts_alone_ms"] = alone_ms
    whole = f"task_over_podman_run_ratio is that of {quickest}"
    rest = "a sample begins once the CPUs are idle, or after a second: what the one before left is not charged to it"
    return Measured(rows=tuple(rows), figures=figures, notes=(whole, rest, *network_notes()))
