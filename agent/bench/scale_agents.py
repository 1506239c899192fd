"""The two agents of part `scale`: made as shipped, filled with copies of orders that they took in, started and stopped."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from agent.bench.figures import Bench
from agent.bench.scale_rows import Pattern, end_orders, order_name, pattern_of, put_orders
from agent.config import Settings, load_settings
from agent.devkit.consortium import Consortium, Hospital, NotStarted, found, on_podman
from agent.devkit.trainings import training
from agent.domain.ids import Digest, JobId, digest_of, job_id
from agent.domain.jobs import Job, JobEvent
from agent.domain.orders import LEARNUPLET_TYPE, DatasetRef, SignedOrder
from agent.errors import ImageDenied
from agent.pipeline.attest import Work, attest_failure
from agent.pipeline.host import Host, context_of
from agent.pipeline.intake import take_order
from agent.pipeline.phases import Phases
from agent.ports.client import Client
from agent.ports.ledger import DeliveryState
from agent.trust.signed import sign_order
from agent.wiring import open_host, open_operator

READY_S = 60.0
LOOK_S = 1.0  # whether the process is there still
LIMITS = {"limits": {"queue_limit": 100_000_000}}
KEPT = ("PATH", "HOME", "LANG", "XDG_RUNTIME_DIR")
IMAGE: Digest = digest_of(b"an image that nobody fetches")
DATASET = str(uuid4())


@dataclass
class Side:
    """One agent, and the orders that were copied into it."""

    name: str
    consortium: Consortium
    hospital: Hospital
    settings: Settings
    patterns: list[Pattern] = field(default_factory=list)  # of an order that waits, and of one that ended
    count: int = 0  # copies in all
    claimed: set[JobId] = field(default_factory=set)

    @property
    def ledger(self) -> Path:
        return self.settings.paths.ledger

    def take_pattern(self) -> None:
        """Take two orders in; one waits for a worker, one ended by a ruling. The waiting one is left as it is."""
        with open_host(self.settings) as host:
            job = self._queued(host)
            self.patterns.append(pattern_of(self.ledger, job.order_id))
            _end(job, host)
            self.patterns.append(pattern_of(self.ledger, job.order_id))

    def _queued(self, host: Host) -> Job:
        signed = self.order()
        taken = take_order(signed.envelope, LEARNUPLET_TYPE, signed.signer, host).job
        return host.ports.ledger.move(taken, JobEvent.ENQUEUE, host.ports.now())

    def order(self) -> SignedOrder:
        """A fresh one: a training on one dataset."""
        key = self.consortium.orchestrators[0].key
        return sign_order(training(key.keyid, IMAGE, [DatasetRef(DATASET, "1")]), key)

    def fill(self, count: int) -> None:
        """So many copies in all. Nobody has the ledger open meanwhile."""
        put_orders(self.ledger, self.patterns[0], map(order_name, range(self.count, count)))
        self.count = count

    def end(self, first: int) -> None:
        """All copies from this one on have ended, but for those that were claimed, which wait as before."""
        rest = (
            name for name in map(order_name, range(first, self.count)) if job_id(name, 0) not in self.claimed
        )
        end_orders(self.ledger, self.patterns[0], self.patterns[1], rest)
        for file in self.settings.paths.queues.parent.glob(f"{self.settings.paths.queues.name}*"):
            if file.is_file():
                file.unlink()  # nobody rings for what ended

    def starts(self, bench: Bench) -> dict[str, float]:
        """Seconds until each service was ready, started together; they are stopped again."""
        with ExitStack() as stack:
            begun = {name: stack.enter_context(self._service(name, bench)) for name in ("serve", "work")}
            pool = stack.enter_context(ThreadPoolExecutor(len(begun)))  # each is heard when it speaks
            heard = {f"{name} ready": pool.submit(ready) for name, ready in begun.items()}
            return {name: one.result() for name, one in heard.items()}

    @contextmanager
    def served(self, bench: Bench) -> Iterator[Client]:
        """Its API at the operator's socket, while `serve` runs."""
        with self._service("serve", bench) as ready:
            ready()
            with open_operator(self.settings) as client:
                yield client

    @contextmanager
    def _service(self, name: str, bench: Bench) -> Iterator[Callable[[], float]]:
        """The process of this service, and what waits until it is ready: so many seconds after its start."""
        told = bench.memory / f"{self.name}-{name}"
        command = (sys.executable, "-m", "agent", "--home", str(self.hospital.agent.folder), name)
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear,
            self.hospital.agent.log.open("ab") as log,
        ):
            ear.bind(str(told))
            ear.settimeout(LOOK_S)
            kept = {word: os.environ[word] for word in KEPT if word in os.environ}
            begun_s = time.perf_counter()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=kept | {"NOTIFY_SOCKET": str(told)},
            )

            def ready() -> float:
                while b"READY=1" not in _heard(ear, process, self.hospital.agent.log):
                    pass
                return time.perf_counter() - begun_s

            try:
                yield ready
            finally:
                process.terminate()
                process.wait()
                told.unlink()


def _heard(ear: socket.socket, process: "subprocess.Popen[bytes]", log: Path) -> bytes:
    """What the process says next, to systemd as it thinks. Raises: NotStarted when it ended, or says nothing for long."""
    deadline_s = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < deadline_s:
        with suppress(TimeoutError):
            return ear.recv(4096)
    raise NotStarted(" / ".join(log.read_text(errors="replace").strip().splitlines()[-5:]))


@contextmanager
def stage(bench: Bench) -> Iterator[tuple[Side, Side]]:
    """Both agents, their keys, settings and folders. Storages and orchestrators are not started: nobody is asked."""
    names = ("few", "many")
    consortium = found(
        bench.folder / "town",
        names,
        runtime=on_podman(bench.memory / "no-engine"),
        memory=bench.memory / "town",
        settings=LIMITS,
    )
    consortium.admit([IMAGE], accept_missing=("memory_bytes", "cpu_millis", "pids"))
    few, many = (
        Side(
            name,
            consortium,
            consortium.hospital(name),
            load_settings(consortium.hospital(name).agent.folder, {}),
        )
        for name in names
    )
    yield few, many


def _end(job: Job, host: Host) -> None:
    """The job failed before it began, by a denied image: the receipt signed, the report acknowledged."""
    attest_failure(
        context_of(job, host), Work(host.ports.now(), Phases()), ImageDenied("an end for the bench"), host
    )
    ledger = host.ports.ledger
    for delivery in ledger.deliveries(order_id=job.order_id, state=DeliveryState.PENDING):
        ledger.lease_delivery(delivery.id, host.ports.now(), host.ports.now() + host.rules.lease)
        ledger.acknowledge(delivery.id, host.ports.now())
