"""One started container, whoever made it: its output, its ceilings of time and space, its end and how that is told.

An engine gives the two things that differ: how the output comes, and which exit code it recorded.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Protocol

from agent.errors import RuntimeUnavailable
from agent.ports import run_end
from agent.ports.memory_events import MemoryEvents, ends_within
from agent.ports.run_log import RunLog
from agent.ports.run_watch import RunWatch
from agent.ports.runtime import Cage, RunOutcome

KILL_GRACE_S = 30.0  # from the kill to the end of the process
LOG_GRACE_S = 5.0  # from the end of the process to the end of its streams


class Output(Protocol):
    """The streams of a container."""

    def read(self, take: Callable[[bytes, bool], None]) -> None:
        """Hand every block to `take(block, is_stdout)` until the streams end or are closed."""
        ...

    def close(self) -> None:
        """Let go of them, also while another thread reads."""
        ...


class ContainerRun:
    """Implements `Run`. Until `start` only the container's frame exists, none of the image's code runs.

    `pidfd` is that of the container's first process, `memory` its accounts; the caller closes both, and `close` ends the
    rest. `engine_code` is asked after the end, when the kernel does not say enough: the exit code that the engine
    recorded, None when it cannot tell.
    """

    def __init__(
        self,
        pidfd: int,
        memory: MemoryEvents,
        *,
        output: Output,
        log_bytes: int,
        engine_code: Callable[[], int | None],
    ) -> None:
        self._pidfd, self._memory, self._output, self._engine_code = pidfd, memory, output, engine_code
        self._log = RunLog(log_bytes)
        self._reader = threading.Thread(target=self._read, name=f"log-{pidfd}", daemon=True)
        self._reader.start()
        self._closing, self._is_closed = threading.Lock(), False
        self._began_s = 0.0
        self._cage: Cage | None = None
        self._watch: RunWatch | None = None
        self._wall_s = 0
        self._outcome: RunOutcome | None = None
        self.is_left = False

    def start(self, cage: Cage, wall_s: int, watch: RunWatch, release: Callable[[], None]) -> None:
        """Let the image's program begin, by `release`. Raises: what `release` raises."""
        self._cage, self._wall_s, self._watch = cage, wall_s, watch
        watch.start()
        self._began_s = (
            time.monotonic()
        )  # before it is let go: on a busy machine it may have ended by the time this goes on
        release()

    def go_on(self, cage: Cage, wall_s: int, watch: RunWatch, age_s: float) -> None:
        """Instead of `start`: the image's program began so many seconds ago, under another worker."""
        self._cage, self._wall_s, self._watch = cage, wall_s, watch
        self._began_s = time.monotonic() - age_s
        watch.start()

    def wait(self) -> RunOutcome:
        """As the protocol says. Raises: RuntimeUnavailable when the engine is gone; the container may live on."""
        if self._outcome is None:
            self._outcome = self._wait()
        return self._outcome

    def kill(self) -> None:
        """As the protocol says; killing what has ended is fine, and so is a kill that comes after the run."""
        with self._closing:  # closed, the descriptor's number may be another run's
            if not self._is_closed:
                kill(self._pidfd)

    def leave(self) -> None:
        """As the protocol says."""
        self.is_left = True

    @property
    def is_over(self) -> bool:
        """Whether its process is gone, and with it every process of the container, and `wait` told so."""
        return self._outcome is not None

    def progress(self) -> float | None:
        """As the protocol says."""
        return self._log.progress()

    def close(self) -> None:
        """Let go of streams and watcher. The container is not touched."""
        if self._watch is not None:
            self._watch.stop()
        with self._closing:
            self._is_closed = True
        self._output.close()
        self._reader.join(LOG_GRACE_S)

    def _wait(self) -> RunOutcome:
        assert self._cage is not None and self._watch is not None, "wait before start"  # noqa: S101, PT018 - a bug here
        left_s = self._began_s + self._wall_s - time.monotonic()
        is_late = not ends_within(self._pidfd, self._memory, left_s, or_out_of_memory=True)
        if (
            is_late or self._memory.was_out_of_memory()
        ):  # what remains seldom knows what to do without the killed part
            self.kill()
            if not ends_within(self._pidfd, self._memory, KILL_GRACE_S):
                raise RuntimeUnavailable("the container did not end when it was killed")
        wall_s = time.monotonic() - self._began_s
        self._watch.stop()
        end = run_end.end_of(self._pidfd, self._engine_code)
        self._reader.join(LOG_GRACE_S)
        cause = run_end.cause_of(end, was_out_of_memory=self._memory.was_out_of_memory())
        return RunOutcome(
            cause="timeout" if is_late else self._watch.cause or cause,
            cage=self._cage,
            log=self._log.kept(),
            wall_s=round(wall_s, 3),
            cpu_s=self._memory.cpu_s,
            max_memory_bytes=self._memory.peak_bytes,
        )

    def _read(self) -> None:
        self._output.read(lambda block, is_stdout: self._log.add(block, is_stdout=is_stdout))


def kill(pidfd: int) -> None:
    """Kill a process that may be gone already. The agent owns the user namespace above, so it may."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
