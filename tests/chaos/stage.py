"""The processes of a run: who is there, started on its host, killed, stalled, and back again when its time has come."""

import json
import os
import signal
import socket
import ssl
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from agent.devkit.consortium import Consortium, NotStarted, Party, found, on_podman, on_runc
from agent.devkit.podman_service import (
    answers,
    checkout_folders,
    claimed_root,
    service_command,
    service_environment,
    why_no_runc,
    why_not,
)
from agent.domain.ids import Digest
from agent.faults import VARIABLE
from agent.pipeline.workspace import parse_folder_name
from tests.chaos.hosts import DESK, Child, Hosts
from tests.chaos.plan import HOSPITALS, ORCHESTRATORS, SERVICES

START_S = 60.0
TERM_S = 30.0
LEASE_S = 8
DISK_BYTES = 1 << 30
LOW_DISK_BYTES = 8 << 20
TIMEOUTS = {"connect_s": 2.0, "read_s": 5.0, "total_s": 10.0, "transfer_s": 60.0}
COMMANDS = {"second": "work"}  # a hospital may have several workers
GAPS = ("memory_bytes", "cpu_millis", "pids")


@dataclass
class Service:
    """A process that should be there. `back_at`: when it is started again, on the monotonic clock."""

    name: str
    host: str
    command: tuple[str, ...]
    log: Path
    env: Mapping[str, str]
    child: Child | None = None
    back_at: float | None = None
    said_before: int = 0  # bytes of the log when it was started last

    def start(self, hosts: Hosts) -> None:
        """Start it."""
        self.said_before = self.log.stat().st_size if self.log.exists() else 0
        self.child = hosts.spawn(self.host, self.command, self.log, self.env)
        self.back_at = None

    def said(self) -> str:
        """What it said since it was started last."""
        with self.log.open("rb") as file:
            file.seek(self.said_before)
            return file.read().decode(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal when it is there."""
        if self.child is not None:
            self.child.send(number)


@dataclass
class Stage:
    """Everything that runs."""

    hosts: Hosts
    consortium: Consortium
    folder: Path
    memory: Path
    engines: Mapping[str, str]  # by hospital: runc or podman
    podman_socket: Path
    have_disks: bool = False  # each agent a small one of its own
    services: dict[str, Service] = field(default_factory=dict)

    # ---- places

    def data(self, hospital: str) -> Path:
        """The folder of ledger, queues and spool of this hospital's agent."""
        return self.consortium.hospital(hospital).agent.folder / "data"

    def work(self, hospital: str) -> Path:
        """The root of its workspaces."""
        return self.memory / hospital / "work"

    def faults(self, hospital: str) -> Path:
        """The file that tells its agent what goes wrong."""
        return self.memory / f"faults-{hospital}.json"

    def party(self, name: str) -> Party:
        """The party of this name."""
        return next(party for party in self.consortium.parties if party.name == name)

    def host_of(self, party: Party) -> str:
        """On which host this party lives."""
        name = party.name.partition("-")[2]
        return name if name in HOSPITALS else DESK

    # ---- lives

    def start_all(self) -> None:
        """Start everybody, those first whom others need; return when all answer. Raises: NotStarted."""
        for service in self.services.values():
            service.start(self.hosts)
        self.wait_until_ready()

    def wait_until_ready(self, *, lives: int = 1) -> None:
        """Return when everybody answers; one that ends is started again so often. Raises: NotStarted."""
        for service in self.services.values():
            deadline, left = time.monotonic() + START_S, lives
            while not self._is_ready(service):
                has_ended = service.child is None or service.child.has_ended
                left -= has_ended
                if has_ended and left > 0:
                    service.start(self.hosts)
                elif has_ended or time.monotonic() > deadline:
                    words = service.said().strip().splitlines()[-5:]
                    raise NotStarted(f"{service.name} does not answer: {' / '.join(words)}")
                time.sleep(0.05)

    def revive(self) -> Iterator[Service]:
        """Start again whoever is gone and whose rest is over; those that had gone without being told to."""
        now = time.monotonic()
        for service in self.services.values():
            if service.child is None or not service.child.has_ended:
                continue
            if service.back_at is None:
                yield service
                service.back_at = now + 0.3
            elif service.back_at <= now:
                service.start(self.hosts)

    def dump(self) -> None:
        """Agents end, and say in their logs where each of their threads stood."""
        for service in self.services.values():
            if "PYTHONFAULTHANDLER" in service.env:
                service.send(signal.SIGABRT)
        for service in self.services.values():
            if service.child is not None and "PYTHONFAULTHANDLER" in service.env:
                service.child.wait(TERM_S)

    def end_all(self) -> None:
        """Kill everybody, and wait."""
        for service in self.services.values():
            service.send(signal.SIGKILL)
        for service in self.services.values():
            if service.child is not None:
                service.child.wait(TERM_S)

    def _is_ready(self, service: Service) -> bool:
        kind, _, rest = service.name.partition("-")
        match kind:
            case "podman":
                return answers(self.podman_socket)
            case "work" | "second":
                return '"worker.started"' in service.said()
            case "proxy":
                return all(
                    _is_open(party) for party in self.consortium.parties if self.host_of(party) == rest
                )
            case "serve":
                return _is_healthy(self.party(f"agent-{rest}"))
            case _:
                return _is_healthy(self.party(service.name))


@contextmanager
def open_stage(
    hosts: Hosts,
    folder: Path,
    memory: Path,
    images: Sequence[Digest],
    engines: Mapping[str, str],
    without: str | None = None,
) -> Iterator[Stage]:
    """A consortium on these hosts, its processes not started; whatever still runs is killed at the end.

    `folder`: for what lies on a disk, and the logs. `memory`: for workspaces and sockets, on tmpfs. `without`: a guard that the
    agents lack.
    """
    runtime_dir, root = checkout_folders()
    podman_socket = runtime_dir / "chaos.sock"
    consortium = found(
        folder / "t",
        HOSPITALS,
        runtime=on_runc(),
        memory=memory,
        orchestrators=ORCHESTRATORS,
        hosts=hosts.addresses,
    )
    consortium.admit(images, accept_missing=GAPS)
    stage = Stage(hosts, consortium, folder, memory, engines, podman_socket)
    (folder / "logs").mkdir()
    with ExitStack() as stack:
        stack.callback(stage.end_all)
        for hospital in HOSPITALS:
            _settle(stage, hospital)
        if "podman" in engines.values():
            runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            podman_socket.unlink(missing_ok=True)
            claimed = stack.enter_context(claimed_root(root.with_name(f"{root.name}-chaos"), runtime_dir))
            host = next(name for name, engine in engines.items() if engine == "podman")
            command = service_command(podman_socket, runtime_dir, claimed)
            _add(stage, "podman", host, command, service_environment())
        for host in (*HOSPITALS, DESK):
            _add_proxy(stage, host)
        for party in consortium.parties:
            if not party.name.startswith("agent-"):
                _add(stage, party.name, stage.host_of(party), list(party.command), _environment())
        program = ["agent"] if without is None else ["tests.chaos.maimed", without]
        for name in SERVICES:
            service, _, hospital = name.partition("-")
            home = consortium.hospital(hospital).agent.folder
            command = [sys.executable, "-m", *program, "--home", str(home), COMMANDS.get(service, service)]
            told = {VARIABLE: str(stage.faults(hospital)), "PYTHONFAULTHANDLER": "1"}
            _add(stage, name, hospital, command, _environment() | told)
        yield stage


def find_engines(wanted: str) -> dict[str, str]:
    """What runs the containers of each hospital: `runc`, `podman`, or `mixed`. Raises: NotStarted when it cannot run here."""
    engines = {
        "mixed": dict(zip(HOSPITALS, ("runc", "runc", "podman"), strict=True)),
        "runc": dict.fromkeys(HOSPITALS, "runc"),
        "podman": dict.fromkeys(HOSPITALS, "podman"),
    }[wanted]
    for engine in sorted(set(engines.values())):
        if lacking := why_not() if engine == "podman" else why_no_runc():
            raise NotStarted(f"containers of {engine} need {lacking}")
    return engines


def write_whole(path: Path, document: Any) -> None:
    """Replace a JSON file that other processes read."""
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(json.dumps(document))
    os.replace(beside, path)


def workspaces(root: Path) -> list[str]:
    """The attempts' folders there."""
    return sorted(path.name for path in root.glob("*") if parse_folder_name(path.name) is not None)


def _settle(stage: Stage, hospital: str) -> None:
    """The settings of this hospital's agent, fit for a run in which everybody is away now and then."""
    file = stage.consortium.hospital(hospital).agent.folder / "agent.toml"
    told = tomllib.loads(file.read_text())
    if stage.engines[hospital] == "podman":
        told["runtime"] = dict(on_podman(stage.podman_socket))
    told["timeouts"] = TIMEOUTS
    told["limits"] |= {"lease_s": LEASE_S, "low_disk_bytes": LOW_DISK_BYTES}
    told["workers"] = {"grace_s": 3.0}
    told["reconcile"] = {"first_s": 15.0, "every_s": 60.0}
    file.write_bytes(msgspec.toml.encode(told))
    (stage.memory / hospital).mkdir(mode=0o700, exist_ok=True)
    stage.data(hospital).mkdir(mode=0o700)
    stage.have_disks = stage.hosts.mount(stage.data(hospital), DISK_BYTES)
    write_whole(stage.faults(hospital), {"clock_s": 0.0, "armed": {}})


def _add(stage: Stage, name: str, host: str, command: list[str], env: Mapping[str, str]) -> None:
    stage.services[name] = Service(name, host, tuple(command), stage.folder / "logs" / f"{name}.log", env)


def _add_proxy(stage: Stage, host: str) -> None:
    doors = [
        {
            "target": party.name,
            "host": party.host,
            "port": party.port,
            "certificate": str(party.folder / "tls.crt"),
            "private_key": str(party.folder / "tls.key"),
        }
        for party in stage.consortium.parties
        if stage.host_of(party) == host
    ]
    settings = stage.memory / f"proxy-{host}.json"
    rules = stage.memory / "rules.json"
    write_whole(rules, [])
    write_whole(
        settings,
        {"doors": doors, "rules": str(rules), "log": str(stage.folder / "logs" / f"seen-{host}.jsonl")},
    )
    command = [sys.executable, "-m", "tests.chaos.proxy", str(settings)]
    _add(stage, f"proxy-{host}", host, command, _environment())


def _environment() -> dict[str, str]:
    kept = ("PATH", "HOME", "LANG", "XDG_RUNTIME_DIR")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _is_open(party: Party) -> bool:
    with socket.socket() as door:
        door.settimeout(1)
        return door.connect_ex((party.host, party.port)) == 0


def _is_healthy(party: Party) -> bool:
    """Whether it answers /health, asked as others ask it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((party.host, party.port), 5) as plain,
            context.wrap_socket(plain) as door,
        ):
            door.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return b" 200 " in door.recv(64)
    except OSError:
        return False
