"""The parts of the bench, one after the other, each with scratch of its own."""

import importlib
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp

from msgspec import Struct

from agent.bench.figures import Bench, Measured, figures_of, table, verdicts
from agent.log import LogLevel, configure

Measure = Callable[[Bench], Measured]

# In the order in which they run: what needs a quiet machine first.
PARTS = ("task", "hop", "intake", "stream", "model", "scale", "idle", "parallel", "cage")
ROUNDS = 15


class Asked(Struct, frozen=True, kw_only=True):
    """What the bench was asked for. `commit`: of the sources, where it is known."""

    parts: tuple[str, ...] = PARTS
    rounds: int = ROUNDS
    is_short: bool = False
    commit: str | None = None


def parts_of(words: str) -> tuple[str, ...]:
    """The parts that a list with commas names. Raises: ValueError, naming one that is none."""
    named = tuple(word.strip() for word in words.split(",") if word.strip())
    for word in named:
        if word not in PARTS:
            raise ValueError(f"{word!r} is no part of the bench: there are {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in named)


def measure_of(part: str) -> Measure | None:
    """What measures this part; None where its module does not exist."""
    name = f"agent.bench.{part}"
    try:
        measure: Measure = importlib.import_module(name).measure
    except ModuleNotFoundError as missing:
        if missing.name != name:
            raise
        return None
    return measure


def run_parts(asked: Asked, say: Callable[[str], None]) -> dict[str, Measured]:
    """What each part found, by its name. Raises: whatever a part cannot go on with."""
    configure(LogLevel.ERROR)
    found: dict[str, Measured] = {}
    for part in asked.parts:
        measure = measure_of(part)
        if measure is None:
            say(f"{part}: not there")
            continue
        say(f"{part}: begins")
        began = time.monotonic()
        found[part] = in_scratch(part, measure, asked, say)
        say(f"{part}: {time.monotonic() - began:.0f} s")
    return found


def in_scratch(part: str, measure: Measure, asked: Asked, say: Callable[[str], None]) -> Measured:
    """`folder` on the disk that an agent's data lie on, `memory` where its workspaces lie: both gone afterwards."""
    cache = cache_folder()
    folder = Path(mkdtemp(prefix=f"{part}-", dir=cache))
    memory = Path(mkdtemp(prefix="dcb-", dir=os.environ["XDG_RUNTIME_DIR"]))
    try:
        return measure(Bench(asked.rounds, asked.is_short, folder, memory, lambda line: say(f"  {line}")))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(memory, ignore_errors=True)


def cache_folder() -> Path:
    """Where layers and archives of images stay from run to run."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dc-compute-bench"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def lines_of(measured: Mapping[str, Measured]) -> Sequence[str]:
    """What people read: the rows, the figures with their targets, the notes."""
    rows = [row for part in measured.values() for row in part.rows]
    figures = {key: value for part in measured.values() for key, value in part.figures.items()}
    notes = [f"{name}: {note}" for name, part in measured.items() for note in part.notes]
    ratio = "a ratio is to the baseline in the same round: median, and quartiles in brackets"
    return [*table(figures_of(rows)), "", *verdicts(figures), "", ratio, *notes]
