"""Three hosts to measure on: each a storage and an agent, with two orchestrators, every one a process of its own as shipped.

The agents' settings are the defaults but for keys, places, ports and the engine (`tests/bench/test_wiring.py` holds that). When
something happened is read from the agents' own logs afterwards: nothing is asked, and so slowed, while it goes on.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from agent.bench.figures import Bench
from agent.bench.images import noop_image
from agent.devkit.book import Book
from agent.devkit.client import Client
from agent.devkit.consortium import Consortium, Party, Sections, found, running
from agent.devkit.issuing import send
from agent.devkit.server import now
from agent.devkit.trainings import fresh_dataset, training
from agent.domain.ids import Digest, OrderId, job_id
from agent.domain.orders import DatasetRef
from agent.domain.receipts import MAX_RECEIPT_BYTES, parse_receipt
from agent.trust.envelope import parse_envelope
from agent.trust.signed import sign_order

NAMES = ("A", "B", "C")
# What rootless engines cannot enforce on some hosts (cgroup v1); receipts name what was really absent.
ACCEPTED_GAPS = ("memory_bytes", "cpu_millis", "pids")
NOTHING = bytes(4096)  # what lies in a dataset that nobody reads
DEFAULTS: Sections = {}
LOOK_EVERY_S = 0.002  # at the logs' ends; the times themselves stand in the lines
PATIENCE_S = 60.0


class Event(Struct, frozen=True):
    """A line of an agent's log: when (seconds since the epoch), who, what, and its values."""

    at_s: float
    agent: str
    name: str
    told: Mapping[str, Any]


class Sent(Struct, frozen=True):
    """An order that was accepted: when it was sent, when the 202 was there (seconds since the epoch), where it goes."""

    id: OrderId
    sent_s: float
    answered_s: float
    agents: tuple[str, ...]

    @property
    def last(self) -> int:
        """The position of its last task."""
        return len(self.agents) - 1


