"""A container engine without containers: a guest is a Python function, its mounts are folders, its cage is good will.

runtime = MemoryRuntime({"algo": lambda guest: guest.write("/data/model/weights", "0.5")})
runtime.load(archive, digest)         # a real archive: the program is named by its entry point's last word
runtime.add(digest, "algo")           # or none at all
"""

import os
import stat
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from msgspec.structs import replace

from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest, digest_of, hex_of
from agent.errors import BadImage, BadOutput, CageNotApplied, ContainerLost, RuntimeUnavailable
from agent.ports.image_archive import inspect
from agent.ports.run_kept import plan_of
from agent.ports.run_log import RunLog
from agent.ports.runtime import (
    Cage,
    Enforcement,
    ImageInfo,
    Leftover,
    Mount,
    RunKind,
    RunOutcome,
    RunSpec,
)

SIGKILL = 9


class _Killed(BaseException):
    """Raised in the guest's own thread at its next word to the outside."""


class WorkerDied(BaseException):
    """Raised in the `with` of a run: its worker dies there, and removes nothing. The container goes on."""


@dataclass(slots=True)
class Guest:
    """What a program sees: its arguments and its mounted folders. Everything it does goes through here."""

    args: tuple[str, ...]
    kind: RunKind
    _spec: RunSpec
    _log: RunLog
    _killed: threading.Event = field(default_factory=threading.Event)

    def path(self, inside: str) -> Path:
        """Where an absolute path of the container lies on this host. Raises: FileNotFoundError below no mount."""
        self._check_alive()
        mount = self._mount(inside)
        return mount.source / inside[len(mount.target) :].lstrip("/")

    def write(self, inside: str, content: str | bytes) -> None:
        """Write a file. Raises: OSError when it lies below no writable mount."""
        path = self.path(inside)
        if not self._mount(inside).is_writable:
            raise OSError(30, "Read-only file system", inside)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def read(self, inside: str) -> bytes:
        """The content of a file."""
        return self.path(inside).read_bytes()

    def names(self, inside: str) -> tuple[str, ...]:
        """What a folder holds, sorted."""
        return tuple(sorted(os.listdir(self.path(inside))))

    def say(self, text: str) -> None:
        """A line on stdout."""
        self._check_alive()
        self._log.add(f"{text}\n".encode(), is_stdout=True)

    def say_error(self, text: str) -> None:
        """A line on stderr."""
        self._check_alive()
        self._log.add(f"{text}\n".encode(), is_stdout=False)

    def sleep(self, seconds: float) -> None:
        """Sleep until then, or until killed."""
        self._killed.wait(seconds)
        self._check_alive()

    def _mount(self, inside: str) -> Mount:
        """The innermost one. Raises: FileNotFoundError."""
        mounts = self._spec.mounts
        found = [one for one in mounts if inside == one.target or inside.startswith(f"{one.target}/")]
        if not found:
            raise FileNotFoundError(inside)
        return max(found, key=lambda one: len(one.target))

    def _check_alive(self) -> None:
        if self._killed.is_set():
            raise _Killed


# What a program gives back: nothing or 0 for success, an exit code, 128 + n for a death by signal n.
Program = Callable[[Guest], int | None]


class MemoryRun:
    """Implements `Run`: a thread."""

    def __init__(self, spec: RunSpec, program: Program, cage: Cage) -> None:
        self._spec, self._program, self._cage = spec, program, cage
        self._log = RunLog(spec.ceilings.log_bytes)
        self._guest = Guest(spec.args, spec.kind, spec, self._log)
        self._code = 0
        self.is_left = False
        self._began_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self) -> RunOutcome:
        self._thread.join(self._began_s + self._spec.ceilings.wall_s - time.monotonic())
        is_late = self._thread.is_alive()
        self.end()
        return RunOutcome(
            cause="timeout" if is_late else _cause(self._code),
            cage=self._cage,
            log=self._log.kept(),
            wall_s=time.monotonic() - self._began_s,
        )

    def leave(self) -> None:
        self.is_left = True

    def kill(self) -> None:
        self._guest._killed.set()

    def progress(self) -> float | None:
        return self._log.progress()

    def is_running(self) -> bool:
        return self._thread.is_alive()

    def end(self) -> None:
        self.kill()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._code = self._program(self._guest) or 0
        except _Killed:
            self._code = 128 + SIGKILL
        except Exception:
            self._log.add(traceback.format_exc().encode(), is_stdout=False)
            self._code = 1


