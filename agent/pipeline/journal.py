"""How far an attempt came, as the ledger has it: what is done is not done again, and what was begun is known to be.

A step stands in the ledger before its effect and again with what came of it. A worker that takes over an attempt reads the
steps and goes through the same lines of `execute.py`: each finds its outcome there, or does its work.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

import msgspec
from msgspec import Struct

from agent.domain.audit import NewEvent
from agent.domain.jobs import Job, JobState
from agent.domain.prepared import prepared
from agent.domain.strict_json import encode
from agent.errors import LedgerUnavailable, WorkerLost
from agent.pipeline.host import Host
from agent.ports.ledger_attempts import Step
from agent.ports.runtime import RunOutcome

INPUTS = "inputs"  # all of them lie in the workspace
OUTPUT = "output"  # it lies in the workspace as it is sent
LATE = "late"  # it is gone on with after the order's end
RUN = "run."  # before the name of a run

MOST_TRIES = 5  # a step that took so many workers with it takes no further one

S = TypeVar("S", bound=Struct)


class Journal:
    """The steps of one attempt under one claim. `steps`: those of the workers before this one, None when there was none."""

    def __init__(self, job: Job, host: Host, steps: Sequence[Step] | None = None) -> None:
        self._job, self._host = job, host
        self._is_resumed = steps is not None
        self._steps = {step.name: step for step in steps or ()}

    @property
    def is_resumed(self) -> bool:
        """Whether another worker had this attempt before."""
        return self._is_resumed

    def has_runs(self) -> bool:
        """Whether a worker before this one began any run."""
        return any(name.startswith(RUN) for name in self._steps)

    def has_open_run(self) -> bool:
        """Whether a worker before this one began a run and nobody saw its end."""
        return any(step.outcome is None for name, step in self._steps.items() if name.startswith(RUN))

    def ended_runs(self) -> dict[str, RunOutcome]:
        """How the runs ended that a worker before this one saw end, by name, in order."""
        names = [
            name for name, step in self._steps.items() if name.startswith(RUN) and step.outcome is not None
        ]
        found = {name.removeprefix(RUN): self.outcome(name, RunOutcome) for name in names}
        return {name: outcome for name, outcome in found.items() if outcome is not None}

    def has_begun(self, name: str) -> bool:
        """Whether a worker before this one began it."""
        return name in self._steps

    def begun_at(self, name: str) -> datetime | None:
        """When a worker before this one began it; None when none did."""
        step = self._steps.get(name)
        return None if step is None else step.begun_at

    def outcome(self, name: str, kind: type[S]) -> S | None:
        """What came of it; None when it has not ended. Raises: WorkerLost when nobody can read it any more."""
        step = self._steps.get(name)
        if step is None or step.outcome is None:
            return None
        try:
            return msgspec.json.decode(step.outcome, type=prepared(kind))
        except msgspec.MsgspecError as cause:
            raise WorkerLost(f"step {name} of job {self._job.id} cannot be read: {cause}") from cause

    def begin(self, name: str, told: Sequence[NewEvent] = ()) -> None:
        """Record that it is about to be, with lines for the audit log.

        Raises: LostRace; WorkerLost when too many workers died of it.
        """
        step = self._host.ports.ledger.begin_step(self._job, name, self._host.ports.now(), told=told)
        if step.tries > MOST_TRIES:
            raise WorkerLost(f"step {name} was begun {MOST_TRIES} times, and no worker lived to its end")

    def end(
        self,
        name: str,
        outcome: Struct,
        *,
        log: tuple[str, bytes] | None = None,
        told: Sequence[NewEvent] = (),
    ) -> None:
        """Record what came of it, with the sealed output of a run and lines for the audit log. Raises: LostRace."""
        now = self._host.ports.now()
        self._host.ports.ledger.end_step(self._job, name, now, encode(outcome), log=log, told=told)

    def is_anothers(self) -> bool:
        """Whether another worker has this attempt by now, and with it the container and the workspace; True too when the
        ledger does not tell: the sweep removes what turns out to be nobody's.
        """
        mine = self._job
        try:
            now = self._host.ports.ledger.job(mine.id)
        except LedgerUnavailable:
            return True
        return now.state is JobState.RUNNING and now.attempt == mine.attempt and now.claim != mine.claim
