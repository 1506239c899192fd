"""Values of a measurement."""

from collections.abc import Callable
from pathlib import Path

from msgspec import Struct


class Row(Struct, frozen=True, kw_only=True):
    part: str
    name: str
    unit: str
    samples: tuple[float, ...]
    baseline: str | None = None


class Measured(Struct, frozen=True, kw_only=True):
    rows: tuple[Row, ...]
    figures: dict[str, float]
    notes: tuple[str, ...] = ()


class Bench(Struct):
    rounds: int
    is_short: bool
    folder: Path
    memory: Path
    say: Callable[[str], None]
