"""A container that ended while no worker watched: what can still be told of it, as a `Run` that has its outcome already."""

from msgspec import Struct

from agent.ports import run_end
from agent.ports.run_end import SIGKILL, End
from agent.ports.run_kept import Kept
from agent.ports.run_log import RunLog
from agent.ports.runtime import RunOutcome

KILLED_CODE = 128 + SIGKILL
ENGINE_S_OWN_KILL = -1  # what conmon records when it killed a container at the end of `cage.ORPHAN_GRACE_S`
CLOCK_S = 1.0  # the engine and the worker that killed it may have counted from moments that far apart


class Ending(Struct, frozen=True, kw_only=True):
    """What is left to read. `code`: as the engine recorded it, None when it cannot tell; `wall_s`: from begin to end;
    `over`: whether the guest's folders hold more than they may (`run_watch.over_after`).
    """

    code: int | None
    wall_s: float
    over: str | None
    was_out_of_memory: bool
    cpu_s: float | None = None
    max_memory_bytes: int | None = None


class EndedRun:
    """Implements `Run`."""

    def __init__(self, kept: Kept, ending: Ending, log: RunLog) -> None:
        self._kept, self._ending, self._log = kept, ending, log
        self.is_left = False
        self.is_over = True

    def wait(self) -> RunOutcome:
        """As the protocol says, at once."""
        return RunOutcome(
            cause=cause_of(self._kept, self._ending),
            cage=self._kept.cage,
            log=self._log.kept(),
            wall_s=round(self._ending.wall_s, 3),
            cpu_s=self._ending.cpu_s,
            max_memory_bytes=self._ending.max_memory_bytes,
        )

    def kill(self) -> None:
        """As the protocol says: it has ended."""

    def leave(self) -> None:
        """As the protocol says."""
        self.is_left = True

    def progress(self) -> float | None:
        """As the protocol says."""
        return self._log.progress()


def cause_of(kept: Kept, ending: Ending) -> str | None:
    """A word of the container contract; None on exit code 0.

    One that was killed at its ceiling by a worker that then died is told as that worker would have, as far as can be seen.
    """
    is_killed = ending.code in {KILLED_CODE, ENGINE_S_OWN_KILL}
    if is_killed and ending.wall_s + CLOCK_S >= kept.ceilings.wall_s:
        return "timeout"
    end = run_end.end_of_engine_code(ending.code)
    cause = run_end.cause_of(end, was_out_of_memory=ending.was_out_of_memory)
    return ending.over if end == End(signal=SIGKILL) and ending.over and cause != "oom" else cause
