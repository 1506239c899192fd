"""A run on runc that another worker started, as this worker's: going on, or ended by now."""

import contextlib
import os
import time
from pathlib import Path

from msgspec import Struct

from agent.ports import process_times
from agent.ports.container_run import ContainerRun
from agent.ports.memory_events import MemoryEvents
from agent.ports.run_ended import EndedRun, Ending
from agent.ports.run_kept import Kept
from agent.ports.run_log import RunLog
from agent.ports.run_watch import RunWatch, over_after
from agent.ports.runtime import RunSpec
from agent.ports.runtime_runc_output import ConmonLog
from agent.ports.runtime_runc_runs import Known, Runs
from agent.ports.user_namespace import UserNamespace


class Adoption(Struct, frozen=True):
    """One run whose program began. `inside`: where folders of guests can be looked into."""

    spec: RunSpec
    known: Known
    kept: Kept
    folder: Path
    runs: Runs
    inside: UserNamespace

    def living(self, stack: contextlib.ExitStack) -> ContainerRun | None:
        """The run that goes on, None when it has ended; `stack` lets go of it. Its log is read from the beginning."""
        known = self.known
        pidfd = process_times.open_process(known.pid, known.began)
        if pidfd is None:
            return None
        stack.callback(os.close, pidfd)
        monitor = self._monitor(stack)
        memory = MemoryEvents(known.pid, membership=known.cgroup)
        stack.callback(memory.close)
        run = ContainerRun(
            pidfd,
            memory,
            output=ConmonLog(self.folder, monitor),
            log_bytes=self.kept.ceilings.log_bytes,
            engine_code=lambda: self.runs.code_of(self.folder, known, monitor),
        )
        stack.callback(run.close)
        above = UserNamespace.above(known.pid)  # only from there the guest's open files can be seen
        stack.callback(above.close)
        watch = RunWatch(self.spec, self.kept, known.pid, above, run.kill)
        run.go_on(self.kept.cage, self.kept.ceilings.wall_s, watch, known.age_s())
        return run

    def ended(self, stack: contextlib.ExitStack) -> EndedRun:
        """The run that ended: its code as conmon wrote it down, its accounts as far as its cgroup is there."""
        code = self.runs.code_of(self.folder, self.known, self._monitor(stack))
        memory = MemoryEvents(self.known.pid, membership=self.known.cgroup)
        stack.callback(memory.close)
        log = RunLog(self.kept.ceilings.log_bytes)
        ConmonLog(self.folder, None).read(lambda block, is_stdout: log.add(block, is_stdout=is_stdout))
        ending = Ending(
            code=code,
            wall_s=self._lasted_s(),
            over=over_after(self.spec, self.kept, self.inside),
            was_out_of_memory=memory.was_out_of_memory() or (self.folder / "oom").exists(),
            cpu_s=memory.cpu_s,
            max_memory_bytes=memory.peak_bytes,
        )
        return EndedRun(self.kept, ending, log)

    def _monitor(self, stack: contextlib.ExitStack) -> int | None:
        monitor = process_times.open_process(self.known.monitor, self.known.monitor_began)
        if monitor is not None:
            stack.callback(os.close, monitor)
        return monitor

    def _lasted_s(self) -> float:
        """From when its program was let go to when conmon wrote its code down; to now when it did not."""
        age_s = self.known.age_s()
        with contextlib.suppress(OSError):
            ended_ago_s = time.time() - (self.folder / "exit" / self.folder.name).stat().st_mtime
            return min(age_s, max(0.0, age_s - ended_ago_s))
        return age_s
