"""Settings become doors: the only file that names an adapter. Everybody else knows ports.

Adapters are imported where they are opened: the command line asks an agent without loading a database or an engine.
"""

import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agent.config import Settings
from agent.domain.ids import Digest, KeyId
from agent.errors import AgentUnreachable, BadSettings, RuntimeUnavailable
from agent.faults import find_faults
from agent.pipeline.garbage import BUILD_PREFIX, building
from agent.pipeline.gate import Breach, Prove
from agent.pipeline.host import Host, InForce, Trusted
from agent.ports import Ports
from agent.ports.audit import AuditLog
from agent.ports.broker import Consumer, Handler, Queue
from agent.ports.builder import Builder
from agent.ports.client import Client
from agent.ports.runtime import Runtime
from agent.ports.storage import Storage
from agent.trust.http_signatures import authority_of
from agent.trust.keys import SigningKey, load_previous
from agent.trust.policy import HostPolicy
from agent.trust.roster import Role, Roster, RosterEntry
from agent.wiring_trust import instance_of
from agent.wiring_values import identity_of, rules_of, timeouts_of

ANSWER_S = 5.0

if TYPE_CHECKING:
    from agent.ports.broker_huey import HueyBroker
    from agent.ports.image_archive import ImageArchive
    from agent.ports.runtime_podman_look import ServiceTold

MakeConsumer = Callable[[Mapping[Queue, Handler]], Consumer]
AskHealth = Callable[[RosterEntry, str], datetime | None]  # raises AgentUnreachable


def now() -> datetime:
    """The clock of a real agent: aware UTC."""
    return datetime.now(UTC)


@contextmanager
def open_host(settings: Settings) -> Iterator[Host]:
    """The agent of these settings with every door open. Podman is not asked before a container is.

    Raises: BadSettings, LedgerUnavailable.
    """
    with _wired(settings, make_runtime) as (host, _):
        yield host


@contextmanager
def open_api(settings: Settings) -> Iterator[Host]:
    """The same for the API, which has no container engine. Raises: BadSettings, LedgerUnavailable."""
    from agent.ports.runtime_none import NoRuntime

    with _wired(settings, lambda _settings, _me: NoRuntime()) as (host, _):
        yield host


@contextmanager
def open_worker(settings: Settings) -> Iterator[tuple[Host, MakeConsumer]]:
    """The same for a worker, with the maker of its consumer."""
    workers = settings.workers
    threads = {
        Queue.LEARNUPLETS: workers.learnuplets,
        Queue.LEARN_TASKS: workers.learn_tasks,
        Queue.TEST_TASKS: workers.test_tasks,
        Queue.PREDUPLETS: workers.preduplets,
        Queue.DELIVERIES: workers.deliveries,
    }
    with _wired(settings, make_runtime) as (host, broker):
        yield host, lambda handlers: broker.consumer(handlers, threads)


@contextmanager
def open_audit(path: Path) -> Iterator[AuditLog]:
    """The audit log in this ledger, for reading, while a service may write it. Raises: LedgerUnavailable."""
    from agent.ports.audit_sqlite import SqliteAuditLog

    log = SqliteAuditLog(path)
    try:
        yield log
    finally:
        log.close()


@contextmanager
def open_operator(settings: Settings) -> Iterator[Client]:
    """The own agent, called as its operator."""
    from agent.ports.client_https import UnixClient

    client = UnixClient(settings.listen.operator_socket, settings.timeouts.total_s)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def open_agent(settings: Settings, entry: RosterEntry, key: SigningKey) -> Iterator[Client]:
    """Another agent of the roster, called by the holder of `key`. Raises: AgentUnreachable when it has no address."""
    with _open_signed(settings, entry, entry.agent_url, key) as client:
        yield client


@contextmanager
def open_orchestrator(settings: Settings, entry: RosterEntry, key: SigningKey) -> Iterator[Client]:
    """An orchestrator of the roster, called by the holder of `key`. Raises: AgentUnreachable when it has no address."""
    with _open_signed(settings, entry, entry.orchestrator_url, key) as client:
        yield client


@contextmanager
def _open_signed(
    settings: Settings, entry: RosterEntry, url: str | None, key: SigningKey
) -> Iterator[Client]:
    from agent.ports.client_https import SignedClient
    from agent.ports.https import Peer

    peer = Peer.of(entry, url, AgentUnreachable)
    roster = read_roster(settings)
    client = SignedClient(identity_of(settings, key, lambda: roster, now), peer, timeouts_of(settings))
    try:
        yield client
    finally:
        client.close()


