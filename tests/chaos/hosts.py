"""Where the processes of a run live: each hospital on a host of its own, a network namespace where root made them.

Root makes them before it drops to the unprivileged user (`warden.py`, started by `.ci/rootless --nets`). Without it every host
is a loopback address of this one.
"""

import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.host.podman import ROOT

WARDEN = "DC_COMPUTE_CHAOS_WARDEN"  # the number of the open socket on which the warden is told what to do
DESK = "desk"  # the host of the orchestrators


@dataclass(frozen=True)
class Child:
    """A process that was started on a host. `pidfd` knows it beyond its end."""

    pid: int
    pidfd: int

    @classmethod
    def of(cls, pid: int) -> "Child":
        return cls(pid, os.pidfd_open(pid))

    @property
    def has_ended(self) -> bool:
        return self.wait(0)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within that time."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        has_ended = bool(poll.poll(timeout_s * 1000))
        if has_ended:
            with suppress(ChildProcessError):  # the warden's own child, or reaped already
                os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        return has_ended

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; one that has ended takes none."""
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return


class Hosts(Protocol):
    """The hosts of a run. `addresses`: by hospital, and of the desk."""

    addresses: Mapping[str, str]
    are_apart: bool
    can_cut: bool

    def spawn(self, host: str, command: Sequence[str], log: Path, env: Mapping[str, str]) -> Child:
        """Start a process there; what it says goes to the end of `log`."""
        ...

    def cut(self, source: str, target: str) -> None:
        """Lose every packet that `source` sends to `target`, until `heal`."""
        ...

    def heal(self, source: str, target: str) -> None:
        """Lose them no more."""
        ...

    def mount(self, folder: Path, size_bytes: int) -> bool:
        """A file system in memory of that size at `folder`; False where nobody may mount."""
        ...


class Loopback:
    """All hosts are addresses of this one. Nothing can be cut or mounted here: the proxies cut."""

    are_apart = False
    can_cut = False

    def __init__(self, names: Sequence[str]) -> None:
        self.addresses: Mapping[str, str] = {
            name: f"127.77.0.{number}" for number, name in enumerate((*names, DESK), 1)
        }

    def spawn(self, host: str, command: Sequence[str], log: Path, env: Mapping[str, str]) -> Child:
        with log.open("ab") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=ROOT,
                env=dict(env),
                start_new_session=True,
            )
        process.returncode = 0  # whoever has the pidfd waits for it, not this object
        return Child.of(process.pid)

    def cut(self, source: str, target: str) -> None:
        raise NotImplementedError("hosts that are not apart are cut by the proxies")

    def heal(self, source: str, target: str) -> None:
        raise NotImplementedError("hosts that are not apart are healed by the proxies")

    def mount(self, folder: Path, size_bytes: int) -> bool:
        return False


class Apart:
    """Hosts in network namespaces: the warden, who is root, starts, cuts and mounts when it is asked."""

    are_apart = True

    def __init__(self, told: socket.socket) -> None:
        self._told = told
        self._answers = told.makefile("rb")
        self.addresses: Mapping[str, str] = self._ask(do="hosts")
        self.can_cut: bool = self._ask(do="can_cut")

    def spawn(self, host: str, command: Sequence[str], log: Path, env: Mapping[str, str]) -> Child:
        log.touch()
        words = [*map(str, command)]
        return Child.of(self._ask(do="spawn", host=host, command=words, log=str(log), env=dict(env)))

    def cut(self, source: str, target: str) -> None:
        self._ask(do="cut", source=source, target=target)

    def heal(self, source: str, target: str) -> None:
        self._ask(do="heal", source=source, target=target)

    def mount(self, folder: Path, size_bytes: int) -> bool:
        self._ask(do="mount", folder=str(folder), size_bytes=size_bytes)
        return True

    def _ask(self, **told: Any) -> Any:
        self._told.sendall(json.dumps(told).encode() + b"\n")
        answer = json.loads(self._answers.readline())
        if "error" in answer:
            raise OSError(f"the warden: {answer['error']}")
        return answer["ok"]


def find_hosts(names: Sequence[str]) -> Hosts:
    """The hosts that root made, or loopback where it made none."""
    number = os.environ.get(WARDEN)
    return Apart(socket.socket(fileno=int(number))) if number else Loopback(names)
