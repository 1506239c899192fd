"""One trace id from an orchestrator's request to every host's log, report and receipt; and what happens without one."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.domain.orders import SignedOrder
from agent.domain.receipts import Receipt
from agent.domain.reports import envelope_bytes, parse_report
from agent.domain.traces import TraceId, own_trace
from agent.log import LogFormat, LogLevel, bound_trace, configure
from agent.pipeline.intake import take_handoff
from agent.ports.ledger import DeliveryKind
from agent.trust.handoff import build_handoff
from agent.trust.signed import open_receipt
from tests.pipeline.world import World

TRACE = TraceId("4bf92f3577b34da6a3ce929d0e0e4736")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure(LogLevel.INFO, LogFormat.JSON, stream)
    yield stream
    configure(LogLevel.WARNING)


def of_order(lines: io.StringIO, order: SignedOrder) -> list[dict[str, Any]]:
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    return [line for line in told if line.get("order") == order.order.id]


def receipts_of(world: World, order: SignedOrder) -> list[Receipt]:
    result = world.result(order)
    return [open_receipt(envelope_bytes(one), world.people.roster).receipt for one in result.receipts]


def test_one_trace_goes_through_the_whole_chain(world: World, lines: io.StringIO) -> None:
    order = world.order()

    world.post(order, world.a, TRACE)
    world.settle()

    receipts = receipts_of(world, order)
    assert len({receipt.agent for receipt in receipts}) == 3
    assert {receipt.trace for receipt in receipts} == {TRACE}
    assert {report.trace for report in world.told(order)} == {TRACE}
    assert world.result(order).trace == TRACE
    assert {hospital.ledger.given_trace(order.order.id) for hospital in world} == {TRACE}
    assert {line["trace"] for line in of_order(lines, order)} == {TRACE}


def test_every_line_of_a_task_tells_order_position_attempt_and_trace(
    world: World, lines: io.StringIO
) -> None:
    order = world.order()

    world.post(order, world.a, TRACE)
    world.settle()

    told = of_order(lines, order)
    attested = [line for line in told if line["event"] == "task.attested"]
    assert [line["position"] for line in attested] == list(range(len(attested)))
    assert {line["attempt"] for line in attested} == {1}
    assert all({"order", "position", "trace"} <= line.keys() for line in told)
    assert {"order.received", "order.placed", "task.started", "delivery.acknowledged"} <= {
        line["event"] for line in told
    }
    assert bound_trace() is None


def test_an_order_without_a_trace_has_its_own_and_its_documents_stay_as_they_were(world: World) -> None:
    order = world.order()

    world.post(order, world.a)
    world.settle()

    assert {receipt.trace_id for receipt in receipts_of(world, order)} == {own_trace(order.digest)}
    for hospital in world:
        for delivery in hospital.deliveries(DeliveryKind.REPORT):
            assert b'"trace"' not in delivery.body
            assert parse_report(delivery.body).order == order.digest
        assert hospital.ledger.given_trace(order.order.id) is None


def test_a_hand_off_before_the_first_receipt_takes_the_trace_of_the_request(world: World) -> None:
    order = world.order(train=("b1",), test=("c2",))

    world.post(order, world.a, TRACE)
    world.settle()

    assert {receipt.trace for receipt in receipts_of(world, order)} == {TRACE}


def test_a_peer_cannot_give_an_order_another_trace_than_its_receipts_tell(world: World) -> None:
    order = world.order()
    body = build_handoff(
        order, world.people.chain(order, 1)
    )  # its receipt tells of no trace: the order's own

    take_handoff(body, world.a.keyid, world.b.host, trace=TRACE)

    assert world.b.ledger.given_trace(order.order.id) is None


def test_phases_are_recorded_with_every_attempt(world: World) -> None:
    order = world.order()

    world.post(order, world.a)
    world.settle()

    told = [one for hospital in world for one in hospital.ledger.phase_times(order.order.id)]
    learned = [one.phase for one in told if one.job == f"{order.order.id}.0"]
    assert learned == [
        "wait", "ask", "fetch", "shares", "open", "start", "train", "end", "pack", "publish",
    ]  # fmt: skip
    assert {"detarget", "predict", "perf"} <= {one.phase for one in told}
    assert all(one.seconds >= 0 for one in told)
