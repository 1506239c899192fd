"""A consortium on one machine: hospitals, each a storage and an agent, and orchestrators, all as processes of their own.

Every party has its own key, certificate, settings and folder, and they meet over HTTPS only, as they would on several hosts.
The demo and the tests of whole chains use it.
"""

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec

from agent.devkit.book import Book
from agent.devkit.certificates import write_identity
from agent.devkit.client import Client
from agent.devkit.publishing import publish_blob, publish_dataset
from agent.devkit.server import now, open_book, open_client
from agent.devkit.settings import ServerSettings, read_settings
from agent.domain.ids import Digest, wire_time
from agent.domain.orders import DatasetRef
from agent.ports.storage import BlobKind
from agent.trust.certificates import CertificateAuthority
from agent.trust.dataset_header import Use
from agent.trust.keys import SigningKey
from agent.trust.roster import Role, Roster, RosterEntry
from agent.trust.seal import make_seal

HOST = "127.0.0.1"
PORTS = (15_000, 32_000)
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
OUTPUT_BYTES = 64 << 20  # each task reserves a few times as much memory
Sections = Mapping[str, Mapping[str, object]]
SMALL: Sections = {"limits": {"max_model_bytes": 64 << 20, "low_disk_bytes": 256 << 20, "lease_s": 15}}


class NotStarted(Exception):
    """A process of the consortium ended or did not answer; the message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Party:
    """One process: who it is, where it lies, how it is started and where it answers."""

    name: str
    key: SigningKey
    folder: Path
    port: int
    command: tuple[str, ...]
    host: str = HOST  # by which others call it; it listens on loopback

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.port}"

    @property
    def log(self) -> Path:
        return self.folder / "log"


@dataclass(frozen=True, slots=True)
class Hospital:
    """A storage and the agent beside it."""

    name: str
    agent: Party
    storage: Party


@dataclass(frozen=True, slots=True)
class Consortium:
    """Everybody, and the roster that all of them have."""

    folder: Path
    authority: CertificateAuthority
    hospitals: tuple[Hospital, ...]
    orchestrators: tuple[Party, ...]
    owner: SigningKey
    roster: Roster
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def hospital(self, name: str) -> Hospital:
        """The hospital of this name."""
        return next(hospital for hospital in self.hospitals if hospital.name == name)

    @property
    def parties(self) -> tuple[Party, ...]:
        """Every process, in the order in which they start."""
        storages = tuple(hospital.storage for hospital in self.hospitals)
        return (*storages, *self.orchestrators, *(hospital.agent for hospital in self.hospitals))

    def book(self, orchestrator: int = 0) -> Book:
        """What this orchestrator remembers."""
        return open_book(self._settings(self.orchestrators[orchestrator]))

    def client(self, party: Party | None = None) -> Client:
        """Calls signed by this party; by the owner of the data when there is none."""
        if party is not None and party in self.orchestrators:
            return open_client(self._settings(party))
        return self.client_of(self.owner if party is None else party.key)

    def client_of(self, key: SigningKey) -> Client:
        """Calls signed with this key."""
        return Client(key, lambda: self.roster, now)

    def admit(
        self,
        images: Sequence[Digest],
        *,
        accept_missing: Sequence[str],
        wall_s: int = 120,
        output_bytes: int = OUTPUT_BYTES,
    ) -> None:
        """Write every hospital's policy: these images, all datasets, every kind of work. Takes effect at a start."""
        text = msgspec.toml.encode(
            {
                "orchestrators": [party.key.keyid for party in self.orchestrators],
                "images": list(images),
                "datasets": "*",
                "kinds": ["learn", "test", "predict"],
                "accept_missing": list(accept_missing),
                "ceilings": {"wall_s": wall_s, "output_bytes": output_bytes},
            }
        )
        for hospital in self.hospitals:
            (hospital.agent.folder / "policy.toml").write_bytes(text)

    def publish_image(self, archive: Path) -> None:
        """Bring an image to the first hospital's storage; the others' agents find it there."""
        publish_blob(self.client(), archive, BlobKind.IMAGE, [self.hospitals[0].storage.key.keyid])

    def seal(self, plain: Path, dataset: DatasetRef, at: Hospital, uses: Sequence[Use]) -> None:
        """Seal a file as the owner does, give each orchestrator its share, and bring it to this hospital's storage."""
        sealed = self.folder / f"{dataset.id}.sealed"
        with plain.open("rb") as source, sealed.open("wb") as target:
            shares = make_seal(
                source,
                target,
                size=plain.stat().st_size,
                dataset=dataset.id,
                version=dataset.version,
                orchestrators=[party.key.keyid for party in self.orchestrators],
                nodes=[at.agent.key.keyid],
                uses=uses,
                owner=self.owner,
            )
        for index, (_, share) in enumerate(shares):
            self.book(index).keep_share(dataset, share)
        publish_dataset(self.client(), sealed, dataset, [at.storage.key.keyid])
        sealed.unlink()

    def start(self, party: Party) -> None:
        """Start this party's process; its output goes to its log. It may take a moment to answer."""
        with party.log.open("ab") as log:
            self.processes[party.name] = _spawn(party.command, log)

    def wait_until_ready(self, parties: Sequence[Party]) -> None:
        """Return when each of these answers. Raises: NotStarted with the end of the log of one that does not."""
        for party in parties:
            _await(partial(self._answers, party), party, self.processes[party.name])

    def stop(self, party: Party) -> None:
        """Ask this party's process to end and wait for it."""
        process = self.processes.pop(party.name)
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _answers(self, party: Party) -> bool:
        if party.command[-1] != "run":
            return _is_open(party.port)
        return _is_open(party.port) and '"worker.started"' in party.log.read_text(errors="replace")

    @staticmethod
    def _settings(party: Party) -> ServerSettings:
        return read_settings(party.folder / "server.toml")


