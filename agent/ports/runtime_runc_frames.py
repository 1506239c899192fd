"""A container of runc before its program is let go, and those of this process that were made ahead of their runs."""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import copy_context
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.domain.ids import Digest
from agent.errors import AgentError
from agent.log import get_logger
from agent.ports.cage import EngineFacts, StoredImage
from agent.ports.runtime import RunSpec
from agent.ports.runtime_runc_runs import Known

_LOG = get_logger(__name__)

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


class Making(Struct, eq=False):
    """One that is being made, or made, and that no run took yet."""

    frame: Future[Frame | None]


class Frames:
    """Those that no run took yet, by the names of their runs, each made in a thread of its own. Safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._making: dict[str, Making] = {}

    def begin(self, name: str, make: Callable[[], Frame]) -> Making | None:
        """Make one, meanwhile; None where one of this name is there. A process that ends does not wait for it: what it leaves
        then is found by the sweep.
        """
        making = Making(Future())
        with self._lock:
            if name in self._making:
                return None
            self._making[name] = making
        work, words = copy_context(), (_make, name, make, making.frame)
        try:
            threading.Thread(target=work.run, args=words, name=f"frame-{name}", daemon=True).start()
        except RuntimeError as error:  # no further thread is to be had: nobody may wait for what nobody makes
            _LOG.debug("run.not_framed", container=name, detail=str(error))
            making.frame.set_result(None)
        return making

    def take(self, name: str, only: Making | None = None) -> Frame | None:
        """The one of this run, for the caller alone, once it is made; None when there is none, or it could not be made.

        `only`: this one, for the name may be another's by now.
        """
        with self._lock:
            if only is not None and self._making.get(name) is not only:
                return None
            making = self._making.pop(name, None)
        return None if making is None else making.frame.result()

    def give_up_one(self, let_fall: Callable[[Frame], None]) -> bool:
        """Let go of one that is made; its run finds none, once that is done. Whether there was any."""
        gone: Future[Frame | None] = Future()
        with self._lock:
            made = (one for one in self._making.values() if one.frame.done())
            found = next(((one, frame) for one in made if (frame := one.frame.result()) is not None), None)
            if found is None:
                return False
            making, frame = found
            making.frame = gone
        try:
            let_fall(frame)
        finally:
            gone.set_result(None)
        return True


def _make(name: str, make: Callable[[], Frame], made: "Future[Frame | None]") -> None:
    began_s, frame = time.monotonic(), None
    try:
        frame = make()
        _LOG.debug("run.framed", container=name, whole_s=round(time.monotonic() - began_s, 6))
    except (AgentError, OSError) as error:  # the run makes its own, and tells what is wrong with that
        _LOG.debug("run.not_framed", container=name, detail=str(error))
    finally:
        made.set_result(frame)