class EndedRun:
    """Implements `Run`: a container that ended while nobody watched, with this code; None: nobody can tell how."""

    def __init__(self, code: int | None, cage: Cage) -> None:
        self._code, self._cage = code, cage
        self.is_left = False

    def wait(self) -> RunOutcome:
        cause = "unknown" if self._code is None else _cause(self._code)
        return RunOutcome(cause=cause, cage=self._cage, log=b"", wall_s=1.0)

    def leave(self) -> None:
        self.is_left = True

    def kill(self) -> None:
        pass

    def progress(self) -> float | None:
        return None

    def is_running(self) -> bool:
        return False

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class _Held:
    """A container that is there; `run` is None while its program never began."""

    spec: RunSpec
    run: MemoryRun | EndedRun | None


class MemoryRuntime:
    """Implements `Runtime`. `absent`: ceilings this host lacks. `is_down`: the engine does not answer."""

    name = "memory"

    def __init__(
        self,
        programs: Mapping[str, Program],
        *,
        absent: tuple[str, ...] = (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._programs, self._absent, self._now = dict(programs), absent, now
        self.refusals: list[Exception] = []  # what the next runs meet, the last one first
        self._images: dict[Digest, ImageInfo] = {}
        self._runs: dict[str, _Held] = {}
        self.specs: list[RunSpec] = []  # every run that was begun, in order
        self.frames: list[RunSpec] = []  # every one that was made ahead of its run, in order
        self._framed: dict[str, _Held] = {}  # those that no run took
        self.is_worker_gone = False  # nobody lets go of a frame: its worker was killed
        self.is_down = False

    def add(self, digest: Digest, program: str) -> None:
        """An image that is there already, of this program."""
        self._images[digest] = ImageInfo(digest, 1, (program,), self._now())

    def leave_behind(self, spec: RunSpec, code: int | None = None) -> None:
        """A container that ended after its agent had died; without a code nobody can tell how."""
        self._runs[spec.name] = _Held(spec, EndedRun(code, self._cage(spec)))

    def leave_running(self, spec: RunSpec) -> None:
        """A container whose agent dies once its program has begun."""
        with suppress(WorkerDied), self.run(spec):
            raise WorkerDied

    def leave_unbegun(self, spec: RunSpec) -> None:
        """A container whose agent died before it let the program begin."""
        self._runs[spec.name] = _Held(spec, None)

    def enforcement(self) -> Enforcement:
        self._check_up()
        names = set(Ceilings.__struct_fields__) - set(self._absent)
        return Enforcement(version="0", means=dict.fromkeys(sorted(names), "thread"), absent=self._absent)

    def load(self, archive: Path, digest: Digest) -> ImageInfo:
        self._check_up()
        if digest not in self._images:
            found = inspect(archive, digest)
            self._images[digest] = ImageInfo(digest, found.size_bytes, found.entrypoint, self._now())
        return self._images[digest]

    def image(self, digest: Digest) -> ImageInfo | None:
        self._check_up()
        return self._images.get(digest)

    def images(self) -> tuple[ImageInfo, ...]:
        self._check_up()
        return tuple(self._images[digest] for digest in sorted(self._images))

    def discard(self, digest: Digest) -> bool:
        self._check_up()
        if any(held.spec.image == digest for held in self._runs.values()):
            return False
        self._images.pop(digest, None)
        return True

    def clear_images(self) -> int:
        self._check_up()
        return 0  # nothing is ever half loaded

    @contextmanager
    def run(self, spec: RunSpec) -> Iterator[MemoryRun]:
        self._check_up()
        program = self._program(spec.image)
        missing = set(self._absent) - spec.accept_missing
        if missing:
            raise CageNotApplied(f"this host cannot enforce: {', '.join(sorted(missing))}")
        if self.refusals:
            raise self.refusals.pop()
        self._drop_frame(self._framed.pop(spec.name, None))
        if spec.name in self._runs:
            raise RuntimeUnavailable(f"a container named {spec.name} is still there")
        self.specs.append(spec)
        self._images[spec.image] = replace(self._images[spec.image], used_at=self._now())
        self._runs[spec.name] = _Held(spec, None)  # before its program begins, as with a real engine
        run = MemoryRun(spec, program, self._cage(spec))
        held = self._runs[spec.name] = _Held(spec, run)
        with self._removing(held):
            yield run

    @contextmanager
    def framed(self, spec: RunSpec) -> Iterator[None]:
        self._check_up()
        if spec.image not in self._images or spec.name in self._runs:
            yield  # the run tells
            return
        frame = self._runs[spec.name] = self._framed[spec.name] = _Held(spec, None)
        self.frames.append(spec)
        try:
            yield
        finally:
            if self._framed.pop(spec.name, None) is frame and not self.is_worker_gone:
                self._drop_frame(frame)

    def _drop_frame(self, frame: _Held | None) -> None:
        """It is another run's by now where it was taken or removed."""
        if frame is not None and self._runs.get(frame.spec.name) is frame:
            del self._runs[frame.spec.name]

    @contextmanager
    def adopt(self, spec: RunSpec) -> Iterator[MemoryRun | EndedRun]:
        self._check_up()
        held = self._runs.get(spec.name)
        if held is None or dict(held.spec.labels) != dict(spec.labels):
            raise ContainerLost(f"there is no such container named {spec.name}")
        with self._removing(held):
            if held.run is None or plan_of(held.spec) != plan_of(spec):
                raise ContainerLost(f"the program of {spec.name} never began, or is another one")
            yield held.run

    @contextmanager
    def _removing(self, held: _Held) -> Iterator[None]:
        """Remove this very one, unless it is left to another worker or its own dies."""
        is_dead = False
        if held.run is not None:
            held.run.is_left = False
        try:
            yield
        except WorkerDied:
            is_dead = True
            raise
        finally:
            if not is_dead and (held.run is None or not held.run.is_left):
                self._remove(held)

    def leftovers(self) -> tuple[Leftover, ...]:
        self._check_up()
        return tuple(
            Leftover(name, dict(held.spec.labels), held.run is not None and held.run.is_running())
            for name, held in self._runs.items()
        )

    def remove(self, name: str) -> None:
        self._check_up()
        if name in self._runs:
            self._remove(self._runs[name])

    def _remove(self, held: _Held) -> None:
        self._check_up()
        if self._runs.get(held.spec.name) is held:
            del self._runs[held.spec.name]
        if held.run is not None:
            held.run.end()

    def reclaim(self, folder: Path) -> None:
        self._check_up()
        set_id = []
        folder.chmod(0o700)
        for parent, folders, names in os.walk(folder):
            for name in folders + names:
                path = Path(parent, name)
                mode = path.lstat().st_mode
                if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
                    set_id.append(name)
                if not stat.S_ISLNK(mode):
                    path.chmod(0o700 if stat.S_ISDIR(mode) else mode & 0o777 | 0o600)
        if set_id:
            raise BadOutput(f"{set_id[0]!r} was left with a set-id bit")

    def _program(self, digest: Digest) -> Program:
        image = self._images.get(digest)
        if image is None:
            raise BadImage(f"image {hex_of(digest)[:12]} is not loaded")
        return self._programs[PurePosixPath(image.entrypoint[-1]).stem]

    def _cage(self, spec: RunSpec) -> Cage:
        ceilings = {
            name: f"{getattr(spec.ceilings, name)} by thread" for name in spec.ceilings.__struct_fields__
        }
        for name in self._absent:
            del ceilings[name]
        return Cage(
            runtime=self.name,
            version="0",
            seccomp=digest_of(spec.kind.encode()),
            ceilings=ceilings,
            absent=self._absent,
        )

    def _check_up(self) -> None:
        if self.is_down:
            raise RuntimeUnavailable("the engine does not answer")


def _cause(code: int) -> str | None:
    if code == 0:
        return None
    return f"signal:{code - 128}" if code > 128 else f"exit:{code}"
