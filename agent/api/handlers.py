"""What each route does: plain functions of what was asked, and of the desk, run in a thread. Whatever AgentError they
raise is answered as a problem document.

Who may call a route at all stands in `routes.py`; who may read which order is decided here.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from agent import __version__
from agent.api.ask import Ask, no_query
from agent.api.desk import Desk
from agent.api.problems import json_answer
from agent.api.readiness import for_strangers
from agent.api.signed_requests import JSON_TYPE
from agent.api.subjects import about, handoff_in, order_in
from agent.api.views import Health, JobPage, JobView, view_job, view_log, view_order, view_receipts
from agent.domain.ids import JobId, KeyId, OrderIdField
from agent.domain.jobs import Job, JobState
from agent.domain.orders import LEARNUPLET_TYPE, MAX_ORDER_BYTES, MAX_TASKS, PREDUPLET_TYPE
from agent.domain.receipts import SignedReceipt
from agent.errors import NotYours, WrongRole
from agent.pipeline.host import Host, signed_order
from agent.pipeline.intake import take_handoff, take_order
from agent.ports.ledger import Admission, JobQuery, OrderRecord
from agent.trust.envelope import parse_envelope
from agent.trust.roster import Role

PAGE = 100
LONGEST_PAGE = 500
SCANNED = 2000  # newest jobs that are looked through for an agent's own


class OrdersQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of GET /v1/orders. `state` may stand several times; `after` is the `next` of the page before."""

    state: Annotated[tuple[JobState, ...], Meta(max_length=len(JobState))] = ()
    order: OrderIdField | None = None
    limit: Annotated[int, Meta(ge=1, le=LONGEST_PAGE)] = PAGE
    after: (
        Annotated[
            JobId, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[0-9]{1,4}$", max_length=41)
        ]
        | None
    ) = None


# ------------------------------------------------------------------ intake


def post_learnuplet(ask: Ask, desk: Desk) -> Response:
    """Take a training order."""
    no_query(ask)
    with about(order_in, ask.body):
        return _taken(
            take_order(ask.body, LEARNUPLET_TYPE, _sender_of_order(ask), desk.host, trace=ask.trace)
        )


def post_preduplet(ask: Ask, desk: Desk) -> Response:
    """Take a prediction order."""
    no_query(ask)
    with about(order_in, ask.body):
        return _taken(take_order(ask.body, PREDUPLET_TYPE, _sender_of_order(ask), desk.host, trace=ask.trace))


def post_handoff(ask: Ask, desk: Desk) -> Response:
    """Take what is left of an order from the agent that did the task before."""
    no_query(ask)
    if ask.signer is None:
        raise WrongRole("a hand-off comes from an agent, not from the operator")
    with about(handoff_in, ask.body):
        return _taken(take_handoff(ask.body, ask.signer.keyid, desk.host, trace=ask.trace))


def _sender_of_order(ask: Ask) -> KeyId:
    """Who stands for the order: who signed the request, or on the operator's socket who is said to have signed the order.

    The order's own signature is checked in either case.
    """
    if ask.signer is not None:
        return ask.signer.keyid
    return parse_envelope(ask.body, limit_bytes=MAX_ORDER_BYTES).keyid


def _taken(admission: Admission) -> Response:
    job = admission.job
    status = 200 if admission.is_repeat else 202
    return json_answer(view_job(job, ()), status, {"Location": f"/v1/orders/{job.order_id}"})


# ------------------------------------------------------------------ reading


def get_orders(ask: Ask, desk: Desk) -> Response:
    """A page of jobs that the caller may see, newest first."""
    query, host, signer = ask.query_as(OrdersQuery), desk.host, ask.signer
    if signer is not None and signer.role is Role.AGENT:
        mine = tuple(_jobs_with(signer.keyid, query, host))
        return json_answer(JobPage(_views(mine[: query.limit], host), None))
    asked = JobQuery(
        states=frozenset(query.state),
        order_id=query.order,
        signer=None if signer is None else signer.keyid,
        after=query.after,
        limit=query.limit + 1,
    )
    jobs = host.ports.ledger.jobs(asked)
    page = jobs[: query.limit]
    return json_answer(JobPage(_views(page, host), page[-1].id if len(jobs) > query.limit else None))


def get_order(ask: Ask, desk: Desk) -> Response:
    """One order: its chain, and its jobs here."""
    no_query(ask)
    record, jobs, receipts = _order_for(ask, desk.host)
    signed = signed_order(record)
    return json_answer(view_order(record, signed, jobs, receipts, desk.host.me))


