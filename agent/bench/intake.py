"""Part intake: durable signed orders a second at 1, 16 and 64 connections, against raw SQLite commits on the same disk.

A real `dc-compute serve` in a home of its own, with the shipped wiring, is called over HTTPS by a process of its own
(`intake_load.py`). Each order is another one, signed by its orchestrator's key, in a request signed by that key; all of that
is made before the clock starts. What the load takes of the CPU is told beside: it shares the machine with the server, and so an
orchestrator on another host would see more.

The baseline is one row and one commit after the other, from one thread of this process, in WAL with `synchronous = FULL`: what
the disk and SQLite give to a program that does nothing else. Half of it is measured right before and half right after the
orders that are judged by it, for a disk that others use too changes its pace within seconds.

Beside them the floor in the same rounds: the very same requests to a server that checks nothing (`intake_floor.py`), the CPU
that a request takes of either server and of the load, and that of the two signatures alone. Each server has one interpreter.
"""

import os
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from agent.bench.figures import Bench, Measured, Row, order_of, over, percentile
from agent.bench.intake_load import HOST, Load, framed
from agent.bench.processes import cpu_s_of
from agent.domain.ids import OrderId, digest_of, wire_time
from agent.domain.orders import DatasetRef, ImageRef, Learnuplet
from agent.domain.prepared import prepared
from agent.trust.certificates import CertificateAuthority
from agent.trust.http_signatures import HttpRequest, content_digest, sign_request
from agent.trust.keys import SigningKey
from agent.trust.roster import Role, Roster, RosterEntry
from agent.trust.signed import sign_order

PART: Final = "intake"
TARGET: Final = "/v1/learnuplets"
CONNECTIONS: Final = (1, 16, 64)
JUDGED: Final = 16  # connections that the figures are about
FLOOR: Final = "bare server"
START_S: Final = 60.0
STOP_S: Final = 30.0


class Size(Struct, frozen=True):
    """How much one round does."""

    commits: int  # before the orders, and as many after them
    orders: dict[int, int]  # by connections


ROUNDS: Final = 7  # within a minute, most of which signs orders
FULL: Final = Size(500, {1: 150, 16: 800, 64: 400})
SHORT: Final = Size(20, {1: 3, 16: 16, 64: 64})


class Server(Struct, frozen=True, kw_only=True):
    """A process that serves."""

    port: int
    pid: int
    authority: Path  # of its TLS, PEM


class Agent(Server, frozen=True, kw_only=True):
    """An agent that serves, and who may order something of it."""

    home: Path
    orchestrator: SigningKey


class Burst(Struct, frozen=True, kw_only=True):
    """What came of one burst of orders."""

    orders: int
    load: Load
    server_cpu_s: float

    @property
    def rate(self) -> float:
        return self.orders / self.load["wall_s"]

    @property
    def server_us(self) -> float:
        """CPU of the server for one of them."""
        return 1e6 * self.server_cpu_s / self.orders

    @property
    def load_us(self) -> float:
        """The same of the load."""
        return 1e6 * self.load["cpu_s"] / self.orders


class Beside(Struct):
    """What is measured in the same rounds as the orders that are judged. Each has a sample a round."""

    raw: list[float] = []  # commits a second
    floor: list[Burst] = []
    signatures_us: list[float] = []  # two of them verified


def measure(bench: Bench) -> Measured:
    """See the module. Raises: RuntimeError when an order was not accepted."""
    size = SHORT if bench.is_short else FULL
    beside = Beside()
    bursts: dict[int, list[Burst]] = {connections: [] for connections in CONNECTIONS}
    home = bench.folder / PART
    home.mkdir(parents=True)
    with serving(home) as agent, floor(home, agent) as bare:
        if not bench.is_short:  # what is imported and connected at the first order is no order's price
            first = requests_for(agent, 4 * JUDGED)
            for server in (agent, bare):
                burst(server, first, JUDGED)
        for number in range(min(bench.rounds, ROUNDS)):
            for name in order_of(number, [str(connections) for connections in CONNECTIONS]):
                connections = int(name)
                requests = requests_for(agent, size.orders[connections])
                if connections != JUDGED:
                    bursts[connections].append(burst(agent, requests, connections))
                    continue
                took_s = raw_commits(home, size.commits)
                bursts[connections].append(burst(agent, requests, connections))
                beside.raw.append(2 * size.commits / (took_s + raw_commits(home, size.commits)))
                beside.floor.append(burst(bare, requests, connections))
                beside.signatures_us.append(two_signatures_us(agent, size.orders[connections]))
    return _measured(beside, bursts)


