"""The trace of an order: what a field may say, and what an order has that came without one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.ids import OrderId
from agent.domain.traces import (
    TraceId,
    given_trace,
    own_trace,
    parse_traceparent,
    trace_for,
    trace_of,
    traceparent,
)
from tests.builders import digest_named, uuid_of

TRACE = TraceId("4bf92f3577b34da6a3ce929d0e0e4736")
SPAN = "00f067aa0ba902b7"
ORDER = digest_named("an order")


def test_the_example_of_the_standard_is_read_and_written() -> None:
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-01") == TRACE
    assert traceparent(TRACE, SPAN) == f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    "text",
    [
        "",
        TRACE,
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE[:-1]}٣-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01",
        "0" * 100_000,
    ],
)
def test_a_malformed_field_tells_nothing(text: str) -> None:
    assert parse_traceparent(text) is None


@given(st.text(max_size=80))
def test_no_text_becomes_an_id_but_32_hex_digits(text: str) -> None:
    found = parse_traceparent(text)

    assert found is None or (len(found) == 32 and set(found) <= set("0123456789abcdef"))


def test_an_order_without_one_has_its_own_which_every_host_derives() -> None:
    assert trace_of(None, ORDER) == own_trace(ORDER) == ORDER.removeprefix("sha256:")[:32]
    assert parse_traceparent(traceparent(own_trace(ORDER), SPAN)) == own_trace(ORDER)


def test_an_orders_own_is_not_told() -> None:
    assert given_trace(own_trace(ORDER), ORDER) is None
    assert given_trace(TRACE, ORDER) == TRACE
    assert given_trace(None, ORDER) is None


def test_an_orders_id_makes_one() -> None:
    order = OrderId(uuid_of("an order"))

    assert parse_traceparent(traceparent(trace_for(order), SPAN)) == trace_for(order)
