"""A container engine in virtual time: a container ends when its time has come, whether or not anybody still waits for it.

It belongs to the host, not to a process: who dies leaves its containers running. A guest is a function that acts at the end of
its container's time, all at once; one that is killed before left nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

from msgspec.structs import replace

from agent.domain.ids import Digest
from agent.errors import CageNotApplied, ContainerLost, RuntimeUnavailable
from agent.ports.run_log import RunLog
from agent.ports.runtime import Cage, ImageInfo, Leftover, RunOutcome, RunSpec
from tests.fakes.runtime import Guest, MemoryRuntime, Program
from tests.simulate.scheduler import Hub, Process, Reply


@dataclass(eq=False, slots=True)
class Container:
    """One of them. `code`: None while it runs, and when nobody knows."""

    spec: RunSpec
    cage: Cage
    program: Program
    log: RunLog
    began_s: float
    is_running: bool = True
    cause: str | None = None
    wall_s: float = 0.0
    waiting: list[Reply] = field(default_factory=list)
    framed_by: Process | None = None  # who made it ahead of its run, which did not take it yet


class SimulatedRun:
    """Implements `Run`."""

    def __init__(self, engine: "Engine", container: Container) -> None:
        self._engine, self._container = engine, container
        self.is_left = False

    def wait(self) -> RunOutcome:
        container, hub = self._container, self._engine.hub
        if container.is_running:
            reply = Reply(hub)
            container.waiting.append(reply)
            hub.wait(reply, None)  # its ceiling ends it
        return RunOutcome(
            cause=container.cause, cage=container.cage, log=container.log.kept(), wall_s=container.wall_s
        )

    def kill(self) -> None:
        self._engine.end(self._container, "signal:9")

    def leave(self) -> None:
        self.is_left = True

    def progress(self) -> float | None:
        return None


class Engine(MemoryRuntime):
    """Implements `Runtime`. `lasts_s(spec)`: how long a container runs; `ended(container)` hears of each end."""

    def __init__(
        self,
        programs: Mapping[str, Program],
        hub: Hub,
        dice: Random,
        *,
        now: Callable[[], datetime],
        ended: Callable[[Container], None],
    ) -> None:
        super().__init__(programs, now=now)
        self.hub = hub
        self._dice = dice
        self._ended = ended
        self.containers: dict[str, Container] = {}
        self._cages: dict[object, Cage] = {}

    # ---- what nemeses do

    @property
    def running(self) -> list[Container]:
        return [container for container in self.containers.values() if container.is_running]

    def end(self, container: Container, cause: str | None) -> None:
        """It ends so, unless it ended before."""
        if not container.is_running:
            return
        container.is_running, container.cause = False, cause
        container.wall_s = round(self.hub.now_s - container.began_s, 3)
        self._ended(container)
        for reply in container.waiting:
            reply.give()
        container.waiting.clear()

    def forget_all(self) -> None:
        """The host loses its memory."""
        for container in self.containers.values():
            container.is_running = False
        self.containers.clear()

    # ---- the port

    def load(self, archive: Path, digest: Digest) -> ImageInfo:
        """An archive here is its program's name."""
        self._check_up()
        program = archive.read_bytes().decode()
        self.add(digest, program)
        return self._images[digest]

    @contextmanager
    def run(self, spec: RunSpec) -> Iterator[Any]:
        yield from self._in_hand(self._start(spec))

    @contextmanager
    def framed(self, spec: RunSpec) -> Iterator[None]:
        frame = self._make(spec)
        frame.is_running, frame.framed_by = False, self.hub.process
        try:
            yield
        finally:
            if frame.framed_by is not None and self.containers.get(spec.name) is frame:
                del self.containers[spec.name]

    @contextmanager
    def adopt(self, spec: RunSpec) -> Iterator[Any]:
        self._check_up()
        container = self.containers.get(spec.name)
        if container is not None and container.framed_by is not None:
            del self.containers[spec.name]
            raise ContainerLost(f"the program of {spec.name} never began")
        if container is None or dict(container.spec.labels) != dict(spec.labels):
            raise ContainerLost(f"no container named {spec.name} goes on")
        yield from self._in_hand(container)

    def _in_hand(self, container: Container) -> Iterator[SimulatedRun]:
        run = SimulatedRun(self, container)
        try:
            yield run
        finally:
            if not run.is_left:
                self.remove(container.spec.name)

    def leftovers(self) -> tuple[Leftover, ...]:
        self._check_up()
        return tuple(
            Leftover(name, dict(container.spec.labels), container.is_running)
            for name, container in self.containers.items()
        )

    def remove(self, name: str) -> None:
        self._check_up()
        container = self.containers.pop(name, None)
        if container is not None:
            self.end(container, "signal:9")

    def discard(self, digest: Digest) -> bool:
        self._check_up()
        if any(container.spec.image == digest for container in self.containers.values()):
            return False
        self._images.pop(digest, None)
        return True

    def _start(self, spec: RunSpec) -> Container:
        frame = self.containers.get(spec.name)
        if frame is not None and frame.framed_by is self.hub.process is not None and frame.spec == spec:
            del self.containers[spec.name]  # it is this run's from now on
            frame.framed_by = None
        container = self._make(spec)
        self.hub.at(self.hub.now_s + self._lasts_s(), self._come_to_its_end, container)
        return container

    def _make(self, spec: RunSpec) -> Container:
        self._check_up()
        program = self._program(spec.image)
        if set(self._absent) - spec.accept_missing:
            raise CageNotApplied("this host lacks what the spec asks for")
        if spec.name in self.containers:
            raise RuntimeUnavailable(f"a container named {spec.name} is still there")
        self._images[spec.image] = replace(self._images[spec.image], used_at=self._now())
        cage = self._cages.get((spec.kind, spec.ceilings))
        if cage is None:
            cage = self._cages[spec.kind, spec.ceilings] = self._cage(spec)
        log = RunLog(spec.ceilings.log_bytes)
        container = Container(spec, cage, program, log, self.hub.now_s)
        self.containers[spec.name] = container
        return container

    def _lasts_s(self) -> float:
        """Mostly seconds, now and then longer than a lease."""
        return (
            self._dice.uniform(0.5, 12.0) if self._dice.random() < 0.85 else self._dice.uniform(30.0, 200.0)
        )

    def _come_to_its_end(self, container: Container) -> None:
        if not container.is_running:
            return
        guest = Guest(container.spec.args, container.spec.kind, container.spec, container.log)
        try:
            code = container.program(guest) or 0
        except (OSError, ValueError):  # its folders are gone
            code = 1
        self.end(container, f"exit:{code}" if code else None)