def _measured(beside: Beside, bursts: dict[int, list[Burst]]) -> Measured:
    rows = [Row(part=PART, name="raw commits", unit="/s", samples=tuple(beside.raw))]
    for connections, seen in bursts.items():
        name = f"orders at {connections}"
        rows.append(
            Row(part=PART, name=name, unit="/s", samples=tuple(b.rate for b in seen), baseline="raw commits")
        )
        for share in (50, 99):
            latencies = tuple(1000 * percentile(one.load["latency_s"], share) for one in seen)
            rows.append(Row(part=PART, name=f"{name}, p{share}", unit="ms", samples=latencies))
    judged = bursts[JUDGED]
    rows += _floor_rows(beside, judged)
    every_s = [latency for one in judged for latency in one.load["latency_s"]]
    return Measured(
        rows=tuple(rows),
        figures={
            "intake_ratio": over([one.rate for one in judged], beside.raw),
            "intake_p99_ms": 1000 * percentile(every_s, 99),
            "intake_floor_ratio": over([one.rate for one in beside.floor], beside.raw),
        },
        notes=tuple(_notes(bursts)),
    )


def _floor_rows(beside: Beside, judged: Sequence[Burst]) -> Iterator[Row]:
    floor = tuple(one.rate for one in beside.floor)
    yield Row(part=PART, name=f"{FLOOR} at {JUDGED}", unit="/s", samples=floor, baseline="raw commits")
    for name, taken in (("an order", judged), (FLOOR, beside.floor)):
        yield Row(
            part=PART, name=f"{name}: server", unit="us CPU", samples=tuple(one.server_us for one in taken)
        )
        yield Row(part=PART, name=f"{name}: load", unit="us CPU", samples=tuple(one.load_us for one in taken))
    yield Row(part=PART, name="two signatures", unit="us CPU", samples=tuple(beside.signatures_us))


def _notes(bursts: dict[int, list[Burst]]) -> Iterator[str]:
    yield f"server and load share {os.cpu_count()} cores; orders and requests are signed before the clock starts"
    yield f"{FLOOR}: the same requests, server and TLS; each body a row, a moment's in one FULL commit; nothing checked"
    yield "no worker runs; `queue_limit` alone is not the default, for nobody works the orders off"
    for connections, seen in bursts.items():
        orders, wall_s = sum(one.orders for one in seen), sum(one.load["wall_s"] for one in seen)
        server_s, load_s = sum(one.server_cpu_s for one in seen), sum(one.load["cpu_s"] for one in seen)
        yield (
            f"at {connections} connections an order took {1e6 * server_s / orders:.0f} us of CPU in the server "
            f"({100 * server_s / wall_s:.0f} % of a core) and {1e6 * load_s / orders:.0f} us in the load "
            f"({100 * load_s / wall_s:.0f} %)"
        )


# ------------------------------------------------------------------ the baseline


def raw_commits(folder: Path, count: int) -> float:
    """Seconds for so many commits, each of one row, each on the disk before the next begins."""
    path = folder / "raw.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS rows (id INTEGER PRIMARY KEY, at INTEGER, name TEXT)")
        began_s = time.perf_counter()
        for _ in range(count):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO rows (at, name) VALUES (?, ?)", (time.time_ns(), "order"))
            connection.execute("COMMIT")
        return time.perf_counter() - began_s


# ------------------------------------------------------------------ orders


