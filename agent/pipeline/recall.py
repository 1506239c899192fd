"""A job whose task was done in another life of this ledger is closed without running: its receipt comes back from outside.

The receipt is this agent's own, signed with its own key: an orchestrator that acknowledged it, or the peer that goes on after
it, brings it, and it is verified as any receipt is. What it demanded is done again where nobody can tell whether it was done:
its receiver takes a repeat for the same call.
"""

from collections.abc import Sequence

from agent.domain.chain import task_at
from agent.domain.ids import JobId, KeyId, job_id
from agent.domain.jobs import Job, JobEvent
from agent.domain.receipts import Outcome, ReceiptTask, SignedReceipt, check_link
from agent.domain.reports import ReportState, envelope_bytes
from agent.domain.standings import OrderState, Standing, WholeStanding
from agent.errors import NotFound, OrderError, TrustError
from agent.log import get_logger
from agent.pipeline.attest import handoff, result
from agent.pipeline.bells import ring_deliveries, ring_successor
from agent.pipeline.host import Context, Host, context_of
from agent.pipeline.place import holder_of
from agent.pipeline.report import report
from agent.ports.ledger import NewDelivery, Successor
from agent.trust.signed import open_receipt

log = get_logger(__name__)

SUPERSEDED = "superseded"  # the reason of a job that somebody else did, or whose own receipt nobody can show


def recall(job: Job, told: WholeStanding, host: Host) -> Job | None:
    """The job as what its orchestrator acknowledged leaves it; None when nothing of its place was. Raises: OutsideError."""
    at_place = told.standing.receipt_at(job.position)
    if at_place is None:
        return None
    envelope = told.receipts[told.standing.receipts.index(at_place)]
    context = context_of(job, host)
    if not host.is_me(at_place.agent):
        return supersede(context, f"agent {at_place.agent} did it", host)
    try:
        receipt = _verified(context, envelope_bytes(envelope), host)
    except (OrderError, TrustError) as error:
        return supersede(context, f"the receipt that came back does not hold: {error.detail}", host)
    return _close(context, receipt, told.standing, host)


def recall_from_peer(job: Job, peer: KeyId, envelopes: Sequence[bytes], told: Standing, host: Host) -> Job:
    """The job, done by the receipt with which its order reached this peer, which its orchestrator lacks.

    Raises: OutsideError.
    """
    context = context_of(job, host)
    try:
        if len(envelopes) <= job.position:
            raise NotFound("the peer shows no receipt of this place")
        receipt = _verified(context, envelopes[job.position], host)
    except (OrderError, TrustError) as error:
        return supersede(context, f"{peer} goes on after a receipt that does not hold: {error.detail}", host)
    host.ports.ledger.count_on(job, told.reports_at(job.position), host.ports.now())
    report_done = report(context, ReportState.DONE, host, receipt=receipt, next_agent=peer)
    return _record(context, receipt, peer, [report_done], None, host)


def supersede(context: Context, why: str, host: Host) -> Job:
    """The job -> FAILED without a word to its orchestrator, who knows better how the order stands. Raises: LostRace."""
    job = context.job
    log.warning("job.superseded", job=job.id, was=job.state, why=why)
    failed = host.ports.ledger.move(job, JobEvent.FAIL, host.ports.now(), reason=SUPERSEDED)
    host.ports.ledger.record_event(
        "job.superseded",
        host.ports.now(),
        order_id=job.order_id,
        position=job.position,
        values={"why": why[:300]},
    )
    return failed


def _verified(context: Context, envelope: bytes, host: Host) -> SignedReceipt:
    """This agent's own receipt of this place, linked to those before it.

    Raises: OrderError, TrustError.
    """
    receipt, job = open_receipt(envelope, host.roster), context.job
    task, of = task_at(context.signed.order, job.position), receipt.receipt
    is_of_place = (of.order, of.position, of.task) == (
        job.order,
        job.position,
        ReceiptTask(task.kind, task.dataset.id, task.dataset.version),
    )
    if not is_of_place or not (host.is_me(receipt.signer) and host.is_me(of.agent)):
        raise NotFound("it is another agent's, or of another place")
    if of.outcome is Outcome.DONE:
        check_link(context.signed, context.receipts, receipt)
    return receipt


def _close(context: Context, receipt: SignedReceipt, told: Standing, host: Host) -> Job:
    """The job by its acknowledged receipt: FAILED as it says, or ATTESTED with what is left to be done for its order."""
    if receipt.receipt.outcome is Outcome.FAILED:
        reason = receipt.receipt.reason
        return host.ports.ledger.move(
            context.job, JobEvent.FAIL, host.ports.now(), reason=reason, receipt=receipt
        )
    next_agent, told_to = _next(context, receipt, told, host)
    successor = None
    if context.next_task is not None and host.is_me(next_agent) and not _is_here(context, host):
        successor = Successor(context.next_task.position, context.next_task.kind)
    return _record(context, receipt, next_agent, told_to, successor, host)


def _next(
    context: Context, receipt: SignedReceipt, told: Standing, host: Host
) -> tuple[KeyId | None, list[NewDelivery]]:
    """Who goes on after this receipt, and what must reach them or the orchestrator."""
    receipts, following = (*context.receipts, receipt), context.next_task
    is_open = told.state is OrderState.OPEN
    if following is None:
        return None, [result(context, receipts)] if is_open else []
    after = told.receipt_at(following.position)
    if after is not None:
        return after.agent, []
    if not is_open:
        return told.holder, []
    target = told.holder if told.position == following.position else None
    if target is None:
        target = holder_of(following, host)
    return target, [] if host.is_me(target) else [handoff(context, receipts, target)]


def _record(
    context: Context,
    receipt: SignedReceipt,
    next_agent: KeyId | None,
    deliveries: Sequence[NewDelivery],
    successor: Successor | None,
    host: Host,
) -> Job:
    job = host.ports.ledger.move(
        context.job,
        JobEvent.RECALL,
        host.ports.now(),
        receipt=receipt,
        score=receipt.receipt.score,
        next_agent=next_agent,
        deliveries=deliveries,
        successor=successor,
    )
    log.info("job.recalled", job=job.id, was=context.job.state, receipt=receipt.digest, state=job.state)
    ring_deliveries(job, host)
    if successor is not None:
        ring_successor(context, job, host)
    return job


def _is_here(context: Context, host: Host) -> bool:
    """Whether the job of the next place is recorded already."""
    place: JobId = job_id(context.job.order_id, context.job.position + 1)
    try:
        host.ports.ledger.job(place)
    except NotFound:
        return False
    return True
