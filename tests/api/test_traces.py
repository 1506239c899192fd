"""A trace at the two doors: taken from a signed request or the operator's, shown to who may read the order."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.domain.traces import TraceId, own_trace, traceparent
from agent.log import LogFormat, LogLevel, configure
from tests.api.house import House, open_house, signed_headers

TRACE = TraceId("4bf92f3577b34da6a3ce929d0e0e4736")
FIELD = {"traceparent": traceparent(TRACE, "00f067aa0ba902b7")}


@pytest.fixture
def house(tmp_path: Path) -> House:
    return open_house(tmp_path)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure(LogLevel.INFO, LogFormat.JSON, stream)
    yield stream
    configure(LogLevel.WARNING)


def submit(house: House, headers: dict[str, str]) -> str:
    """o1's order with these signed fields; its trace here."""
    order = house.world.order()
    answer = house.call(house.world.orchestrator, "POST", "/v1/learnuplets", order.envelope, headers=headers)
    assert answer.status_code == 202
    trace: str = house.operator.get(f"/v1/orders/{order.order.id}").json()["trace"]
    return trace


def test_a_signed_trace_is_the_orders(house: House) -> None:
    assert submit(house, FIELD) == TRACE
    assert house.ledger.given_trace(house.world.order().order.id) == TRACE


@pytest.mark.parametrize(
    "headers", [{}, {"traceparent": "00-x-y-01"}, {"traceparent": "0" * 5000}, {"tracestate": "a=b"}]
)
def test_without_a_well_formed_one_the_order_has_its_own(house: House, headers: dict[str, str]) -> None:
    assert submit(house, headers) == own_trace(house.world.order().digest)


def test_one_that_was_not_signed_is_not_taken(house: House) -> None:
    order = house.world.order()
    headers = signed_headers(
        house.world.orchestrator, "POST", "/v1/learnuplets", order.envelope, now=house.clock()
    )

    answer = house.network.request("POST", "/v1/learnuplets", content=order.envelope, headers=headers | FIELD)

    assert answer.status_code == 202
    assert house.ledger.given_trace(order.order.id) is None


def test_the_operators_is_taken_as_it_is(house: House) -> None:
    order = house.world.order()

    answer = house.operator.request(
        "POST",
        "/v1/learnuplets",
        content=order.envelope,
        headers={"content-type": "application/json"} | FIELD,
    )

    assert answer.status_code == 202
    assert house.ledger.given_trace(order.order.id) == TRACE


def test_lines_of_a_request_tell_its_trace_also_when_it_is_refused(house: House, lines: io.StringIO) -> None:
    submit(house, FIELD)
    house.call(house.world.orchestrator, "POST", "/v1/handoffs", b"{}", headers=FIELD)

    told = {line["event"]: line for line in map(json.loads, lines.getvalue().splitlines())}
    assert told["order.received"]["trace"] == TRACE
    assert told["order.received"]["order"] == house.world.order().order.id
    assert told["order.received"]["position"] == 0
    assert told["request.refused"]["trace"] == TRACE


def test_a_log_names_the_trace_of_its_order(house: House) -> None:
    submit(house, FIELD)

    log = house.operator.get(f"/v1/orders/{house.world.order().order.id}/log").json()

    assert log == {"runs": [], "trace": TRACE}
