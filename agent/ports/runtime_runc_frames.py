"""A container of runc before its program is let go, and those of this process that were made ahead of their runs."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.domain.ids import Digest
from agent.ports.cage import EngineFacts, StoredImage
from agent.ports.runtime import RunSpec
from agent.ports.runtime_runc_runs import Known

# conmon counts from its own begin, and kills an orphan `cage.ORPHAN_GRACE_S` after its wall clock: what a frame waited is taken
# from that grace, so it is bounded to a third of it.
FRESH_S = 20.0


class Frame(Struct, frozen=True, kw_only=True):
    """A container whose first process waits before the image's program, and what it was made of.

    `config`: as it was read back; `made_s` of the monotonic clock; `helper`: which start of the helper set it up.
    """

    spec: RunSpec
    image: StoredImage
    facts: EngineFacts
    seccomp: Mapping[str, Any]
    seccomp_digest: Digest
    config: Mapping[str, Any]
    folder: Path
    known: Known
    made_s: float
    helper: int

    def is_fit_for(self, spec: RunSpec, helper: int) -> bool:
        """Whether the run of this spec may have it: the very same run, made a moment ago, and alive."""
        is_same = self.spec == spec and self.helper == helper
        return is_same and time.monotonic() - self.made_s < FRESH_S and self.known.is_alive()


class Frames:
    """Those that no run took yet, by the names of their runs. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, Frame] = {}

    def keep(self, frame: Frame) -> None:
        """Until it is taken."""
        with self._lock:
            self._made[frame.spec.name] = frame

    def take(self, name: str) -> Frame | None:
        """The one of this run, for the caller alone; None when there is none."""
        with self._lock:
            return self._made.pop(name, None)
