"""What each route does: plain functions of what was asked, and of the desk, run in a thread. Whatever AgentError they
raise is answered as a problem document.

Who may call a route at all stands in `routes.py`; who may read which order is decided here.
"""

from collections.abc import Collection, Sequence
from typing import Annotated

from msgspec import Meta, Struct
from starlette.responses import Response

from agent import __version__
from agent.api.ask import Ask, no_query
from agent.api.claims import Claim
from agent.api.desk import Desk
from agent.api.doing import doing
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
from agent.pipeline.intake import judge_order, take_handoff, take_order
from agent.ports.ledger import Admission, Candidate, JobQuery, OrderRecord
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
        return _order_taken(ask, LEARNUPLET_TYPE, desk.host)


def post_preduplet(ask: Ask, desk: Desk) -> Response:
    """Take a prediction order."""
    no_query(ask)
    with about(order_in, ask.body):
        return _order_taken(ask, PREDUPLET_TYPE, desk.host)


def post_handoff(ask: Ask, desk: Desk) -> Response:
    """Take what is left of an order from the agent that did the task before."""
    no_query(ask)
    if ask.signer is None:
        raise WrongRole("a hand-off comes from an agent, not from the operator")
    with about(handoff_in, ask.body):
        admission = take_handoff(ask.body, ask.signer.keyid, desk.host, trace=ask.trace, nonce=ask.nonce)
        return _taken(admission, ask.claim)


def judge_learnuplet(ask: Ask, desk: Desk) -> Candidate | Response:
    """A training order that is to be taken, or the answer to one that was taken before."""
    no_query(ask)
    with about(order_in, ask.body):
        return _judged(ask, LEARNUPLET_TYPE, desk.host)


def judge_preduplet(ask: Ask, desk: Desk) -> Candidate | Response:
    """The same of a prediction order."""
    no_query(ask)
    with about(order_in, ask.body):
        return _judged(ask, PREDUPLET_TYPE, desk.host)


def order_taken(admission: Admission | Exception, body: bytes, claim: Claim | None) -> Response:
    """The answer to an order that was judged, by what came of recording it. Raises: what came of it."""
    with about(order_in, body):
        if isinstance(admission, Exception):
            raise admission
        return _taken(admission, claim)


def _judged(ask: Ask, payload_type: str, host: Host) -> Candidate | Response:
    sender = _sender_of_order(ask)
    judged = judge_order(ask.body, payload_type, sender, host, trace=ask.trace, nonce=ask.nonce)
    return judged if isinstance(judged, Candidate) else _taken(judged, ask.claim)


def _order_taken(ask: Ask, payload_type: str, host: Host) -> Response:
    sender = _sender_of_order(ask)
    admission = take_order(ask.body, payload_type, sender, host, trace=ask.trace, nonce=ask.nonce)
    return _taken(admission, ask.claim)


def _sender_of_order(ask: Ask) -> KeyId:
    """Who stands for the order: who signed the request, or on the operator's socket who is said to have signed the order.

    The order's own signature is checked in either case.
    """
    if ask.signer is not None:
        return ask.signer.keyid
    return parse_envelope(ask.body, limit_bytes=MAX_ORDER_BYTES).keyid


def _taken(admission: Admission, claim: Claim | None) -> Response:
    job = admission.job
    if claim is not None:
        claim.is_kept = admission.keeps_nonce
    status = 200 if admission.is_repeat else 202
    return json_answer(view_job(job, ()), status, {"Location": f"/v1/orders/{job.order_id}"})


# ------------------------------------------------------------------ reading


def get_orders(ask: Ask, desk: Desk) -> Response:
    """A page of jobs that the caller may see, newest first."""
    query, host, signer = ask.query_as(OrdersQuery), desk.host, ask.signer
    if signer is not None and signer.role is Role.AGENT:
        among = JobQuery(
            states=frozenset(query.state), order_id=query.order, after=query.after, limit=query.limit
        )
        mine = host.ports.ledger.jobs_with(host.roster.keys_of(signer.keyid), among, SCANNED)
        return json_answer(JobPage(_views(mine, host), None))
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
    record, jobs, receipts = order_for(ask, desk.host)
    signed = signed_order(record)
    now = doing(jobs, desk.host.ports.progress, desk.host.ports.now())
    return json_answer(view_order(record, signed, jobs, receipts, desk.host.me, now))


def get_receipts(ask: Ask, desk: Desk) -> Response:
    """The envelopes of an order and its receipts; an agent that signed one of them is shown those up to its own last one."""
    no_query(ask)
    record, _, receipts = order_for(ask, desk.host)
    if ask.signer is not None and ask.signer.keyid != record.signer:
        receipts = _up_to_own(desk.host.roster.keys_of(ask.signer.keyid), receipts)
    return Response(view_receipts(record, receipts), 200, {"Cache-Control": "no-store"}, JSON_TYPE)


def get_log(ask: Ask, desk: Desk) -> Response:
    """What an order's containers wrote on this host."""
    no_query(ask)
    if not ask.is_operator:
        raise NotYours("a job's log may carry data: it stays on the operator's socket")
    record, _, _ = order_for(ask, desk.host)
    # It may hold data: who looked is told before it is shown.
    desk.host.ports.ledger.record_event(
        "log.read", desk.host.ports.now(), order_id=record.id, values={"uid": ask.uid}
    )
    return json_answer(view_log(record, desk.host.ports.ledger.logs(record.id), desk.host.every_key))


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


def order_for(ask: Ask, host: Host) -> tuple[OrderRecord, tuple[Job, ...], tuple[SignedReceipt, ...]]:
    """The order that the path names, when the caller may read it. Raises: NotFound, NotYours."""
    ledger = host.ports.ledger
    record = ledger.order(ask.order_id)
    jobs = ledger.jobs(JobQuery(order_id=record.id, limit=MAX_TASKS))
    receipts = ledger.receipts(record.digest)
    signer = ask.signer
    if signer is not None and not _may_read(host.roster.keys_of(signer.keyid), record, jobs, receipts):
        raise NotYours(f"order {record.id} is not of {signer.keyid}, nor is that agent in its chain")
    return record, jobs, receipts


def _up_to_own(agent: Collection[KeyId], receipts: tuple[SignedReceipt, ...]) -> tuple[SignedReceipt, ...]:
    """What an agent, by its keys, had in its hands once. Raises: NotYours when it signed none of them."""
    own = [place for place, receipt in enumerate(receipts) if receipt.signer in agent]
    if not own:
        raise NotYours(
            "receipts are read by the order's orchestrator, the operator, and who signed one of them"
        )
    return receipts[: own[-1] + 1]


def _may_read(
    who: Collection[KeyId], record: OrderRecord, jobs: Sequence[Job], receipts: Sequence[SignedReceipt]
) -> bool:
    """Whether the holder of these keys signed the order, sent it here, signed a receipt of it or goes on with it."""
    chain = {record.signer, record.sender}
    chain.update(receipt.signer for receipt in receipts)
    chain.update(job.next_agent for job in jobs if job.next_agent is not None)
    return not chain.isdisjoint(who)


def _views(jobs: Sequence[Job], host: Host) -> tuple[JobView, ...]:
    """The jobs, each with the timings of the receipt at its place."""
    found = host.ports.ledger.receipts_at((job.order, job.position) for job in jobs)
    own = {(signed.receipt.order, signed.receipt.position): signed for signed in found}
    now = doing(jobs, host.ports.progress, host.ports.now())
    return tuple(
        view_job(
            job, [own[job.order, job.position]] if (job.order, job.position) in own else (), now.get(job.id)
        )
        for job in jobs
    )
