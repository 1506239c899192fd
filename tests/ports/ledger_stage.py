"""What the ledger's tests share: signed orders by name, arrivals, and jobs brought to the state a test begins in."""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path

from agent.domain.chain import TaskKind, plan
from agent.domain.ids import KeyId, OrderId
from agent.domain.jobs import Job, JobEvent
from agent.domain.orders import SignedOrder
from agent.domain.receipts import SignedReceipt
from agent.ports.ledger import Arrival, DeliveryKind, Ledger, NewDelivery
from agent.ports.ledger_sqlalchemy import SqlAlchemyLedger, migrate, open_ledger
from tests.builders import NOW, consortium, uuid_of

WORLD = consortium()
ORCHESTRATOR = WORLD.orchestrator.keyid
PEER = WORLD.agent("b").keyid
OTHER_PEER = WORLD.agent("c").keyid

LEASE = timedelta(seconds=60)


def at(seconds: float) -> datetime:
    """A moment so many seconds after NOW."""
    return NOW + timedelta(seconds=seconds)


@cache
def order_named(name: str, *, rank: int = 0) -> SignedOrder:
    """An order of five tasks (a1, b1, c1, a2, then a test on c2). Another `rank`: the same id with other content."""
    return WORLD.order(id=OrderId(uuid_of(name)), rank=rank)


@cache
def chain_of(order: SignedOrder, count: int) -> tuple[SignedReceipt, ...]:
    """The receipts of the first `count` tasks."""
    return WORLD.chain(order, count)


@cache
def other_receipt(order: SignedOrder, position: int) -> SignedReceipt:
    """A receipt for this place as another run of the task would have left it."""
    return WORLD.receipt(order, chain_of(order, position), attempt=7)


def arrival(
    order: SignedOrder, receipts: Sequence[SignedReceipt] = (), *, sender: KeyId = ORCHESTRATOR
) -> Arrival:
    """The order as it arrives after these receipts."""
    kind: TaskKind = plan(order.order)[len(receipts)].kind
    return Arrival(order=order, receipts=tuple(receipts), kind=kind, sender=sender)


def report(body: bytes = b'{"state":"done"}') -> NewDelivery:
    """A report to the orchestrator."""
    return NewDelivery(DeliveryKind.REPORT, ORCHESTRATOR, body)


def handoff(target: KeyId = PEER) -> NewDelivery:
    """A hand-off to a peer, which ends with the order."""
    return NewDelivery(DeliveryKind.HANDOFF, target, b'{"order":{}}', expires_at=at(3600))


# ------------------------------------------------------------------ jobs in a state


def received(ledger: Ledger, name: str = "order", *, position: int = 0, now: datetime = NOW) -> Job:
    """A job that has just arrived."""
    order = order_named(name)
    came = arrival(order, chain_of(order, position))
    return ledger.admit(came, now, max_attempts=3, queue_limit=1_000_000).job


def queued(ledger: Ledger, name: str = "order", *, position: int = 0, now: datetime = NOW) -> Job:
    """A job that waits for a worker."""
    return ledger.move(received(ledger, name, position=position, now=now), JobEvent.ENQUEUE, now)


def running(
    ledger: Ledger, name: str = "order", *, position: int = 0, worker: str = "w1", now: datetime = NOW
) -> Job:
    """A job that a worker runs, in attempt 1."""
    job = queued(ledger, name, position=position, now=now)
    return ledger.start(job, now, worker=worker, lease_until=now + LEASE)


def attested(ledger: Ledger, *deliveries: NewDelivery, name: str = "order") -> Job:
    """A job at position 0 whose task is done and which demands these deliveries."""
    job = running(ledger, name)
    receipt = chain_of(order_named(name), 1)[0]
    return ledger.move(job, JobEvent.ATTEST, at(1), receipt=receipt, next_agent=PEER, deliveries=deliveries)


# ------------------------------------------------------------------ real files


@cache
def _template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="ledger-template-"))
    atexit.register(shutil.rmtree, folder)
    migrate(folder / "ledger.db")
    return folder / "ledger.db"


def fresh_ledger(folder: Path) -> SqlAlchemyLedger:
    """An empty migrated ledger in a file of its own. Copied, because migrating takes longer than most tests."""
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / "ledger.db"
    shutil.copy(_template(), path)
    return open_ledger(path)


_OPEN = "('received', 'held', 'queued', 'running')"
_OF_IMAGES = f"FROM jobs JOIN orders ON orders.id = jobs.order_id WHERE state IN {_OPEN} GROUP BY images"
_COUNTED = (  # what triggers keep, and what a count of the rows themselves says
    ("state, count FROM job_counts WHERE count <> 0", "state, count(*) FROM jobs GROUP BY state"),
    ("state, count FROM delivery_counts WHERE count <> 0", "state, count(*) FROM deliveries GROUP BY state"),
    (
        "dataset, lines, last FROM dataset_lines",
        "dataset, count(*), max(seq) FROM events WHERE dataset IS NOT NULL GROUP BY dataset",
    ),
    (
        "images, open, held FROM image_needs WHERE open <> 0 OR held <> 0",
        f"images, count(*), sum(state = 'held') {_OF_IMAGES}",
    ),
)


def miscounted(ledger: SqlAlchemyLedger) -> list[str]:
    """The kept counts that are not what a count would say."""
    with ledger._file.looking() as driver:

        def rows(words: str) -> list[tuple[object, ...]]:
            return driver.execute(f"SELECT * FROM (SELECT {words}) ORDER BY 1").fetchall()  # noqa: S608 - our own words

        return [kept for kept, counted in _COUNTED if rows(kept) != rows(counted)]
