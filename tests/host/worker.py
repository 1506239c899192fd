"""A worker as a process of its own, which can be killed, stopped or told to leave while its container runs.

with worker(runtime, spec) as one:          # it calls `run` with this very runtime's words, and waits
    one.says("started")
    one.process.kill()
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import AgentError
from agent.ports import runtime_podman, runtime_runc
from agent.ports.container_run import ContainerRun
from agent.ports.runtime import RunSpec, Runtime
from agent.ports.runtime_podman import PodmanRuntime
from agent.ports.runtime_runc import RuncRuntime
from tests.host.podman import ROOT, runc_runtime

# Where a worker says so and stops until it gets SIGCONT: nothing is made yet, the container's frame is, it runs.
MOMENTS = ("claimed", "made", "checked", "started")


@dataclass(frozen=True)
class Worker:
    """The process, and what it says line by line."""

    process: "subprocess.Popen[str]"

    def says(self, word: str) -> Any:
        """Wait for a line that begins with this word; what else it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith(word), f"it said {line!r}, not {word!r}"
        return json.loads(line.removeprefix(word).strip() or "null")

    def kill(self) -> None:
        """As the kernel's out-of-memory killer does, and a power cut of this one process."""
        self.process.kill()
        self.process.wait()

    def go_on(self) -> None:
        """After it has stopped at its moment."""
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def worker(runtime: Runtime, spec: RunSpec, act: str = "run", moment: str = "started") -> Iterator[Worker]:
    """A worker that does `act`, "run" or "adopt"; at any `moment` but "started" it stops. It ends with the context."""
    document = {
        "runtime": _words_of(runtime),
        "spec": msgspec.to_builtins(spec, enc_hook=str),
        "act": act,
        "moment": moment,
    }
    command = [sys.executable, "-m", "tests.host.worker", json.dumps(document)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield Worker(process)
        finally:
            process.kill()


def die_at(runtime: Runtime, spec: RunSpec, moment: str = "started") -> None:
    """Leave a container whose worker was killed at this moment."""
    with worker(runtime, spec, moment=moment) as one:
        one.says(moment)
        one.kill()


def _words_of(runtime: Runtime) -> list[str]:
    if isinstance(runtime, PodmanRuntime):
        return [
            "podman",
            str(runtime._api.path),
            str(runtime._seccomp_dir),
            str(runtime._images._store),
            runtime._instance,
        ]
    assert isinstance(runtime, RuncRuntime)
    return ["runc", str(runtime._runs._folder.parent.parent), runtime._runs._instance]


# ------------------------------------------------------------------ in that process


def _runtime_of(name: str, *words: str) -> Runtime:
    if name == "podman":
        socket, seccomp, store, instance = words
        return PodmanRuntime(Path(socket), Path(seccomp), Path(store), instance=instance, pool_size=3)
    return runc_runtime(Path(words[0]), words[1])


def _say(word: str, more: object = None) -> None:
    print(word, json.dumps(more), flush=True)  # noqa: T201 - to who started it


def _stop_after(owner: Any, name: str, moment: str) -> None:
    honest = getattr(owner, name)

    def act(*words: Any, **more: Any) -> Any:
        done = honest(*words, **more)
        _say(moment)
        os.kill(os.getpid(), signal.SIGSTOP)
        return done

    setattr(owner, name, act)


def _stop_at(moment: str) -> None:
    match moment:
        case "claimed":
            _stop_after(runtime_podman.PodmanRuntime, "_create", moment)
            _stop_after(runtime_runc.RuncRuntime, "_claim", moment)
        case "made":
            _stop_after(runtime_podman.PodmanRuntime, "_make", moment)
            _stop_after(runtime_runc.RuncRuntime, "_make", moment)
        case "checked":
            _stop_after(ContainerRun, "__init__", moment)


def main(text: str) -> None:
    """Do what the document says, and say how it ended."""
    document = json.loads(text)
    spec = msgspec.convert(document["spec"], RunSpec, dec_hook=lambda kind, value: kind(value))
    runtime, moment = _runtime_of(*document["runtime"]), document["moment"]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # as a worker leaves that runs something
    _stop_at(moment)
    try:
        with getattr(runtime, document["act"])(spec) as run:
            if moment == "started":
                _say("started")
            outcome = run.wait()
        _say("ended", {"cause": outcome.cause})
    except AgentError as error:
        _say("failed", {"code": error.code, "detail": str(error)})


if __name__ == "__main__":
    main(sys.argv[1])