@contextmanager
def open_storage(settings: Settings, key: SigningKey) -> Iterator[Storage]:
    """The storage of the node of the agent whose key this is, without the rest of the agent."""
    from agent.ports.storage_https import HttpsStorage

    roster = read_roster(settings)
    identity = identity_of(settings, key, lambda: roster, now)
    storage = HttpsStorage(identity, key.keyid, timeouts_of(settings))
    try:
        yield storage
    finally:
        storage.close()


def make_runtime(settings: Settings, me: KeyId) -> Runtime:
    """The container engine that runs jobs, asked only when it is used. `me` tells its containers from another agent's.

    Raises: BadSettings when the cgroup of the settings cannot be used.
    """
    engine = settings.runtime.engine
    if engine == "runc" or (engine == "auto" and _has_runc() and not _has_podman(settings)):
        return _runc(settings, me)
    return _podman(settings, me)


def runtimes(settings: Settings, me: KeyId) -> tuple[Runtime, ...]:
    """Every container engine that this host offers, the one that runs jobs first. Raises: BadSettings."""
    first = make_runtime(settings, me)
    if first.name == "podman":
        return (first, _runc(settings, me)) if _has_runc() else (first,)
    return (first, _podman(settings, me)) if _has_podman(settings) else (first,)


def _podman(settings: Settings, me: KeyId) -> Runtime:
    from agent.ports.runtime_podman import PodmanRuntime

    told = settings.runtime
    return PodmanRuntime(
        told.podman_socket,
        told.seccomp_dir,
        settings.paths.images,
        instance=instance_of(settings, me),
        pool_size=told.pool_size,
    )


def _runc(settings: Settings, me: KeyId) -> Runtime:
    from agent.ports.runtime_runc import RuncRuntime
    from agent.ports.runtime_runc_cgroups import find_cgroups

    told = settings.runtime
    return RuncRuntime(
        told.run_dir,
        told.seccomp_dir,
        settings.paths.roots,
        instance=instance_of(settings, me),
        cgroups=find_cgroups(told.cgroup_parent, os.environ),
        pool_size=told.pool_size,
    )


def _has_podman(settings: Settings) -> bool:
    """Whether somebody listens at Podman's socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(ANSWER_S)
        try:
            client.connect(str(settings.runtime.podman_socket))
        except OSError:
            return False
    return True


def _has_runc() -> bool:
    from agent.ports.user_namespace import PATH

    return all(shutil.which(name, path=PATH) for name in ("runc", "conmon", "newuidmap", "newgidmap"))


def prover(settings: Settings, runtime: Runtime) -> Prove:
    """What a worker proves before its first task: the quick part of the self-test, on the runtime that runs jobs."""

    def prove() -> tuple[Breach, ...]:
        from agent.selftest.suite import probe

        findings = probe(runtime, root=settings.workspace.root, cache=settings.paths.selftest, is_quick=True)
        return tuple(
            Breach(one.runtime, one.probe, one.expected, one.seen) for one in findings if not one.held
        )

    return prove


def look_at_podman(settings: Settings) -> "ServiceTold":
    """What the service at Podman's socket tells of itself. Raises: RuntimeUnavailable."""
    from agent.ports.runtime_podman_look import look_at_service

    return look_at_service(settings.runtime.podman_socket)


@contextmanager
def open_health(settings: Settings, key: SigningKey, roster: Roster, timeout_s: float) -> Iterator[AskHealth]:
    """What asks anybody of the roster, at one of their addresses, for their health and their time, with this agent's TLS."""
    from agent.ports.https import HttpsClient, Peer, Timeouts

    identity = identity_of(settings, key, lambda: roster, now)
    client = HttpsClient(identity, Timeouts(timeout_s, timeout_s, timeout_s, timeout_s))

    def ask(entry: RosterEntry, url: str) -> datetime | None:
        return client.check_health(Peer.of(entry, url, AgentUnreachable))

    try:
        yield ask
    finally:
        client.close()


@contextmanager
def open_builder(settings: Settings, me: KeyId) -> Iterator[Builder]:
    """What builds images here, one build at a time. Raises: RuntimeUnavailable, when another build goes on too."""
    from agent.ports.builder_layers import LayersBuilder
    from agent.ports.runtime_podman_build import PodmanSteps

    make_folders(settings)
    with building(settings.paths.spool, is_made=True) as work:
        if work is None:
            raise RuntimeUnavailable("another image is being built here")
        told = settings.runtime
        steps = PodmanSteps(
            told.podman_socket,
            told.seccomp_dir,
            work,
            instance=f"build-{instance_of(settings, me)}",
            pool_size=told.pool_size,
        )
        steps.clear()
        for left in work.glob(f"{BUILD_PREFIX}*"):
            shutil.rmtree(left)
        yield LayersBuilder(steps, work, settings.limits.max_image_bytes)


