"""A ledger on SQLite with thousands of orders, for what must not grow with them; `python -m tests.api.page.many` measures.

Rows are written straight into the file: through the ledger's own transactions they would take a minute. The newest orders are
really signed; those below are never opened by a page, only counted and walked past.
"""

import json
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from agent.domain.ids import OrderId
from agent.domain.jobs import JobEvent
from agent.domain.orders import SignedOrder
from agent.ports.ledger import DeliveryKind
from agent.ports.ledger_sqlalchemy import SqlAlchemyLedger
from tests.api.page.stage import Stage, open_stage
from tests.builders import NOW, dataset, uuid_of
from tests.ports.ledger_stage import fresh_ledger

ORDERS = 10_000
DATASETS = 2_000
LINES_AN_ORDER = 20
REAL = 60  # of them signed: more than any page shows
MICROSECONDS = int(NOW.timestamp() * 1_000_000)


@contextmanager
def crowded(folder: Path, orders: int = ORDERS) -> Iterator[Stage]:
    """A house whose ledger holds so many orders, each with a job, a receipt and twenty lines in the audit log."""
    stage = open_stage(folder)
    ledger = fresh_ledger(folder / "ledger")
    _put_old(folder / "ledger" / "ledger.db", stage.order("first of all"), orders - REAL)
    _use(stage, ledger)
    for number in range(REAL):
        order = stage.order(f"order {number}")
        match number % 4:
            case 0:
                ledger.move(
                    stage.run(order, 3), JobEvent.FAIL, NOW, reason="exit:1 of train, the log says more"
                )
            case 1:
                stage.run(order, 8)
            case 2:
                ledger.move(stage.arrive(order, 3), JobEvent.HOLD, NOW)
            case _:
                stage.attest(order, 8, stage.letter(), stage.letter(DeliveryKind.REPORT))
    for _ in range(200):
        values: dict[str, Any] = {
            "code": "policy-refused",
            "detail": "x" * 200,
            "path": "/v1/handoffs",
            "method": "POST",
        }
        ledger.record_event(
            "request.refused", NOW, values=values | {"who": stage.house.world.agent("c").keyid}
        )
    try:
        yield stage
    finally:
        ledger.close()


def targets(stage: Stage) -> tuple[str, ...]:
    """Every page there is, the largest of its kind."""
    order = stage.order(f"order {REAL - 1}").order.id
    newest = stage.house.ledger.newest_jobs(frozenset(), limit=15)
    return (
        "/",
        "/orders",
        "/orders?state=done",
        "/orders?state=failed",
        f"/orders?after={newest[-1].id}",
        f"/orders/{order}",
        f"/orders/{order}/receipts/8",
        "/datasets",
        f"/datasets/{dataset('a4').id}",
        "/refusals",
        "/checks",
    )


def _use(stage: Stage, ledger: SqlAlchemyLedger) -> None:
    """Put this ledger in the place of the one in memory."""
    host = stage.house.host
    stage.live_as(replace(host, ports=replace(host.ports, ledger=ledger)))
    stage.house.ledger = ledger  # type: ignore[assignment]  # the same methods, on a file


def _put_old(path: Path, pattern: SignedOrder, count: int) -> None:
    """So many orders that are done, with all that is theirs."""
    orders, jobs, receipts = [], [], []
    events: list[tuple[Any, ...]] = []
    for number in range(count):
        order, digest, at = (
            OrderId(uuid_of(f"old {number}")),
            f"sha256:{number:064x}",
            MICROSECONDS - (count - number) * 1000,
        )
        data = uuid_of(f"old dataset {number % DATASETS}")
        orders.append(
            (
                order,
                digest,
                pattern.order.payload_type,
                pattern.signer,
                pattern.signer,
                at,
                at,
                pattern.envelope,
            )
        )
        jobs.append((f"{order}.0", order, digest, pattern.signer, 0, "learn", "done", 1, 3, at, at, 1))
        receipts.append((digest, 0, digest, pattern.signer, at, pattern.envelope))
        told = json.dumps({"kind": "learn", "version": "1", "orchestrator": pattern.signer})
        events.append((at, "job.received", order, 0, told, data, digest))
        events += [(at, "run.ended", order, 0, told, None, digest)] * (LINES_AN_ORDER - 1)
        if number % 50 == 0:
            events.append((at, "audit.checkpoint", None, None, "{}", None, digest))
    with closing(sqlite3.connect(path)) as file, file:
        file.executemany(
            "INSERT INTO orders (id, digest, payload_type, signer, sender, expires, received_at, envelope)"
            " VALUES (?,?,?,?,?,?,?,?)",
            orders,
        )
        file.executemany(
            "INSERT INTO jobs (id, order_id, order_digest, signer, position, kind, state, attempt, max_attempts,"
            " received_at, changed_at, claim) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",
            jobs,
        )
        file.executemany(
            "INSERT INTO receipts (order_digest, position, digest, signer, recorded_at, envelope) VALUES (?,?,?,?,?,?)",
            receipts,
        )
        file.executemany(
            'INSERT INTO events (at, name, order_id, position, "values", dataset, digest) VALUES (?,?,?,?,?,?,?)',
            events,
        )


def main() -> None:
    """A table: page, bytes, and of twenty answers the processor's time in the mean and the median of the clock's, in ms."""
    with tempfile.TemporaryDirectory() as folder, crowded(Path(folder)) as stage:
        for target in targets(stage):
            stage.page(target)
            took, worked = [], time.process_time()
            for _ in range(20):
                began = time.perf_counter()
                answer = stage.page(target)
                took.append((time.perf_counter() - began) * 1000)
            worked = (time.process_time() - worked) * 50
            told = f"{len(answer.content):7} bytes  {worked:6.1f} ms of work  {median(took):6.1f} ms"
            sys.stdout.write(f"{told}  {answer.status_code}  {target}\n")


if __name__ == "__main__":
    main()
