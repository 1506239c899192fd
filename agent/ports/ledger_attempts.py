"""The part of the port to the ledger that attempts are made with: who has one in hand, how far it came, and whether any may
begin. As everywhere in the ledger, each method is one transaction.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from msgspec import Struct

from agent.domain.audit import NewEvent
from agent.domain.control import Control
from agent.domain.jobs import Job


class Step(Struct, frozen=True, kw_only=True):
    """One effect of an attempt: recorded before it, and again with its outcome. `tries`: how often it was begun since the
    attempt began or was last put off.
    """

    name: str
    tries: int
    begun_at: datetime
    ended_at: datetime | None = None
    outcome: bytes | None = None


class AttemptsLedger(Protocol):
    """Attempts that outlive their worker."""

    # ---- whose it is

    def adopt(self, job: Job, now: datetime, *, worker: str, lease_until: datetime) -> Job:
        """A RUNNING job whose lease ran out, for this worker: the same attempt, one claim more, so that the worker before it
        moves nothing any more. `changed_at` stays. Records an event `job.adopted`. Raises: LostRace.
        """
        ...

    def park(self, job: Job, now: datetime, *, until: datetime, reason: str) -> Job:
        """Let go of a RUNNING job until then: nobody's, and an orphan from `until` on. Its steps' tries begin anew.

        Records an event `job.parked`. Raises: LostRace.
        """
        ...

    def release(self, process: str, now: datetime) -> int:
        """End the lease of everything that workers of this process run (their names begin with its); how many."""
        ...

    # ---- how far an attempt came

    def begin_step(self, job: Job, name: str, now: datetime, *, told: Sequence[NewEvent] = ()) -> Step:
        """Record that the effect `name` of this attempt is about to be, with lines for the log of events.

        Raises: LostRace when the job is not as seen.
        """
        ...

    def end_step(
        self,
        job: Job,
        name: str,
        now: datetime,
        outcome: bytes,
        *,
        log: tuple[str, bytes] | None = None,
        told: Sequence[NewEvent] = (),
    ) -> None:
        """Record what came of it, begun or not; with it the log of a run (its name, sealed output) as `keep_log` does, and
        lines for the log of events.

        Raises: LostRace when the job is not as seen.
        """
        ...

    def steps(self, job: Job) -> tuple[Step, ...]:
        """The steps of the job's attempt, as they were begun."""
        ...

    # ---- what the host does

    def control(self) -> Control:
        """What was said last; RUNNING when nothing was."""
        ...

    def set_control(self, control: Control, now: datetime) -> None:
        """Say it, with an event `host.<mode>`."""
        ...
