"""The agent as root of a user namespace that holds the guests' ids: a small process in there, asked line by line.

`UserNamespace.joined` enters one that is there (Podman's), `UserNamespace.made` makes one of the agent's subordinate ids.
What is asked is in `user_namespace_inner.py`, a program of its own. A process that is gone is started again at the next call.
"""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.errors import CageNotApplied, RuntimeUnavailable

PROGRAM = Path(__file__).with_name("user_namespace_inner.py")
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
MAP_TIMEOUT_S = 10.0


class IdRange(Struct, frozen=True):
    """Subordinate ids of a user: `count` from `first` on."""

    first: int
    count: int


class Failed(Exception):
    """What was asked in the namespace failed: an errno and its words."""

    def __init__(self, words: str, number: int | None) -> None:
        super().__init__(words)
        self.number = number


class UserNamespace:
    """One process in the namespace. Safe to share between threads: one call at a time."""

    def __init__(self, start: Callable[[], subprocess.Popen[str]]) -> None:
        self._start = start
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._ending: weakref.finalize[Any, Any] | None = None  # whoever forgets us ends the process
        self._stage = ""
        self.started = 0  # how often: what one process set up is gone with it

    @classmethod
    def joined(cls, pid: Callable[[], int]) -> "UserNamespace":
        """In the namespace of the process that `pid` names when it is needed."""
        return cls(lambda: _launch("join", str(pid())))

    @classmethod
    def made(cls, path: str = PATH) -> "UserNamespace":
        """In a new namespace: 0 is the agent's user, from 1 on come its subordinate ids in the order of /etc/subuid.

        `path`: where newuidmap and newgidmap are looked for.
        """
        return cls(lambda: _make(path))

    @classmethod
    def above(cls, pid: int) -> "UserNamespace":
        """In the one that the container of this process was made in, whoever made it: from there its processes can be seen."""
        return cls(lambda: _launch("above", str(pid)))

    @property
    def stage(self) -> str:
        """The folder in memory where runs are set up; only processes of the namespace see it. Raises: RuntimeUnavailable."""
        with self._lock:
            self._alive()
        return self._stage

    def ask(self, act: str, *arguments: object) -> dict[str, Any]:
        """What the act answers. Raises: Failed; RuntimeUnavailable when the namespace cannot be had."""
        with self._lock:
            process, answer = self._alive(), None
            try:
                _send(process, [act, list(arguments)])
                answer = _receive(process)
            except OSError as cause:
                raise RuntimeUnavailable(f"the process in the user namespace is gone: {cause}") from cause
            finally:
                if answer is None:  # interrupted: what it answers yet would be taken for the next answer
                    self._drop()
        if "failed" in answer:
            raise Failed(answer["failed"], answer["errno"])
        done: dict[str, Any] = answer["done"]
        return done

    def do(self, act: str, *arguments: object) -> dict[str, Any]:
        """The same where a failure is the engine's. Raises: RuntimeUnavailable."""
        try:
            return self.ask(act, *arguments)
        except Failed as refusal:
            raise RuntimeUnavailable(f"{act} in the user namespace failed: {refusal}") from refusal

    def close(self) -> None:
        """End the process. Whatever it started goes on."""
        with self._lock:
            self._drop()

    def _alive(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is not None:
            self._drop()
        if self._process is None:
            process = self._start()
            try:
                self._stage = _receive(process)["stage"] or ""
            except OSError as cause:
                _end(process)
                raise RuntimeUnavailable(f"the user namespace cannot be entered: {cause}") from cause
            self._process = process
            self.started += 1
            self._ending = weakref.finalize(self, _end, process)
        return self._process

    def _drop(self) -> None:
        if self._ending is not None:
            self._ending()
        self._process = self._ending = None


def subordinate_ids(file: Path, user: str, uid: int) -> tuple[IdRange, ...]:
    """The ranges that /etc/subuid or /etc/subgid gives to a user, by name or number. Raises: CageNotApplied without any."""
    try:
        lines = [line.split(":") for line in file.read_text().splitlines()]
    except OSError as cause:
        raise CageNotApplied(f"{file} cannot be read: {cause.strerror}") from cause
    ranges = tuple(
        IdRange(int(parts[1]), int(parts[2]))
        for parts in lines
        if len(parts) == 3 and parts[0] in {user, str(uid)} and parts[1].isdigit() and parts[2].isdigit()
    )
    if not ranges:
        raise CageNotApplied(f"{file} gives no ids to {user}: see usermod --add-subuids, --add-subgids")
    return ranges


def own_subordinate_ids() -> tuple[tuple[IdRange, ...], tuple[IdRange, ...]]:
    """The agent's own, of users and of groups. Raises: CageNotApplied."""
    uid = os.getuid()
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        user = str(uid)
    users, groups = (subordinate_ids(Path(f"/etc/{name}"), user, uid) for name in ("subuid", "subgid"))
    return users, groups


def _make(path: str) -> subprocess.Popen[str]:
    users, groups = own_subordinate_ids()
    process = _launch("make")
    try:
        pid = str(_receive(process)["unshared"])
        _map(path, "newuidmap", pid, os.getuid(), users)
        _map(path, "newgidmap", pid, os.getgid(), groups)
        _send(process, {})
    except (OSError, subprocess.SubprocessError) as cause:
        _end(process)
        raise RuntimeUnavailable(f"a user namespace cannot be made: {cause}") from cause
    return process


def _map(path: str, program: str, pid: str, own: int, ranges: Sequence[IdRange]) -> None:
    found = shutil.which(program, path=path)
    if found is None:
        raise OSError(f"{program} is not installed")
    words = [found, pid, "0", str(own), "1"]
    inside = 1
    for one in ranges:
        words += [str(inside), str(one.first), str(one.count)]
        inside += one.count
    done = subprocess.run(words, env={}, capture_output=True, text=True, check=False, timeout=MAP_TIMEOUT_S)
    if done.returncode != 0:
        raise OSError(f"{program} refused: {done.stderr.strip()[:200]}")


def _launch(*words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(PROGRAM), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(env or {}),
            cwd="/",
            start_new_session=True,  # a terminal's signals are not for it
        )
    except OSError as cause:
        raise RuntimeUnavailable(f"the program of the user namespace cannot start: {cause}") from cause


def _send(process: subprocess.Popen[str], document: object) -> None:
    assert process.stdin is not None  # noqa: S101 - it was opened with a pipe
    process.stdin.write(json.dumps(document) + "\n")
    process.stdin.flush()


def _receive(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The next answer. Raises: OSError, with the program's own last words, when it ended instead."""
    assert process.stdout is not None and process.stderr is not None  # noqa: S101, PT018 - as above
    line = process.stdout.readline()
    if not line:
        words = process.stderr.read().strip().splitlines()[-1:]
        raise OSError(" ".join(words)[:300] or "it ended without a word")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()
