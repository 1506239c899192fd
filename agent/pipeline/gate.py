"""Whether tasks may run on this host: not before hostile code failed in the cage of the runtime that runs them.

A gate is closed at first, opens when a proof found nothing, and breaks when an attempt succeeded: then nothing runs until a
restart proves better. What it stands at is kept beside the workspaces, in memory, for the API's process to tell.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.domain.prepared import prepared
from agent.errors import AgentError
from agent.log import get_logger
from agent.pipeline.host import Host
from agent.whole_files import write_whole

log = get_logger(__name__)

STATE_FILE = "selftest.json"


class GateState(StrEnum):
    """Where a gate stands."""

    CLOSED = "closed"  # not proved yet
    OPEN = "open"
    BROKEN = "broken"  # an attempt succeeded


class Breach(Struct, frozen=True):
    """An attempt of hostile code that did not end as it must."""

    runtime: str
    probe: str
    expected: str
    seen: str


class Standing(Struct, frozen=True):
    """What is kept of a gate: its state, and why, in words."""

    state: GateState
    detail: str


Prove = Callable[[], tuple[Breach, ...]]
"""Tries the cage; gives what did not hold. Raises: AgentError when it cannot be tried now."""


class Gate:
    """One worker's. Handlers read `is_open` from their threads, one thread tries to open it."""

    def __init__(self, host: Host, prove: Prove) -> None:
        self._host, self._prove = host, prove
        self._state = GateState.CLOSED

    @property
    def is_open(self) -> bool:
        """Whether a task may begin."""
        return self._state is GateState.OPEN

    def try_open(self) -> bool:
        """Prove the cage, unless that is done; whether the gate opened just now."""
        if self._state is not GateState.CLOSED:
            return False
        try:
            breaches = self._prove()
        except AgentError as error:
            log.error("selftest.not_run", code=error.code, detail=error.detail, advice=error.advice)
            self._keep(f"{error.code}: {error.detail}")
            return False
        self._state = GateState.BROKEN if breaches else GateState.OPEN
        for breach in breaches:
            log.error(
                "selftest.failed",
                **msgspec.structs.asdict(breach),
                advice="No task runs. `dc-compute selftest` tells more; mend it and restart the worker.",
            )
            self._record("selftest.failed", msgspec.structs.asdict(breach))
        if self.is_open:
            log.info("selftest.held", runtime=self._host.ports.runtime.name)
            self._record("selftest.held", {"runtime": self._host.ports.runtime.name})
        self._keep("; ".join(f"{one.probe} of {one.runtime}: {one.seen}" for one in breaches)[:500] or "held")
        return self.is_open

    def _record(self, name: str, values: dict[str, str | int | float | None]) -> None:
        try:
            self._host.ports.ledger.record_event(name, self._host.ports.now(), values=values)
        except AgentError as error:
            log.error("selftest.not_recorded", code=error.code, detail=error.detail)

    def _keep(self, detail: str) -> None:
        path = self._host.rules.workspace_root / STATE_FILE
        try:
            write_whole(path, msgspec.json.encode(Standing(self._state, detail)))
        except OSError as error:
            log.error("selftest.not_kept", path=str(path), detail=str(error))


def standing(workspace_root: Path) -> Standing:
    """Where this host's gate stood last, since its workspaces' folder was made."""
    try:
        return msgspec.json.decode((workspace_root / STATE_FILE).read_bytes(), type=prepared(Standing))
    except (OSError, msgspec.MsgspecError):
        return Standing(GateState.CLOSED, "no worker has tried the cage yet")


def proved_at(workspace_root: Path) -> datetime | None:
    """When a worker of this host tried the cage last; None: not since its workspaces' folder was made."""
    try:
        return datetime.fromtimestamp((workspace_root / STATE_FILE).stat().st_mtime, UTC)
    except OSError:
        return None
