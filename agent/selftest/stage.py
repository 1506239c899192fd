"""Where attempts are made: a folder in memory, a runtime, and a run of the guest with what it said taken apart."""

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec import Struct

from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest
from agent.pipeline.trials import TRIAL_LABEL
from agent.ports.runtime import Enforcement, Mount, Run, RunKind, RunOutcome, RunSpec, Runtime
from agent.selftest.probe import Probe

MIB = 1 << 20
READY_S = 30.0  # for a guest to say that it is at it
BEAT_S = 0.005

CEILINGS = Ceilings(
    wall_s=60,
    memory_bytes=256 * MIB,
    cpu_millis=1000,
    pids=64,
    open_files=256,
    output_bytes=32 * MIB,
    output_files=1000,
    log_bytes=MIB,
    tmp_bytes=16 * MIB,
)

# Two of its runs go on at once: who holds one place and waits long for another would keep both from everybody.
PATIENCE_S: Final = 20.0


class Ended(Struct, frozen=True):
    """A run of the guest: how it ended, and what it said it saw, by probe."""

    outcome: RunOutcome
    said: Mapping[str, str]

    def seen(self, probe: Probe) -> str:
        """What the guest saw, or how the run ended before it could tell."""
        return self.said.get(probe.name, f"the run ended with {self.outcome.cause or 'exit:0'} before that")


@dataclass(frozen=True)
class Stage:
    """One self-test of one runtime. `show` turns what a guest says into what an operator's terminal gets."""

    runtime: Runtime
    enforcement: Enforcement
    image: Digest
    folder: Path
    show: Callable[[str], str]

    def spec(
        self,
        name: str,
        attempts: Sequence[Sequence[str]],
        *,
        kind: RunKind = RunKind.TRAIN,
        mounts: tuple[Mount, ...] = (),
        ceilings: Ceilings = CEILINGS,
    ) -> RunSpec:
        """A run of the guest with `(probe, act, words...)` each. It accepts what this host lacks: probes name that."""
        return RunSpec(
            name=f"{self.folder.name}-{name}",
            labels={TRIAL_LABEL: self.folder.name},
            image=self.image,
            kind=kind,
            args=(json.dumps(attempts),),
            mounts=mounts,
            ceilings=ceilings,
            accept_missing=frozenset(self.enforcement.absent),
            patience_s=PATIENCE_S,
        )

    def run(self, spec: RunSpec) -> Ended:
        """Run it to its end. Raises: CageNotApplied, BadImage, RuntimeUnavailable."""
        with self.runtime.run(spec) as run:
            return ended(run)

    def writable(self, name: str) -> Path:
        """A fresh folder for everybody: the one above is the agent's alone."""
        path = self.folder / name
        path.mkdir(parents=True)
        path.chmod(0o777)
        return path


def attempts_of(probes: Sequence[Probe], words: Mapping[str, Sequence[str]] | None = None) -> list[list[str]]:
    """What the guest is told of these probes; `$name` becomes the words of that name."""
    known = words or {}
    return [
        [probe.name, *(part for word in probe.act for part in known.get(word, (word,)))]
        for probe in probes
        if probe.act
    ]


def ended(run: Run) -> Ended:
    """Wait for it, and take apart what it said."""
    outcome = run.wait()
    said = {}
    for line in outcome.log.splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict) and "probe" in told:
            said[str(told["probe"])] = str(told.get("seen"))
    return Ended(outcome, said)


def await_progress(run: Run) -> bool:
    """Whether the guest came so far as to report progress."""
    deadline_s = time.monotonic() + READY_S
    while run.progress() is None:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(BEAT_S)
    return True


# ------------------------------------------------------------------ what the host offers, and nobody should reach


@dataclass(frozen=True)
class Lures:
    """Doors of the host: a TCP and a UDP port of its loopback, and an abstract Unix socket."""

    tcp: socket.socket
    udp: socket.socket
    abstract: socket.socket

    def words(self) -> dict[str, list[str]]:
        """How a guest would call them."""
        return {
            "$tcp": [str(self.tcp.getsockname()[1])],
            "$udp": [str(self.udp.getsockname()[1])],
            "$abstract": [self.abstract.getsockname()[1:].decode()],
        }

    def reached(self) -> frozenset[str]:
        """Which of them somebody came to."""
        doors = {"$tcp": self.tcp.accept, "$udp": lambda: self.udp.recv(1), "$abstract": self.abstract.accept}
        found = set()
        for word, come in doors.items():
            try:
                caller = come()
            except BlockingIOError:
                continue
            found.add(word)
            if isinstance(caller, tuple):
                caller[0].close()
        return frozenset(found)


@contextmanager
def lures(name: str) -> Iterator[Lures]:
    """The doors, open while the context lasts. They answer nobody."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as abstract,
    ):
        tcp.bind(("127.0.0.1", 0))
        udp.bind(("127.0.0.1", 0))
        abstract.bind(f"\0dc-compute-{name}")
        for door in (tcp, abstract):
            door.listen()
        for door in (tcp, udp, abstract):
            door.setblocking(False)
        yield Lures(tcp, udp, abstract)
