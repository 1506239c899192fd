"""A host with a past, for the page to tell of: agent a of `tests.builders` on a ledger in memory, through real moves.

stage = open_stage(tmp_path)
stage.order("done")      # its five tasks are done, with a score
stage.page("/")          # the HTML of a page, as the operator's socket gives it
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx

from agent.api.page.site import PageFiles
from agent.api.routes import open_desk, operator_app
from agent.api.serving import listen, serving
from agent.domain.chain import TaskKind
from agent.domain.ids import OrderId
from agent.domain.jobs import Job, JobEvent
from agent.domain.orders import SignedOrder
from agent.domain.receipts import SignedReceipt
from agent.pipeline.checkup import Checkup, Finding, keep_checkup
from agent.pipeline.host import Host
from agent.ports.ledger import Arrival, DeliveryKind, NewDelivery
from agent.trust.keys import SigningKey
from tests.api.house import Door, House, open_house
from tests.builders import NOW, learnuplet, uuid_of

LEASE = timedelta(seconds=60)
BLOCKS = {"dd", "dt", "li", "p", "td", "th", "h1", "h2", "h3", "div", "time"}  # begin a word of their own
TESTED = ("c2", "a3", "b2", "c3", "a4")


@dataclass
class Stage:
    """The house, and what was brought about in it."""

    house: House
    folder: Path
    orders: dict[str, SignedOrder] = field(default_factory=dict)

    def live_as(self, host: Host) -> None:
        """From now on the house is this host's."""
        house, folder = self.house, self.folder
        files = PageFiles(ledger=folder / "ledger", queues=folder / "queues")
        house.host, house.desk = host, open_desk(host, files)
        house.operator = Door(operator_app(house.desk), "http://operator")

    def page(self, target: str) -> httpx.Response:
        return self.house.operator.get(target)

    def order(self, name: str, **changes: Any) -> SignedOrder:
        """The order of this name: trains on a1, b1, c1, a2, and is tested on several datasets."""
        if name not in self.orders:
            told: dict[str, Any] = {"id": OrderId(uuid_of(name)), "test": TESTED} | changes
            self.orders[name] = self.house.world.order(learnuplet(**told))
        return self.orders[name]

    def receipts(self, order: SignedOrder, count: int) -> tuple[SignedReceipt, ...]:
        """The first receipts of the order, each test with a score of its own."""
        world, made = self.house.world, list[SignedReceipt]()
        for position in range(count):
            score = f"0.{9610 + 37 * position}" if position >= 4 else None
            made.append(world.receipt(order, made, score=score))
        return tuple(made)

    def arrive(self, order: SignedOrder, count: int = 0) -> Job:
        """The order as it arrives after so many tasks."""
        kind = TaskKind.LEARN if count < 4 else TaskKind.TEST
        receipts = self.receipts(order, count)
        arrival = Arrival(order=order, receipts=receipts, kind=kind, sender=self._sender(receipts).keyid)
        return self.house.ledger.admit(arrival, self.house.clock(), max_attempts=3, queue_limit=1000).job

    def _sender(self, receipts: tuple[SignedReceipt, ...]) -> SigningKey:
        world = self.house.world
        return world.agent("c") if receipts else world.orchestrator

    def run(self, order: SignedOrder, count: int = 0) -> Job:
        """It runs here."""
        ledger, now = self.house.ledger, self.house.clock()
        job = ledger.move(self.arrive(order, count), JobEvent.ENQUEUE, now)
        return ledger.start(job, now, worker="w1", lease_until=now + LEASE)

    def attest(self, order: SignedOrder, count: int = 0, *deliveries: NewDelivery) -> Job:
        """Its task here is done."""
        receipt = self.receipts(order, count + 1)[count]
        return self.house.ledger.move(
            self.run(order, count),
            JobEvent.ATTEST,
            self.house.clock(),
            receipt=receipt,
            score=receipt.receipt.score,
            next_agent=self.house.world.agent("b").keyid,
            deliveries=deliveries,
        )

    def letter(self, kind: DeliveryKind = DeliveryKind.HANDOFF) -> NewDelivery:
        return NewDelivery(kind, self.house.world.agent("b").keyid, b"{}", expires_at=NOW + timedelta(days=1))


def open_stage(folder: Path) -> Stage:
    """An empty house; what the page keeps lies in `folder`."""
    stage = Stage(open_house(folder, records=(folder,)), folder)
    stage.live_as(stage.house.host)
    return stage


def furnish(stage: Stage, folder: Path) -> None:
    """Something of everything that a page can tell of."""
    house = stage.house
    ledger, clock = house.ledger, house.clock
    stage.attest(stage.order("done"), 8)
    clock.pass_by(timedelta(seconds=40))
    lost = stage.run(stage.order("lost"), 3)
    ledger.move(lost, JobEvent.FAIL, clock(), reason="oom")
    clock.pass_by(timedelta(seconds=20))
    there = stage.arrive(stage.order("elsewhere", train=("b1", "a1", "c1", "a2")))
    ledger.redirect(there, clock(), next_agent=house.world.agent("b").keyid, delivery=stage.letter())
    ledger.move(stage.arrive(stage.order("held")), JobEvent.HOLD, clock())
    job = stage.attest(stage.order("unheard"), 0, stage.letter(), stage.letter(DeliveryKind.REPORT))
    handoff, report = (one.id for one in ledger.deliveries(order_id=job.order_id))
    ledger.bury(report, clock(), "record-conflict: another receipt is recorded")
    ledger.postpone(handoff, clock() + timedelta(seconds=90), "peer-unavailable: connection refused")
    running = stage.run(stage.order("running"))
    ledger.begin_step(running, "inputs", clock())
    clock.pass_by(timedelta(seconds=2))
    ledger.end_step(running, "inputs", clock(), b"{}")
    ledger.begin_step(running, "run.train", clock())
    clock.pass_by(timedelta(seconds=34))
    ledger.move(stage.arrive(stage.order("waiting")), JobEvent.ENQUEUE, clock())
    house.call(house.world.agent("c"), "GET", "/v1/held")
    house.call(house.world.other_orchestrator, "POST", "/v1/learnuplets", stage.order("done").envelope)
    house.network.get("/v1/orders")
    keep_checkup(
        Checkup(
            NOW - timedelta(hours=3),
            "0.5.0",
            (
                Finding("versions", "runc", "ok", "1.1.5"),
                Finding("memory", "swap", "warn", "2 GiB of swap that is not encrypted", "swapoff -a"),
                Finding(
                    "trust", "certificate", "fail", "ends tomorrow", "dc-compute init --certificate here"
                ),
            ),
        ),
        folder,
    )


@contextmanager
def shown(stage: Stage) -> Iterator[str]:
    """The operator's door where a browser can reach it, on loopback; gives its URL."""
    with serving(operator_app(stage.house.desk), listen("127.0.0.1", 0), tls=None) as url:
        yield url


class Page(HTMLParser):
    """A page taken apart: its elements, the text, and where it leads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag in BLOCKS:
            self.text += " "
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def links(self) -> set[str]:
        return {value for name, value in self.attributes if name in {"href", "src"}}
