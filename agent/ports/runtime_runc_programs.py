"""runc and conmon, called inside the user namespace: one command each way, and what they say as errors of ours."""

import ctypes
import errno
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

from agent.domain.ceilings import Ceilings
from agent.domain.file_systems import IN_MEMORY
from agent.errors import BadImage, CageNotApplied, CageNotMade, RuntimeUnavailable
from agent.ports import cage
from agent.ports.runtime_runc_cgroups import Cgroups
from agent.ports.user_namespace import Failed, UserNamespace

TOOL_TIMEOUT_S = 10.0
LOG_FACTOR = 2  # conmon's own copy of the log is a stand-in for a dead agent: it keeps the newest part
LEAST_LOG_BYTES = 1 << 16
STATFS_BYTES = 256  # more than struct statfs has; its first word is the kind of file system
STATE, FIFO = "state.json", "exec.fifo"  # of a container in runc's own folder
CGROUP_WAIT_S, CGROUP_LOOK_S = 0.2, 0.002
PASSING = "Resource temporarily unavailable"  # processes that were killed a moment ago still count under the same ids
NOT_STARTABLE = re.compile(
    r'exec: \\?".*(no such file|permission denied|exec format|not found in|is a directory)'
)


class Programs:
    """Both programs. `path`: where they are looked for; `root`: where runc keeps its state."""

    def __init__(self, inside: UserNamespace, root: Path, cgroups: Cgroups, path: str) -> None:
        self._inside, self._root, self._cgroups, self._path = inside, root, cgroups, path

    def check(self) -> None:
        """Raises: RuntimeUnavailable when one is not here."""
        for name in ("runc", "conmon"):
            self._find(name)

    def version(self) -> str:
        """ "runc 1.1.5, conmon 2.1.6". Raises: RuntimeUnavailable."""
        return ", ".join(self._version(name) for name in ("runc", "conmon"))

    def create(self, folder: Path, ceilings: Ceilings) -> int:
        """Make the container of the bundle in `folder`, under conmon, which stays; its first process waits before the image's
        program. Gives that process's id. Raises: BadImage when the image cannot start; CageNotApplied, RuntimeUnavailable.
        """
        name, link = folder.name, f"{self._inside.stage}/runc"
        words = {
            "--api-version": 1,  # else it says nothing of the container
            "--cid": name,
            "--cuuid": name,
            "--name": name,
            "--bundle": folder,
            "--runtime": link,
            "--container-pidfile": folder / "pid",
            "--conmon-pidfile": folder / "conmon.pid",
            "--exit-dir": folder / "exit",
            # What a guest says may be data: it is written down only where that is memory.
            "--log-path": f"k8s-file:{folder / 'log'}" if _lies_in_memory(folder) else "none",
            "--log-level": "error",
            "--log-size-max": max(LOG_FACTOR * ceilings.log_bytes, LEAST_LOG_BYTES),
            "--timeout": min(ceilings.wall_s + cage.ORPHAN_GRACE_S, cage.LONGEST_TIMEOUT_S),
        }
        command = [self._find("conmon"), *(str(word) for pair in words.items() for word in pair)]
        command += ["--full-attach", "--runtime-arg=--root", f"--runtime-arg={self._root}"]
        command += self._cgroups.options
        try:
            runc, helpers = self._find("runc"), self._cgroups.helpers()
            told = self._inside.ask("monitor", command, self._env(), runc, link, helpers)
            answer = json.loads(told["told"] or "{}")
        except Failed as refusal:
            raise RuntimeUnavailable(f"conmon does not start: {refusal}") from refusal
        except ValueError:
            answer = {}
        pid = answer.get("data")
        if not isinstance(pid, int) or pid <= 0:
            raise refusal_of(str(answer.get("message", "conmon said nothing")), "runc did not make the cage")
        return pid

    def runc(self, *words: str) -> None:
        """Raises: BadImage, CageNotApplied with what runc says; RuntimeUnavailable."""
        command = [self._find("runc"), "--root", str(self._root), *self._cgroups.options, *words]
        try:
            done = self._inside.ask("run", command, self._env())
        except Failed as refusal:
            raise RuntimeUnavailable(f"runc does not start: {refusal}") from refusal
        if done["code"] != 0:
            raise refusal_of(done["errors"], f"runc {words[0]} failed")

    def start(self, name: str, pid: int) -> None:
        """Let the image's program begin. `pid`: the container's first process, which waits at a pipe for whoever opens it.

        Raises: BadImage, CageNotApplied with what runc says; RuntimeUnavailable.
        """
        try:
            self._inside.ask("let_go", str(self.state_of(name) / FIFO), pid)
        except Failed as refusal:
            if refusal.number != errno.ENOENT:
                raise RuntimeUnavailable(f"a container was not started: {refusal}") from refusal
            self.runc("start", name)  # one that has no such pipe, or a word for why not

    def forget(self, name: str) -> None:
        """Let go of an ended container's state and cgroups. Gone already is fine. Raises: RuntimeUnavailable."""
        state = self.state_of(name)
        if not state.exists():
            return
        if not self._cgroups.by_systemd and _remove_cgroups(state):
            (state / STATE).unlink(missing_ok=True)  # first: without it nobody takes it for one that began
            shutil.rmtree(state, ignore_errors=True)
        if not state.exists():
            return
        try:
            self.runc("delete", "--force", name)
        except (BadImage, CageNotApplied) as refusal:
            if self.state_of(name).exists():  # else somebody else was quicker
                raise RuntimeUnavailable(f"runc keeps a container: {refusal}") from refusal

    def has_begun(self, name: str) -> bool:
        """Whether the image's program was let go: the pipe it waits at is gone, while runc knows the container."""
        state = self.state_of(name)
        return (state / STATE).exists() and not (state / FIFO).exists()

    def state_of(self, name: str) -> Path:
        """The folder of runc's state of a container."""
        return self._root / name

    def _find(self, name: str) -> str:
        found = shutil.which(name, path=self._path)
        if found is None:
            raise RuntimeUnavailable(f"{name} is not installed")
        return found

    def _version(self, name: str) -> str:
        try:
            done = subprocess.run(
                [self._find(name), "--version"],
                env={"PATH": self._path},
                capture_output=True,
                text=True,
                check=True,
                timeout=TOOL_TIMEOUT_S,
            )
        except (OSError, subprocess.SubprocessError) as cause:
            raise RuntimeUnavailable(f"{name} does not run: {cause}") from cause
        return done.stdout.splitlines()[0].replace(" version ", " ")

    def _env(self) -> dict[str, str]:
        return {"PATH": self._path, **self._cgroups.environment}


