"""What the routes on cancelling do: take an orchestrator's signed word, or the operator's for this host."""

from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from agent.api.ask import Ask, no_query
from agent.api.desk import Desk
from agent.api.problems import json_answer
from agent.api.views import CancellationView
from agent.domain.strict_json import decode
from agent.pipeline.cancel import Taken, cancel_here, take_cancellation

MAX_CANCEL_BYTES = 8 << 10


class CancelBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why the operator ends an order here; it stays on this host."""

    reason: Annotated[str, Meta(max_length=500)] | None = None


def post_cancellation(ask: Ask, desk: Desk) -> Response:
    """Take an orchestrator's cancellation, from itself or forwarded by an agent."""
    no_query(ask)
    sender = None if ask.signer is None else ask.signer.keyid
    return _answer(take_cancellation(ask.body, sender, desk.host))


def post_cancel(ask: Ask, desk: Desk) -> Response:
    """End an order on this host, now and when it comes back."""
    no_query(ask)
    told = decode(ask.body, CancelBody, limit_bytes=MAX_CANCEL_BYTES, what="the cancellation")
    return _answer(cancel_here(ask.order_id, desk.host, uid=ask.uid, reason=told.reason))


def _answer(taken: Taken) -> Response:
    view = CancellationView(
        order=taken.kept.order,
        id=None if taken.order is None else taken.order.id,
        kept_until=taken.kept.keep_until,
        jobs={job.id: job.state for job in taken.jobs},
        next_agent=taken.jobs[-1].next_agent if taken.jobs else None,
    )
    where = {} if taken.order is None else {"Location": f"/v1/orders/{taken.order.id}"}
    return json_answer(view, 200 if taken.is_repeat else 202, where)