def on_podman(podman_socket: Path) -> dict[str, str]:
    """Agents that run jobs with the Podman service at this socket."""
    return {"engine": "podman", "podman_socket": str(podman_socket)}


def on_runc() -> dict[str, str]:
    """Agents that run jobs with runc; ceilings by cgroup where `DC_COMPUTE_RUNTIME_CGROUP_PARENT` names one."""
    run_dir = Path(os.environ["XDG_RUNTIME_DIR"]) / "dc-compute-runc"
    given = os.environ.get("DC_COMPUTE_RUNTIME_CGROUP_PARENT", "")
    return {"engine": "runc", "run_dir": str(run_dir), "cgroup_parent": given}


def found(
    folder: Path,
    names: Sequence[str],
    *,
    runtime: Mapping[str, str],
    memory: Path,
    orchestrators: int = 2,
    hosts: Mapping[str, str] | None = None,
    installed: Mapping[str, tuple[SigningKey, int]] | None = None,
    settings: Sections = SMALL,
) -> Consortium:
    """Make a consortium's keys, certificates, roster and settings below `folder`, which is emptied first.

    `runtime`: the section of the agents' settings, see `on_podman` and `on_runc`. `memory`: a folder on tmpfs, where the agents
    keep workspaces and sockets. `hosts`: addresses by hospital, and of the orchestrators under "desk", where others call them;
    something that listens there passes calls on to their port on loopback. `installed`: by hospital the key and the port of an
    agent that runs here already; it is not to be started, and what lies in its folder is for it to take. `settings`:
    further ones of the agents, by section, where the defaults do not do. The policies admit nothing yet.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    memory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = CertificateAuthority("Consortium on one machine", now=now())
    ports = iter(_free_ports(2 * len(names) + orchestrators))
    python = (sys.executable, "-m")
    devkit = (*python, "agent.devkit")

    def party(name: str, at: str, command: Callable[[Path], tuple[str, ...]]) -> Party:
        home = folder / name
        home.mkdir(mode=0o700)
        host = HOST if hosts is None else hosts[at]
        write_identity(home, "tls", authority, [host], now=now())
        key, port = (installed or {}).get(name.removeprefix("agent-"), (None, None))
        if key is None:
            key = SigningKey.generate()
            key.save(home / "identity.pem")
        return Party(name, key, home, port or next(ports), command(home), host)

    desks = tuple(
        party(
            f"orchestrator-{n + 1}",
            "desk",
            lambda home: (*devkit, "orchestrator", "--config", str(home / "server.toml")),
        )
        for n in range(orchestrators)
    )
    hospitals = tuple(
        Hospital(
            name,
            party(f"agent-{name}", name, lambda home: (*python, "agent", "--home", str(home), "run")),
            party(
                f"storage-{name}",
                name,
                lambda home: (*devkit, "storage", "--config", str(home / "server.toml")),
            ),
        )
        for name in names
    )
    owner = SigningKey.generate()
    roster = _roster(authority, hospitals, desks, owner)
    made = Consortium(folder, authority, hospitals, desks, owner, roster)
    for server in (*desks, *(hospital.storage for hospital in hospitals)):
        _write_server(server, roster)
    for hospital in hospitals:
        _write_agent(hospital, roster, runtime, memory, settings)
    return made


@contextmanager
def running(consortium: Consortium) -> Iterator[None]:
    """All processes of the consortium, answering, while the block runs. Raises: NotStarted."""
    with ExitStack() as started:
        for party in consortium.parties:
            consortium.start(party)
            started.callback(_stop_if_there, consortium, party)
        consortium.wait_until_ready(consortium.parties)
        yield


def _stop_if_there(consortium: Consortium, party: Party) -> None:
    if party.name in consortium.processes:
        consortium.stop(party)


def _roster(
    authority: CertificateAuthority, hospitals: Sequence[Hospital], desks: Sequence[Party], owner: SigningKey
) -> Roster:
    dates = {"valid_from": now() - timedelta(hours=1), "valid_until": now() + timedelta(days=30)}
    tls_ca = authority.certificate.decode()
    entries = [RosterEntry.of(owner.public, Role.OWNER, "owner", **dates)]
    for desk in desks:
        urls = {"orchestrator_url": desk.url, "tls_ca": tls_ca}
        entries.append(RosterEntry.of(desk.key.public, Role.ORCHESTRATOR, desk.name, **dates, **urls))
    for hospital in hospitals:
        agent, storage = hospital.agent, hospital.storage
        urls = {"storage_url": storage.url, "tls_ca": tls_ca}
        entries.append(RosterEntry.of(storage.key.public, Role.STORAGE, storage.name, **dates, **urls))
        urls["agent_url"] = agent.url
        entries.append(RosterEntry.of(agent.key.public, Role.AGENT, hospital.name, **dates, **urls))
    return Roster(tuple(entries))


def _write_server(party: Party, roster: Roster) -> None:
    (party.folder / "roster.toml").write_text(roster.to_toml())
    settings = {
        "key": "identity.pem",
        "roster": "roster.toml",
        "folder": "memory",
        "host": HOST,
        "port": party.port,
        "certificate": "tls.crt",
        "private_key": "tls.key",
        "authorities": [f"{party.host}:{party.port}"],
    }
    (party.folder / "memory").mkdir(mode=0o700)
    (party.folder / "server.toml").write_bytes(msgspec.toml.encode(settings))


def _write_agent(
    hospital: Hospital,
    roster: Roster,
    runtime: Mapping[str, str],
    memory: Path,
    further: Sections,
) -> None:
    party = hospital.agent
    run = memory / hospital.name
    settings: dict[str, dict[str, object]] = {
        "identity": {"key": "identity.pem"},
        "listen": {
            "host": HOST,
            "port": party.port,
            "tls_cert": "tls.crt",
            "tls_key": "tls.key",
            "operator_socket": str(run / "operator.sock"),
        },
        "paths": {"data": "data", "spool": "data/spool"},
        "workspace": {"root": str(run / "work")},
        "runtime": dict(runtime),
        "log": {"format": "json"},
    }
    sections = {name: {**settings.get(name, {}), **further.get(name, {})} for name in {**settings, **further}}
    (party.folder / "agent.toml").write_bytes(msgspec.toml.encode(sections))
    (party.folder / "roster.toml").write_text(roster.to_toml())
    (party.folder / "policy.toml").write_text("")


def _spawn(command: Sequence[str], log: BinaryIO) -> subprocess.Popen[bytes]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd=root,
        start_new_session=True,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    """What a service would have: nothing of the caller's that could change how it works."""
    kept = ("PATH", "HOME", "LANG", "XDG_RUNTIME_DIR")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _await(is_there: Callable[[], bool], party: Party, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_there():
        if process.poll() is not None or time.monotonic() > deadline:
            words = party.log.read_text(errors="replace").strip().splitlines()[-5:]
            raise NotStarted(f"{party.name} does not answer: " + " / ".join(words))
        time.sleep(0.05)


def _is_open(port: int) -> bool:
    with socket.socket() as door:
        door.settimeout(1)
        return door.connect_ex((HOST, port)) == 0


def _free_ports(count: int) -> list[int]:
    """Free now, and none that the kernel gives to outgoing calls: a party that stopped finds its own free again."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(*PORTS)  # noqa: S311 - no secret
        with socket.socket() as door, suppress(OSError):
            door.bind((HOST, port))
            found.add(port)
    return list(found)


def in_an_hour() -> datetime:
    """A moment for an order to expire at."""
    return wire_time(now() + timedelta(hours=1))