def inspect_image(archive: Path, digest: Digest) -> "ImageArchive":
    """What an image's archive holds. Raises: BadImage for what no engine should see."""
    from agent.ports.image_archive import inspect

    return inspect(archive, digest)


# ------------------------------------------------------------------ files


def read_roster(settings: Settings) -> Roster:
    """The roster in force. Raises: BadSettings."""
    return Roster.from_toml(_read(settings.trust.roster, "the roster"))


def read_policy(settings: Settings) -> HostPolicy:
    """The policy in force. Raises: BadSettings."""
    return HostPolicy.from_toml(_read(settings.trust.policy, "the policy"))


def read_trusted(settings: Settings, me: KeyId) -> Trusted:
    """Roster and policy as their files are now, and the names that go with them. Raises: BadSettings."""
    roster = read_roster(settings)
    return Trusted(roster, read_policy(settings), authorities(settings, roster, me))


def authorities(settings: Settings, roster: Roster, me: KeyId) -> frozenset[str]:
    """Every host[:port] under which this agent may be called: its roster address, and the names of its settings."""
    told = {f"https://{name}" for name in settings.listen.names}
    entry = roster.find(me)
    if entry is not None and entry.role is Role.AGENT and entry.agent_url is not None:
        told.add(entry.agent_url)
    try:
        return frozenset(authority_of(url) for url in told)
    except ValueError as cause:
        raise BadSettings(f"[listen] names: {cause}") from cause


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as cause:
        raise BadSettings(f"{what} {path} cannot be read: {cause.strerror}") from cause
    except ValueError as cause:
        raise BadSettings(f"{what} {path} is not UTF-8") from cause


def make_folders(settings: Settings) -> None:
    """The folders of the agent, open to it alone. Raises: BadSettings."""
    for folder in (settings.paths.data, settings.paths.spool):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as cause:
            raise BadSettings(f"the folder {folder} cannot be made: {cause.strerror}") from cause


# ------------------------------------------------------------------ the doors


@contextmanager
def _wired(
    settings: Settings, open_runtime: Callable[[Settings, KeyId], Runtime]
) -> Iterator[tuple[Host, "HueyBroker"]]:
    from agent.ports.broker_huey import HueyBroker
    from agent.ports.hands_flock import FlockHands
    from agent.ports.images_tar import TarImages
    from agent.ports.ledger_sqlalchemy import open_ledger
    from agent.ports.orchestrators_https import HttpsOrchestrators
    from agent.ports.peers_https import HttpsPeers
    from agent.ports.progress_files import FileProgress
    from agent.ports.storage_https import HttpsStorage
    from agent.ports.together_threads import ThreadsTogether

    key = SigningKey.load(settings.identity.key)
    in_force = InForce(read_trusted(settings, key.keyid))
    trusted = in_force.now()
    faults = find_faults(os.environ)
    clock = now if faults is None else faults.clock(now)
    identity = identity_of(settings, key, lambda: in_force.now().roster, clock)
    timeouts = timeouts_of(settings)
    make_folders(settings)
    with ExitStack() as doors:
        ledger = open_ledger(
            settings.paths.ledger, before_commit=None if faults is None else faults.before_commit
        )
        doors.callback(ledger.close)
        broker = HueyBroker(settings.paths.queues)
        doors.callback(broker.close)
        storage = HttpsStorage(identity, key.keyid, timeouts)
        doors.callback(storage.close)
        orchestrators = HttpsOrchestrators(identity, timeouts)
        doors.callback(orchestrators.close)
        peers = HttpsPeers(identity, timeouts)
        doors.callback(peers.close)
        runtime = open_runtime(settings, key.keyid)
        hands = FlockHands(settings.paths.hands)
        progress = FileProgress(settings.workspace.root / "progress", clock)
        together = ThreadsTogether()
        doors.callback(together.close)
        ports = Ports(
            ledger,
            broker,
            storage,
            orchestrators,
            peers,
            runtime,
            TarImages(),
            clock,
            hands,
            progress,
            together,
        )
        if faults is not None:
            ports = faults.ports(ports)
        rules, old_keys = rules_of(settings, runtime), load_previous(settings.identity.key)
        yield Host(key, trusted.roster, trusted.policy, ports, rules, in_force, old_keys), broker
