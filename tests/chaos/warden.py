"""Root's part of a run, and all of it: hosts as network namespaces on one bridge, processes started in them, links cut, memory
mounted. `.ci/rootless --nets` starts it in a network and mount namespace that end with it: nothing needs tearing down.

    python -m tests.chaos.warden USER COMMAND...     as root

COMMAND runs as USER with a socket's number in DC_COMPUTE_CHAOS_WARDEN: a line of JSON asks, a line answers (`hosts.Apart`).
What is started is started as USER; the warden does nothing for anybody else.
"""

import grp
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.hosts import DESK, WARDEN
from tests.chaos.plan import HOSPITALS

NETWORK = "10.77.0"
BRIDGE = "chaos0"


@dataclass(frozen=True)
class Warden:
    """Who is served: `user` alone. `children`: what was started, until it is known to have ended."""

    user: pwd.struct_passwd
    addresses: Mapping[str, str]
    children: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def answer(self, told: dict[str, Any]) -> Any:
        """Do what was asked. Raises: OSError, CalledProcessError, KeyError."""
        acts: Mapping[str, Callable[..., Any]] = {
            "hosts": lambda: dict(self.addresses),
            "can_cut": can_cut,
            "spawn": self.spawn,
            "cut": lambda source, target: self._filter("-A", source, target),
            "heal": lambda source, target: self._filter("-D", source, target),
            "mount": self.mount,
        }
        return acts[told.pop("do")](**told)

    def spawn(self, host: str, command: list[str], log: str, env: Mapping[str, str]) -> int:
        """Start a process as the user, on this host; its pid."""
        there = [] if host == DESK else ["nsenter", f"--net=/run/netns/{host}", "--"]
        with open(log, "ab") as out:
            process = subprocess.Popen(
                [*there, *_as_user(self.user), "env", "-i", *(f"{name}={value}" for name, value in env.items()), *command],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self.children[:] = [child for child in (*self.children, process) if child.poll() is None]
        return process.pid

    def mount(self, folder: str, size_bytes: int) -> None:
        """A tmpfs of that size on an empty folder of the user's."""
        if Path(folder).stat().st_uid != self.user.pw_uid or any(Path(folder).iterdir()):
            raise PermissionError(f"{folder} is no empty folder of {self.user.pw_name}")
        options = f"size={size_bytes},mode=0700,uid={self.user.pw_uid},gid={self.user.pw_gid},nosuid,nodev"
        _run("mount", "-t", "tmpfs", "-o", options, "chaos", folder)

    def _filter(self, how: str, source: str, target: str) -> None:
        """Packets from `source` that reach `target` are dropped there, or no more."""
        there = [] if target == DESK else ["nsenter", f"--net=/run/netns/{target}", "--"]
        _run(*there, "iptables", "-w", how, "INPUT", "-s", self.addresses[source], "-j", "DROP")


def make_hosts() -> dict[str, str]:
    """The bridge, where the desk is, and a namespace for each hospital; addresses by name. Raises: CalledProcessError."""
    addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate(HOSPITALS, 1)}
    addresses[DESK] = f"{NETWORK}.254"
    os.makedirs("/run/netns", exist_ok=True)
    _run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", BRIDGE, "type", "bridge")
    _run("ip", "addr", "add", f"{addresses[DESK]}/24", "dev", BRIDGE)
    _run("ip", "link", "set", BRIDGE, "up")
    for name in HOSPITALS:
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", f"to-{name}", "master", BRIDGE, "up")
        _run("ip", "-n", name, "addr", "add", f"{addresses[name]}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", name, "link", "set", device, "up")
    return addresses


def can_cut() -> bool:
    """Whether this kernel filters packets."""
    try:
        _run("nsenter", f"--net=/run/netns/{HOSPITALS[0]}", "--", "iptables", "-w", "-L", "INPUT")
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def serve(warden: Warden, told: socket.socket) -> None:
    """Answer until the other end is closed."""
    with told, told.makefile("rb") as lines:
        for line in lines:
            try:
                answer = {"ok": warden.answer(json.loads(line))}
            except (OSError, subprocess.CalledProcessError, KeyError, TypeError) as error:
                said = getattr(error, "stderr", None) or str(error)
                answer = {"error": f"{said}"}
            told.sendall(json.dumps(answer).encode() + b"\n")


def main(arguments: list[str]) -> int:
    """Make the hosts, start the command as the user, serve it; its exit code."""
    user, command = pwd.getpwnam(arguments[0]), arguments[1:]
    try:
        warden = Warden(user, make_hosts())
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"no network namespaces here: {getattr(error, 'stderr', None) or error}\n")
        words = [*_as_user(user), *command]
        os.execvp(words[0], words)  # noqa: S606 - the command that was asked for
    mine, theirs = socket.socketpair()
    where = 2 if command[:2] == ["env", "-i"] else 0  # behind what empties the environment
    words = [*command[:where], *([] if where else ["env"]), f"{WARDEN}={theirs.fileno()}", *command[where:]]
    child = subprocess.Popen([*_as_user(user), *words], pass_fds=[theirs.fileno()])
    theirs.close()
    pid = child.pid
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    serve(warden, mine)
    return child.wait()


def _as_user(user: pwd.struct_passwd) -> list[str]:
    group = grp.getgrgid(user.pw_gid).gr_name
    return ["setpriv", "--reuid", user.pw_name, "--regid", group, "--init-groups", "--inh-caps=-all", "--"]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
