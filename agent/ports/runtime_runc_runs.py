"""What is remembered of runc's runs: a folder for each below `runs`, in memory, from before its container is made until after
it is gone. So whoever comes later finds every container of this agent, and no two runs get one id map.
"""

import contextlib
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from agent.domain.ids import Digest
from agent.domain.prepared import prepared
from agent.errors import RuntimeUnavailable
from agent.ports import process_times, run_end
from agent.ports.alone import alone
from agent.ports.container_run import kill
from agent.ports.run_kept import Kept

GONE_WAIT_S = 30.0
END_GRACE_S = 10.0  # from the end of the container to conmon's own
NOTE = "run.json"


class Known(Struct, frozen=True, kw_only=True):
    """One run. `number`: of its id map; `image`: whose root it uses. `pid`: the container's first process; `monitor`: conmon; 0
    before they are there. A process is known by when it began too, in the kernel's ticks: another one may get its id later.

    `mark` tells it from a later run of the same name; `cgroup`: what /proc/<pid>/cgroup said. `kept` is there once the cage was
    looked at and found right, before the image's program may begin; `let_go_s`, seconds since the boot, is written with it.
    """

    instance: str
    name: str
    labels: Mapping[str, str]
    number: int
    image: Digest
    pid: int = 0
    began: int = 0
    monitor: int = 0
    monitor_began: int = 0
    mark: str = ""
    cgroup: str = ""
    kept: Kept | None = None
    let_go_s: float = 0.0

    def age_s(self) -> float:
        """Seconds since its program was let go, which is when its wall clock began; those in which the host slept too."""
        if self.let_go_s:
            return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - self.let_go_s)
        return process_times.seconds_since(self.began)  # a run of a version that did not write it down

    def is_alive(self) -> bool:
        """Whether the container's first process lives."""
        return process_times.is_there(self.pid, self.began)

    def is_running(self) -> bool:
        """Whether it lives, and its program was let go or is about to be."""
        return self.kept is not None and self.is_alive()

    def end(self) -> None:
        """Kill the container, and wait until it and conmon are gone. Raises: RuntimeUnavailable when one stays."""
        _end(self.pid, self.began, kills=True)
        _end(self.monitor, self.monitor_began, kills=False)