@dataclass
class Town:
    """The hosts, alive. `events`: what was read of the agents' logs."""

    consortium: Consortium
    image: Digest
    book: Book  # of the orchestrator that issues the orders
    client: Client  # its calls, on connections that are kept
    events: list[Event] = field(default_factory=list)
    _read: dict[str, int] = field(default_factory=dict)  # bytes of each agent's log

    # ---- data and orders

    def seal(self, name: str, content: bytes = NOTHING) -> DatasetRef:
        """Bring a fresh dataset to this hospital."""
        return fresh_dataset(self.consortium, self.consortium.hospital(name), content)

    def order(self, names: Sequence[str], *, image: Digest | None = None, content: bytes = NOTHING) -> Sent:
        """Issue a training that goes over these hospitals, one task each, and return when it is accepted.

        Its datasets are fresh, so that nobody remembers anything of them from an order before. All that the owner and the
        orchestrator do first (sealing, signing, writing it down) is done before the clock starts.
        """
        data = [self.seal(name, content) for name in names]
        order = training(self.client.key.keyid, image or self.image, data, attempts=1)
        signed = sign_order(order, self.client.key)
        self.book.record_order(signed, now())
        first = self.consortium.hospital(names[0]).agent.key.keyid
        sent_s = time.time()
        send(signed, self.book, self.client, to=first)
        return Sent(signed.order.id, sent_s, time.time(), tuple(names))

    # ---- what happened

    def wait(self, sent: Sent) -> None:
        """Return when the order's result and every report of it is acknowledged. Raises: NotFinished."""
        last = [job_id(sent.id, position) for position in range(len(sent.agents))]
        wanted = {f"{job}.report.2" for job in last} | {f"{last[-1]}.result.1"}
        self._wait(lambda: wanted <= self.acknowledged(sent), f"the result of {sent.id}")

    def is_over(self, sent: Sent) -> bool:
        """Whether the reports of all its tasks' ends arrived, as far as the logs were read."""
        ends = {f"{job_id(sent.id, position)}.report.2" for position in range(len(sent.agents))}
        return ends <= self.acknowledged(sent)

    def acknowledged(self, sent: Sent) -> set[str]:
        """The ids of the order's deliveries that arrived."""
        return {one.told["delivery"] for one in self.about(sent, "delivery.acknowledged")}

    def about(self, sent: Sent, name: str) -> list[Event]:
        """The events of this name that tell of this order, as far as they were read, oldest first."""
        found = [one for one in self.events if one.name == name and one.told.get("order") == sent.id]
        return sorted(found, key=lambda one: one.at_s)

    def moment(self, sent: Sent, name: str, position: int = 0) -> float:
        """When this first happened at this place of the order. Raises: StopIteration when it did not."""
        return next(one for one in self.about(sent, name) if one.told.get("position") == position).at_s

    def accepted_s(self, sent: Sent) -> float:
        """When its first agent had recorded it; the 202 goes out after that. Raises: StopIteration."""
        return self.moment(sent, "order.received")

    def phases(self, sent: Sent, position: int = 0) -> dict[str, float]:
        """Seconds by phase, as the task's receipt tells them. Raises: IndexError when it is not at the orchestrator yet."""
        envelope = parse_envelope(self.book.receipts(sent.id)[position], limit_bytes=MAX_RECEIPT_BYTES)
        return dict(parse_receipt(envelope.payload).usage.phases)

    def reported_s(self, sent: Sent, position: int = 0) -> float:
        """When the report of this task's end was acknowledged. Raises: StopIteration."""
        return self._arrived_s(sent, f"{job_id(sent.id, position)}.report.2")

    def result_s(self, sent: Sent) -> float:
        """When the order's result was acknowledged. Raises: StopIteration."""
        return self._arrived_s(sent, f"{job_id(sent.id, sent.last)}.result.1")

    def _arrived_s(self, sent: Sent, delivery: str) -> float:
        told = self.about(sent, "delivery.acknowledged")
        return next(one for one in told if one.told["delivery"] == delivery).at_s

    def _wait(self, is_there: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            self.read()
            if is_there():
                return
            for one in self.events:
                if one.name == "task.attempt_failed":
                    raise NotFinished(f"{what}: {one.told.get('code')}: {one.told.get('detail')}")
            if time.monotonic() > deadline_s:
                words = [f"{one.agent} {one.name} {dict(one.told)}" for one in self.events[-5:]]
                raise NotFinished(f"{what} was not seen within {PATIENCE_S:.0f} s: " + " / ".join(words))
            time.sleep(LOOK_EVERY_S)

    def read(self) -> None:
        """Take what the agents wrote into their logs since the last time."""
        for hospital in self.consortium.hospitals:
            self.events += self._lines(hospital.agent)

    def forget(self) -> None:
        """Drop the events that were read: they are of orders that are over."""
        self.events.clear()

    def _lines(self, party: Party) -> Iterator[Event]:
        begin = self._read.get(party.name, 0)
        with party.log.open("rb") as log:
            log.seek(begin)
            whole, newline, _ = log.read().rpartition(b"\n")
        self._read[party.name] = begin + len(whole) + len(newline)
        for line in whole.splitlines():
            if line.startswith(b"{"):
                told = json.loads(line)
                at_s = datetime.fromisoformat(told["at"]).timestamp()
                yield Event(at_s, party.name.removeprefix("agent-"), told["event"], told)


class NotFinished(Exception):
    """An order did not come to its end; the message holds the last that was told."""


@contextmanager
def town(
    bench: Bench,
    engine: Mapping[str, str],
    *,
    name: str = "town",
    hosts: Sequence[str] = NAMES,
    images: Sequence[tuple[Path, Digest]] = (),
    output_bytes: int = 64 << 20,
    settings: Sections = DEFAULTS,
) -> Iterator[Town]:
    """The town with this container engine, proved and warm: one order ran at every host. `images`: admitted besides the no-op;
    `output_bytes`: how much a task may leave; `settings`: of the agents, beside the defaults. Raises: NotStarted, NotFinished.
    """
    archives = (noop_image(), *images)
    consortium = found(
        bench.folder / name, hosts, runtime=engine, memory=bench.memory / name, settings=settings
    )
    consortium.admit(
        [digest for _, digest in archives], accept_missing=ACCEPTED_GAPS, output_bytes=output_bytes
    )
    with running(consortium), consortium.client(consortium.orchestrators[0]).keeping() as client:
        for archive, _ in archives:
            consortium.publish_image(archive)
        made = Town(consortium, archives[0][1], consortium.book(), client)
        for each in hosts:  # loads the image there, and waits until its cage is proved
            made.wait(made.order([each]))
        yield made
