"""A run under Podman that another worker started, as this worker's: going on, or ended by now."""

import contextlib
import os
from collections.abc import Callable

from msgspec import Struct

from agent.errors import ContainerLost, RuntimeUnavailable
from agent.ports import process_times
from agent.ports.container_run import ContainerRun, Output
from agent.ports.memory_events import MemoryEvents
from agent.ports.run_ended import EndedRun, Ending
from agent.ports.run_kept import Kept, plan_of
from agent.ports.run_log import RunLog
from agent.ports.run_watch import RunWatch, over_after
from agent.ports.runtime import RunSpec
from agent.ports.runtime_podman_api import PodmanApi
from agent.ports.runtime_podman_found import (
    MAP_LABEL,
    Found,
    await_filter,
    find,
    is_first_process,
    recorded_code,
)
from agent.ports.user_namespace import UserNamespace

NOT_BEGUN = frozenset({"created", "configured", "initialized"})
NOT_KEPT = b"[what was said before another worker went on with this run is not kept]\n"


class LaterOutput:
    """Implements `Output`: a line that says what is missing, and what comes from now on, if anything does."""

    def __init__(self, output: Output | None) -> None:
        self._output = output

    def read(self, take: Callable[[bytes, bool], None]) -> None:
        """As the protocol says."""
        take(NOT_KEPT, False)
        if self._output is not None:
            self._output.read(take)

    def close(self) -> None:
        """As the protocol says."""
        if self._output is not None:
            self._output.close()


def why_lost(found: Found, spec: RunSpec) -> str | None:
    """Why nobody can go on with a container of this name, None when somebody can."""
    if found.status == "removing":
        return f"the container named {spec.name} is being removed"
    if found.kept is None or found.began_at is None or found.status in NOT_BEGUN:
        return f"the program of {spec.name} never began, or the host was booted since"
    if found.kept.plan != plan_of(spec):
        return f"the container named {spec.name} runs something else"
    return None


class Adoption(Struct, frozen=True):
    """One run that is not lost. `inside`: where folders of guests can be looked into."""

    spec: RunSpec
    found: Found
    kept: Kept
    api: PodmanApi
    inside: UserNamespace

    def living(self, stack: contextlib.ExitStack) -> ContainerRun | None:
        """The run that goes on, None when it has ended; `stack` lets go of it. Raises: CageNotApplied, RuntimeUnavailable."""
        pid, container = self.found.pid, self.found.id
        try:
            pidfd = os.pidfd_open(pid) if pid > 0 else None
        except ProcessLookupError:
            return None
        if pidfd is None:
            return None
        stack.callback(os.close, pidfd)
        try:
            if not is_first_process(pid, int(self.found.labels[MAP_LABEL]), self.api.service_pid()):
                return None
            memory = MemoryEvents(pid)
            age_s = process_times.seconds_since(process_times.began(pid))
        except OSError:
            return None
        stack.callback(memory.close)
        await_filter(pid)  # its worker may have died before it did
        run = ContainerRun(
            pidfd,
            memory,
            output=LaterOutput(self._attached()),
            log_bytes=self.kept.ceilings.log_bytes,
            engine_code=lambda: recorded_code(self.api, container, self.found.exit_file),
        )
        stack.callback(run.close)
        above = UserNamespace.above(pid)  # Podman's may have been made anew since
        stack.callback(above.close)
        watch = RunWatch(self.spec, self.kept, pid, above, run.kill)
        run.go_on(self.kept.cage, self.kept.ceilings.wall_s, watch, age_s)
        return run

    def ended(self) -> EndedRun:
        """The run that ended, as Podman recorded it. Raises: ContainerLost, RuntimeUnavailable."""
        code = recorded_code(self.api, self.found.id)
        now = find(self.api, self.found.id)
        if now is None:
            raise ContainerLost(f"the container named {self.spec.name} was removed by somebody else")
        ending = Ending(
            # After a boot the one or the other is 0 whatever happened: only both together are a success.
            code=None if code == 0 and now.exit_code != 0 else code,
            wall_s=now.lasted_s(),
            over=over_after(self.spec, self.kept, self.inside),
            was_out_of_memory=now.was_out_of_memory,
        )
        log = RunLog(self.kept.ceilings.log_bytes)
        log.add(NOT_KEPT, is_stdout=False)
        return EndedRun(self.kept, ending, log)

    def _attached(self) -> Output | None:
        """None when it has ended meanwhile."""
        try:
            return self.api.attach(self.found.id)
        except RuntimeUnavailable:
            return None