class Runs:
    """The runs of one agent, `instance`, among those of all agents of its user that share `folder`."""

    def __init__(self, folder: Path, instance: str) -> None:
        self._folder, self._instance = folder, instance

    def folder_of(self, name: str) -> Path:
        """A run's folder; its name is the container's. Short: conmon's socket lies in there."""
        mark = hashlib.sha256(f"{self._instance}/{name}".encode()).hexdigest()[:20]
        return self._folder / f"dc-{mark}"

    def own(self) -> tuple[Known, ...]:
        """This agent's runs."""
        return tuple(known for known in self._every() if known.instance == self._instance)

    def read(self, folder: Path) -> Known | None:
        """What is remembered there, None when nothing is."""
        try:
            return msgspec.json.decode((folder / NOTE).read_bytes(), type=prepared(Known))
        except (OSError, msgspec.MsgspecError):
            return None

    def claim(
        self, name: str, labels: Mapping[str, str], image: Digest, pool: range, limit: int
    ) -> Known | None:
        """A new run with an id map that no other has, None while all are in use or `limit` runs of this agent go on.

        Raises: RuntimeUnavailable when a run of this name is there.
        """
        with self.alone():
            folder = self.folder_of(name)
            if folder.exists():
                raise RuntimeUnavailable(f"a container named {name} is still there")
            number = self._free_map(pool)
            if number is None or len(self.own()) >= limit:
                return None
            known = Known(
                instance=self._instance,
                name=name,
                labels=dict(labels),
                number=number,
                image=image,
                mark=uuid.uuid4().hex,
            )
            folder.mkdir(mode=0o700)
            (folder / "exit").mkdir()
            self._write(folder, known)
            return known

    def code_of(self, folder: Path, known: Known, monitor: int | None) -> int | None:
        """The exit code that conmon wrote down before it went; None when it died before it could, or the run is not there any
        more. `monitor`: a pidfd of conmon, None when it is gone.
        """
        if monitor is not None:
            run_end.ends_within(monitor, END_GRACE_S)
        try:
            code = int((folder / "exit" / folder.name).read_text())
        except (OSError, ValueError):
            return None
        return code if self.is_there(folder, known) else None

    def forget(self, folder: Path) -> None:
        """Take a run's folder away, what it is known by last: interrupted, it is found again. Gone already is fine.

        Raises: RuntimeUnavailable when something of it cannot go.
        """
        with self.alone(), _removing(folder):
            for path in folder.iterdir():
                if path.name != NOTE:
                    _remove(path)
            (folder / NOTE).unlink(missing_ok=True)
            folder.rmdir()

    def clear(self) -> None:
        """Take away the folders of runs that nobody remembers: whoever made or removed them was interrupted there."""
        with self.alone():
            for folder in self._folder.iterdir():
                if not (folder / NOTE).exists():
                    shutil.rmtree(folder, ignore_errors=True)

    def uses(self, image: Digest) -> bool:
        """Whether a run of any agent uses the image."""
        return any(known.image == image for known in self._every())

    def is_there(self, folder: Path, known: Known) -> bool:
        """Whether this very run is remembered there still: not taken away, nor followed by one of the same name."""
        now = self.read(folder)
        return now is not None and now.mark == known.mark

    def remember(self, folder: Path, known: Known) -> None:
        """Write down what is new of a run. Raises: RuntimeUnavailable when somebody took it away meanwhile."""
        with self.holding(folder, known):
            self._write(folder, known)

    @contextlib.contextmanager
    def holding(self, folder: Path, known: Known) -> Iterator[None]:
        """While the context lasts the name is this very run's, and no other's. Raises: RuntimeUnavailable when it is not."""
        with self.alone():
            if not self.is_there(folder, known):
                raise RuntimeUnavailable(f"the container {known.name} was removed by somebody else")
            yield

    def _write(self, folder: Path, known: Known) -> None:
        """A reader sees all of it or what was there before."""
        part = folder / f"{NOTE}.part"
        part.write_bytes(msgspec.json.encode(known))
        part.replace(folder / NOTE)

    def _every(self) -> tuple[Known, ...]:
        folders = sorted(self._folder.iterdir()) if self._folder.is_dir() else ()
        found = (self.read(folder) for folder in folders)
        return tuple(known for known in found if known is not None)

    def _free_map(self, pool: range) -> int | None:
        """The highest id map that no run has: Podman, which may serve the same user, begins with the lowest."""
        taken = {known.number for known in self._every()}
        return next((number for number in reversed(pool) if number not in taken), None)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One at a time over all agents with this folder."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with alone(self._folder):
            yield


@contextlib.contextmanager
def _removing(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as cause:
        raise RuntimeUnavailable(f"what is remembered of a run stays at {folder}: {cause}") from cause


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def end_unknown(name: str, state: Path) -> None:
    """Kill a container whose processes nobody wrote down, and all who were making it: they bear its name among their words, and
    the container's first process stands in runc's `state`. (runc itself could not kill it: it is asked in another user
    namespace than the one that the container is in.) Raises: RuntimeUnavailable when one stays.
    """
    while makers := [pid for pid in _own_processes() if _makes(pid, name)]:
        for pid in makers:
            with contextlib.suppress(OSError):  # it ended meanwhile
                _end(pid, process_times.began(pid), kills=True)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads((state / "state.json").read_bytes())
        _end(int(told["init_process_pid"]), int(told["init_process_start"]), kills=True)


def _own_processes() -> Iterator[int]:
    """Processes of the agent's user, itself left out."""
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if path.name.isdigit() and path.stat().st_uid == os.getuid() and int(path.name) != os.getpid():
                yield int(path.name)


def _makes(pid: int, name: str) -> bool:
    """Whether it is conmon or runc, at work on the container of this name."""
    try:
        program, *words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    return program.rpartition("/")[2] in {"conmon", "runc"} and name in words


def _end(pid: int, when: int, *, kills: bool) -> None:
    pidfd = process_times.open_process(pid, when)
    if pidfd is None:
        return
    try:
        if kills:
            kill(pidfd)
        if not run_end.ends_within(pidfd, GONE_WAIT_S):
            raise RuntimeUnavailable(f"process {pid} of a container does not end")
    finally:
        os.close(pidfd)