def burst(server: Server, requests: Sequence[bytes], connections: int) -> Burst:
    """These, sent as fast as they are answered. Raises: RuntimeError when one was not accepted."""
    count, framed_requests = len(requests), b"".join(map(framed, requests))
    command = (sys.executable, "-m", "agent.bench.intake_load", str(server.port), str(server.authority))
    before_s = cpu_s_of(server.pid)
    done = subprocess.run(
        (*command, str(connections)), input=framed_requests, capture_output=True, check=False, cwd=_root()
    )
    server_s = cpu_s_of(server.pid) - before_s
    if done.returncode:
        raise RuntimeError(f"the load ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    load = msgspec.json.decode(done.stdout, type=prepared(Load))
    if load["statuses"] != {"202": count}:
        raise RuntimeError(f"of {count} orders not all were accepted: {load['statuses']}")
    return Burst(orders=count, load=load, server_cpu_s=server_s)


def requests_for(agent: Agent, count: int) -> list[bytes]:
    """So many new orders in signed requests."""
    return [request_of(agent) for _ in range(count)]


def two_signatures_us(agent: Agent, count: int) -> float:
    """CPU that the signatures of an order and of its request take to be verified: those of so many orders, their mean."""
    order = sign_order(_order(agent.orchestrator), agent.orchestrator).envelope
    signature, key = agent.orchestrator.sign(order), agent.orchestrator.public
    began_s = time.thread_time()
    for _ in range(2 * count):
        key.verify(signature, order)
    return 1e6 * (time.thread_time() - began_s) / count


def request_of(agent: Agent) -> bytes:
    """A new order in a signed request, as it goes over the wire."""
    order = sign_order(_order(agent.orchestrator), agent.orchestrator)
    fields = {
        "Host": f"{HOST}:{agent.port}",
        "Content-Type": "application/json",
        "Content-Length": str(len(order.envelope)),
        "Content-Digest": content_digest(order.envelope),
    }
    plain = HttpRequest("POST", f"https://{HOST}:{agent.port}{TARGET}", fields)
    fields |= sign_request(plain, agent.orchestrator, now=datetime.now(UTC), has_body=True)
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {TARGET} HTTP/1.1\r\n{head}\r\n".encode() + order.envelope


def _order(orchestrator: SigningKey) -> Learnuplet:
    """A training on three datasets with one test, as DeemCare's are."""
    now = wire_time(datetime.now(UTC))
    return Learnuplet(
        id=OrderId(str(uuid.uuid4())),
        orchestrator=orchestrator.keyid,
        problem=str(uuid.uuid4()),
        problem_image=ImageRef(str(uuid.uuid4()), PROBLEM),
        algo_image=ImageRef(str(uuid.uuid4()), ALGO),
        model_start=None,
        model_end=str(uuid.uuid4()),
        rank=0,
        train_data=tuple(DatasetRef(str(uuid.uuid4()), "1") for _ in range(3)),
        test_data=(DatasetRef(str(uuid.uuid4()), "1"),),
        not_before=now - timedelta(hours=1),
        expires=now + timedelta(hours=1),
    )


PROBLEM: Final = digest_of(b"the problem's image")
ALGO: Final = digest_of(b"the algo's image")


# ------------------------------------------------------------------ the agent


@contextmanager
def serving(home: Path) -> Iterator[Agent]:
    """`dc-compute serve` of a new home, answering, while the block runs. Raises: RuntimeError when it does not start."""
    now = datetime.now(UTC)
    key, orchestrator = SigningKey.generate(), SigningKey.generate()
    authority = CertificateAuthority("Bench", now=now)
    port = _free_port()
    key.save(home / "identity.pem")
    _write_tls(home, authority, now)
    (home / "agent.toml").write_bytes(msgspec.toml.encode(_settings(home, port)))
    (home / "roster.toml").write_text(_roster(key, orchestrator, authority, port, now).to_toml())
    (home / "policy.toml").write_bytes(msgspec.toml.encode(_policy(orchestrator)))
    command = (sys.executable, "-m", "agent", "--home", str(home), "serve")
    with _answering(command, home / "log", port) as pid:
        yield Agent(
            home=home, port=port, pid=pid, authority=home / "authority.pem", orchestrator=orchestrator
        )


@contextmanager
def floor(home: Path, agent: Agent) -> Iterator[Server]:
    """A server that checks nothing, with the agent's certificate and on its disk, while the block runs."""
    port = _free_port()
    command = (sys.executable, "-m", "agent.bench.intake_floor", str(home), str(port))
    with _answering(command, home / "floor.log", port) as pid:
        yield Server(port=port, pid=pid, authority=agent.authority)


@contextmanager
def _answering(command: Sequence[str], log_file: Path, port: int) -> Iterator[int]:
    """The id of a process that answers at this port, and that ends with the block."""
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=_root(), start_new_session=True
        )
    try:
        _await(log_file, port, process)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _settings(home: Path, port: int) -> dict[str, dict[str, object]]:
    """The shipped ones, but for room for every order in the queue: nobody works them off."""
    return {
        "identity": {"key": "identity.pem"},
        "listen": {
            "host": HOST,
            "port": port,
            "tls_cert": "tls.crt",
            "tls_key": "tls.key",
            "operator_socket": str(home / "run" / "operator.sock"),
        },
        "paths": {"data": "data", "spool": "data/spool"},
        "limits": {"queue_limit": 1_000_000},
        "log": {"format": "json"},
    }


def _roster(
    key: SigningKey, orchestrator: SigningKey, authority: CertificateAuthority, port: int, now: datetime
) -> Roster:
    dates = {"valid_from": now - timedelta(hours=1), "valid_until": now + timedelta(days=1)}
    me = RosterEntry.of(
        key.public,
        Role.AGENT,
        "bench",
        agent_url=f"https://{HOST}:{port}",
        tls_ca=authority.certificate.decode(),
        **dates,
    )
    return Roster((me, RosterEntry.of(orchestrator.public, Role.ORCHESTRATOR, "orchestrator", **dates)))


def _policy(orchestrator: SigningKey) -> dict[str, object]:
    return {
        "orchestrators": [orchestrator.keyid],
        "images": [PROBLEM, ALGO],
        "datasets": "*",
        "kinds": ["learn", "test"],
    }


def _write_tls(home: Path, authority: CertificateAuthority, now: datetime) -> None:
    identity = authority.server([HOST], now=now)
    (home / "authority.pem").write_bytes(authority.certificate)
    (home / "tls.crt").write_bytes(identity.certificate)
    (home / "tls.key").touch(mode=0o600)
    (home / "tls.key").write_bytes(identity.private_key)


def _await(log: Path, port: int, process: "subprocess.Popen[bytes]") -> None:
    """Return once the server answers. Raises: RuntimeError with the end of its log when it does not."""
    deadline = time.monotonic() + START_S
    while not _is_open(port):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server does not answer: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


def _is_open(port: int) -> bool:
    with socket.socket() as door:
        return door.connect_ex((HOST, port)) == 0


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as door:
        port: int = door.getsockname()[1]
        return port


def _root() -> Path:
    """From where `-m agent` finds this very package."""
    return Path(__file__).resolve().parents[2]
