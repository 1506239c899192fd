"""One started container: waiting for its end, killing it, and telling how it ended."""

import contextlib
import socket
import threading
import time

from agent.errors import RuntimeUnavailable
from agent.ports.memory_events import MemoryEvents, ends_within
from agent.ports.run_log import RunLog
from agent.ports.runtime import Cage, RunOutcome
from agent.ports.runtime_podman_api import ApiRefusal, PodmanApi, read_frames

KILL_GRACE_S = 30.0  # from the kill to the end of the process
LOG_GRACE_S = 5.0  # from the end of the process to the end of its streams

SIGXFSZ, SIGSYS = 25, 31


class PodmanRun:
    """Implements `Run`. Until `start` only the container's frame exists, none of the image's code runs.

    `pidfd` is that of the container's first process, `memory` its accounts; the caller closes both. `close` ends the log.
    """

    def __init__(
        self, api: PodmanApi, container: str, pidfd: int, memory: MemoryEvents, log_bytes: int
    ) -> None:
        self._api, self._container, self._pidfd, self._memory = api, container, pidfd, memory
        self._log = RunLog(log_bytes)
        self._stream = api.attach(container)
        self._reader = threading.Thread(target=self._read, name=f"log-{container[:12]}", daemon=True)
        self._reader.start()
        self._began_s = 0.0
        self._cage: Cage | None = None
        self._wall_s = 0
        self._outcome: RunOutcome | None = None

    def start(self, cage: Cage, wall_s: int) -> None:
        """Let the image's program begin. Raises: ApiRefusal, RuntimeUnavailable."""
        self._cage, self._wall_s = cage, wall_s
        self._api.post(f"/containers/{self._container}/start")
        self._began_s = time.monotonic()

    def wait(self) -> RunOutcome:
        """As the protocol says. Raises: RuntimeUnavailable when the engine is gone; the container may live on."""
        if self._outcome is None:
            self._outcome = self._wait()
        return self._outcome

    def kill(self) -> None:
        """As the protocol says; killing what has ended is fine."""
        try:
            self._api.post(f"/containers/{self._container}/kill", signal="KILL")
        except ApiRefusal as refusal:
            if self._is_alive():
                raise RuntimeUnavailable(f"Podman did not kill the container: {refusal}") from refusal

    def progress(self) -> float | None:
        """As the protocol says."""
        return self._log.progress()

    def close(self) -> None:
        """Let go of the streams. The container is not touched."""
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)
        self._reader.join(LOG_GRACE_S)
        self._stream.close()

    def _wait(self) -> RunOutcome:
        assert self._cage is not None, "wait before start"  # noqa: S101 - a bug in this program
        ended = self._ends_within(self._began_s + self._wall_s - time.monotonic())
        if not ended:
            self.kill()
            if not self._ends_within(KILL_GRACE_S):
                raise RuntimeUnavailable("the container did not end when it was killed")
        wall_s = time.monotonic() - self._began_s
        code = self._exit_code()
        self._reader.join(LOG_GRACE_S)
        return RunOutcome(
            cause=self._cause(code) if ended else "timeout",
            cage=self._cage,
            log=self._log.kept(),
            wall_s=round(wall_s, 3),
            cpu_s=self._memory.cpu_s,
            max_memory_bytes=self._memory.peak_bytes,
        )

    def _ends_within(self, seconds: float) -> bool:
        """Whether the first process of the container ends in time; with it ends its pid namespace."""
        return ends_within(self._pidfd, self._memory, seconds)

    def _is_alive(self) -> bool:
        return not self._ends_within(0)

    def _exit_code(self) -> int | None:
        """What Podman recorded, or None when it cannot tell. The process has ended: this answers at once."""
        try:
            code = self._api.post(f"/containers/{self._container}/wait", condition="stopped", interval="10ms")
        except ApiRefusal:
            return None
        return code if isinstance(code, int) else None

    def _cause(self, code: int | None) -> str | None:
        """A word of the container contract. The engine tells a death by signal n as code 128 + n."""
        if code == 0:
            return None
        if self._memory.was_out_of_memory():  # the first process, or one whose end made it fail
            return "oom"
        if code is None or not 0 < code < 256:
            return "unknown"
        if code <= 128:
            return f"exit:{code}"
        return {SIGSYS: "seccomp", SIGXFSZ: "disk"}.get(code - 128, f"signal:{code - 128}")

    def _read(self) -> None:
        read_frames(self._stream, lambda block, is_stdout: self._log.add(block, is_stdout=is_stdout))
