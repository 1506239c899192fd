"""One attempt of the self-test, and where it is made. The attempts themselves: `probes.py`."""

import re
from enum import StrEnum

from msgspec import Struct

from agent.ports.runtime import RunKind


class Scene(StrEnum):
    """In which run an attempt is made; the order is that of the suite."""

    INSIDE = "inside"  # many attempts in one training run
    SMALL = "small"  # a training run under small ceilings
    NEIGHBOURS = "neighbours"  # beside another task
    ENDS = "ends"  # a run each: how it ends is what is seen
    PREDICT = "predict"
    PROBLEM = "problem"
    DAEMON = "daemon"
    FLOOD = "flood"
    OUTPUTS = "outputs"
    FILLER = "filler"
    IMAGES = "images"
    MODELS = "models"


class Probe(Struct, frozen=True, kw_only=True):
    """One attempt. What is seen holds when it is `expected`, or matches `pattern` when there is one.

    `act`: what the guest is told (`guest/__main__.py`); a word that begins with `$` is filled in by the scene. `ceiling`: that
    of the order it runs against; where nothing on this host enforces it, what is expected names that.
    """

    name: str
    attempt: str
    expected: str
    scene: Scene
    act: tuple[str, ...] = ()
    pattern: str | None = None
    kind: RunKind = RunKind.TRAIN
    ceiling: str | None = None
    wall_s: int = 60
    is_quick: bool = False

    def holds(self, seen: str) -> bool:
        """Whether this is what must be seen."""
        return re.fullmatch(self.pattern or re.escape(self.expected), seen, flags=re.DOTALL) is not None