def get_receipts(ask: Ask, desk: Desk) -> Response:
    """The envelopes of an order and its receipts; an agent that signed one of them is shown those up to its own last one."""
    no_query(ask)
    record, _, receipts = _order_for(ask, desk.host)
    if ask.signer is not None and ask.signer.keyid != record.signer:
        receipts = _up_to_own(ask.signer.keyid, receipts)
    return Response(view_receipts(record, receipts), 200, {"Cache-Control": "no-store"}, JSON_TYPE)


def get_log(ask: Ask, desk: Desk) -> Response:
    """What an order's containers wrote on this host."""
    no_query(ask)
    if not ask.is_operator:
        raise NotYours("a job's log may carry data: it stays on the operator's socket")
    record, _, _ = _order_for(ask, desk.host)
    # It may hold data: who looked is told before it is shown.
    desk.host.ports.ledger.record_event(
        "log.read", desk.host.ports.now(), order_id=record.id, values={"uid": ask.uid}
    )
    return json_answer(view_log(record, desk.host.ports.ledger.logs(record.id), desk.host.key))


def get_health(_ask: Ask, desk: Desk) -> Response:
    """That the process answers."""
    return json_answer(Health(status="alive", version=__version__, agent=desk.host.me))


def get_ready(ask: Ask, desk: Desk) -> Response:
    """Whether an order would be accepted now: 200, else 503."""
    readiness = desk.watchman.look()
    told = readiness if ask.is_operator else for_strangers(readiness)
    return json_answer(told, 200 if readiness.is_ready else 503)


def get_metrics(_ask: Ask, desk: Desk) -> Response:
    """The page for Prometheus."""
    return desk.metrics.page()


def get_openapi(_ask: Ask, desk: Desk) -> Response:
    """The description of these routes."""
    return Response(desk.openapi, media_type=JSON_TYPE)


# ------------------------------------------------------------------ who may read what


def _order_for(ask: Ask, host: Host) -> tuple[OrderRecord, tuple[Job, ...], tuple[SignedReceipt, ...]]:
    """The order that the path names, when the caller may read it. Raises: NotFound, NotYours."""
    ledger = host.ports.ledger
    record = ledger.order(ask.order_id)
    jobs = ledger.jobs(JobQuery(order_id=record.id, limit=MAX_TASKS))
    receipts = ledger.receipts(record.digest)
    signer = ask.signer
    if signer is not None and not _may_read(signer.keyid, record, jobs, receipts):
        raise NotYours(f"order {record.id} is not of {signer.keyid}, nor is that agent in its chain")
    return record, jobs, receipts


def _up_to_own(agent: KeyId, receipts: tuple[SignedReceipt, ...]) -> tuple[SignedReceipt, ...]:
    """What an agent of the chain had in its hands once. Raises: NotYours when it signed none of them."""
    own = [place for place, receipt in enumerate(receipts) if receipt.signer == agent]
    if not own:
        raise NotYours(
            "receipts are read by the order's orchestrator, the operator, and who signed one of them"
        )
    return receipts[: own[-1] + 1]


def _may_read(
    keyid: KeyId, record: OrderRecord, jobs: Sequence[Job], receipts: Sequence[SignedReceipt]
) -> bool:
    """Whether it signed the order, sent it here, signed a receipt of it or goes on with it."""
    chain = {record.signer, record.sender}
    chain.update(receipt.signer for receipt in receipts)
    chain.update(job.next_agent for job in jobs if job.next_agent is not None)
    return keyid in chain


def _jobs_with(agent: KeyId, query: OrdersQuery, host: Host) -> Iterator[Job]:
    """The jobs of orders in whose chain this agent stands, among the newest ones."""
    ledger = host.ports.ledger
    asked = JobQuery(states=frozenset(query.state), order_id=query.order, after=query.after, limit=SCANNED)
    readable: dict[str, bool] = {}
    for job in ledger.jobs(asked):
        if job.order_id not in readable:
            record = ledger.order(job.order_id)
            jobs = ledger.jobs(JobQuery(order_id=record.id, limit=MAX_TASKS))
            readable[job.order_id] = _may_read(agent, record, jobs, ledger.receipts(record.digest))
        if readable[job.order_id]:
            yield job


def _views(jobs: Sequence[Job], host: Host) -> tuple[JobView, ...]:
    receipts = {order: host.ports.ledger.receipts(order) for order in {job.order for job in jobs}}
    return tuple(view_job(job, receipts[job.order]) for job in jobs)
