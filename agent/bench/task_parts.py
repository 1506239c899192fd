"""What a no-op task is made of, each part alone on the same machine in the same rounds: its container, its calls, its commits.

No agent has a hand in the sums: what a task takes beyond them is what the agent adds, what it takes less is what it overlaps.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter

from agent.bench.cage_alone import run_of
from agent.bench.engines import runtime_of
from agent.bench.figures import Bench, median
from agent.bench.images import noop_image
from agent.bench.intake import raw_commits
from agent.bench.town import Town
from agent.devkit.publishing import holders_of
from agent.domain.ceilings import DEFAULT_CEILINGS

CALLS = 5  # that wait for each other: where the data lies, a share, the output, the report, and what that asks of storage
COMMITS = 14  # ten of the agent, two of an orchestrator for its share, two for the report
CONTAINER, SIGNED, DURABLE = "its container alone", f"{CALLS} signed calls alone", f"{COMMITS} commits alone"
MS = 1000.0


def parts_alone(bench: Bench, made: Town, engine: Mapping[str, str]) -> dict[str, Callable[[], float]]:
    """Milliseconds of each, by the name of its row. `engine`: the town's own section of settings."""
    archive, digest = noop_image()
    runtime = runtime_of(engine)
    runtime.load(archive, digest)
    run = run_of(runtime, digest, bench.memory / "alone", DEFAULT_CEILINGS)
    return {
        CONTAINER: lambda: run() * MS,
        SIGNED: lambda: signed_calls(made),
        DURABLE: lambda: commits(bench.folder),
    }


def signed_calls(made: Town) -> float:
    """Milliseconds of so many calls of this process to a storage: TLS kept open, signed and verified on both sides."""
    dataset = made.seal("A")
    began_s = perf_counter()
    for _ in range(CALLS):
        holders_of(made.client, dataset)
    return (perf_counter() - began_s) * MS


def commits(folder: Path) -> float:
    """Milliseconds of so many commits of one row to SQLite, as durable as the ledger's."""
    return raw_commits(folder, COMMITS) * MS


def together_ms(samples: Mapping[str, tuple[float, ...]]) -> float | None:
    """The median sum of the parts of each round; None when they were not measured."""
    parts = [samples[name] for name in (CONTAINER, SIGNED, DURABLE) if name in samples]
    return median([sum(round_) for round_ in zip(*parts, strict=True)]) if parts else None
