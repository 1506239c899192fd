"""What the operator's routes on deliveries do: list what waits to be told to others or died on the way, and take the
operator's word on it."""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from agent.api.ask import Ask, no_query
from agent.api.desk import Desk
from agent.api.problems import json_answer
from agent.api.views import DeliveryPage, view_delivery
from agent.domain.strict_json import decode
from agent.pipeline.letters import drop, retry
from agent.ports.ledger import DeliveryId, DeliveryState

MAX_DECISION_BYTES = 4 << 10
LONGEST_LIST = 1000


class Act(StrEnum):
    """What is to become of a delivery."""

    RETRY = "retry"
    DROP = "drop"


class DecisionBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The operator's word on one delivery."""

    delivery: Annotated[str, Meta(min_length=1, max_length=80)]
    act: Act


class DeliveriesQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of GET /v1/deliveries. `state` may stand several times."""

    state: Annotated[tuple[DeliveryState, ...], Meta(max_length=len(DeliveryState))] = ()
    limit: Annotated[int, Meta(ge=1, le=LONGEST_LIST)] = LONGEST_LIST


def get_deliveries(ask: Ask, desk: Desk) -> Response:
    """What waits to be acknowledged by others, and what a person must decide on, oldest first."""
    query, ledger = ask.query_as(DeliveriesQuery), desk.host.ports.ledger
    states = frozenset(query.state) or {DeliveryState.PENDING, DeliveryState.DEAD}
    found = ledger.outbox(states, query.limit)
    return json_answer(DeliveryPage(tuple(view_delivery(head) for head in found), ledger.outbox_counts()))


def post_decision(ask: Ask, desk: Desk) -> Response:
    """Send a delivery again at once, or drop it."""
    no_query(ask)
    told = decode(ask.body, DecisionBody, limit_bytes=MAX_DECISION_BYTES, what="the decision")
    name = DeliveryId(told.delivery)
    before = desk.host.ports.ledger.delivery(name).state
    after = (retry if told.act is Act.RETRY else drop)(name, ask.uid, desk.host)
    is_repeat = before is DeliveryState.DROPPED
    return json_answer(view_delivery(after), 200 if is_repeat else 202)
