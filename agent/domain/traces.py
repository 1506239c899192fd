"""The trace of an order: one id by which everything that happens for it is found, on every host of its chain.

It is the trace id of W3C Trace Context. An orchestrator gives one with its order; an order that came without one has its own,
which everybody derives from the order's digest: so no host has to be told, and a receipt of any age has a trace. An id is a
label and nothing else: nothing is decided by it.

Source: docs/contracts/http.md, "The trace of an order".
"""

import re
from typing import Annotated, Final, NewType

from msgspec import UNSET, Meta, UnsetType

from agent.domain.ids import Digest, OrderId, hex_of

TraceId = NewType("TraceId", str)  # 32 lowercase hex digits, not all of them 0

TraceIdField = Annotated[
    TraceId, Meta(pattern=r"^(?!0{32})[0-9a-f]{32}(?!\n)$", min_length=32, max_length=32)
]

HEADER: Final = "traceparent"  # the field of a request; `tracestate`, its companion, is neither read nor sent
SAMPLED: Final = "01"  # whoever is called may trace it: what an order costs is worth a span

_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def parse_traceparent(text: str) -> TraceId | None:
    """The trace id of this field; None when it is not one of version 00, as W3C says it: a new one is taken then."""
    found = _TRACEPARENT.fullmatch(text)
    return None if found is None else TraceId(found[1])


def traceparent(trace: TraceId, span: str) -> str:
    """The field of a request of this trace. `span`: 16 hex digits, new for each request."""
    return f"00-{trace}-{span}-{SAMPLED}"


def own_trace(order: Digest) -> TraceId:
    """The trace of an order that came without one: the first half of its digest."""
    return TraceId(hex_of(order)[:32])


def trace_for(order_id: OrderId) -> TraceId:
    """What an orchestrator that traces nothing else may give with an order: its id, which is as unique, and easy to search."""
    return TraceId(order_id.replace("-", ""))


def trace_of(given: TraceId | UnsetType | None, order: Digest) -> TraceId:
    """The trace of an order: the one that was given with it, else its own."""
    return given or own_trace(order)


def given_trace(told: TraceId | UnsetType | None, order: Digest) -> TraceId | None:
    """What was told of an order's trace, when it is another one than its own, which needs no telling."""
    return None if not told or told == own_trace(order) else told


def told_trace(given: TraceId | None) -> TraceId | UnsetType:
    """The trace as a document carries it: absent where it is the order's own, so that readers of before know the document."""
    return given or UNSET