def _lies_in_memory(folder: Path) -> bool:
    told = ctypes.create_string_buffer(STATFS_BYTES)
    if ctypes.CDLL(None).statfs(os.fsencode(folder), told) != 0:
        return False
    return ctypes.c_long.from_buffer(told).value in IN_MEMORY.values()


def _remove_cgroups(state: Path) -> bool:
    """Take away the cgroups that runc wrote down for an ended container; whether none is left."""
    try:
        told = json.loads((state / STATE).read_bytes())
        folders = [Path(path) for path in (told["cgroup_paths"] or {}).values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    deadline_s = time.monotonic() + CGROUP_WAIT_S
    while left := [folder for folder in folders if not _is_removed(folder)]:
        if time.monotonic() > deadline_s:
            return False
        folders = left
        time.sleep(CGROUP_LOOK_S)  # nothing tells when the last of its processes is accounted for
    return True


def _is_removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def refusal_of(words: str, what: str) -> BadImage | CageNotMade | RuntimeUnavailable:
    """runc's words as an error: of its own doing, of what the image names as its program, or of what passes by itself."""
    says = " ".join(words.split())[:500]
    if NOT_STARTABLE.search(says):
        return BadImage(f"the image cannot start: {says}")
    if PASSING.lower() in says.lower():
        return RuntimeUnavailable(f"{what} now: {says}")
    return CageNotMade(f"{what}: {says}")
