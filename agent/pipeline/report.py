"""What the orchestrator is told of a job, as a delivery of the outbox."""

from agent.domain.ids import KeyId, wire_time
from agent.domain.receipts import SignedReceipt
from agent.domain.reports import ReportBody, ReportState, SignedRefusal, envelope_object
from agent.domain.strict_json import encode
from agent.domain.traces import told_trace
from agent.pipeline.host import Context, Host
from agent.ports.ledger import DeliveryKind, NewDelivery


def report(
    context: Context,
    state: ReportState,
    host: Host,
    *,
    attempt: int | None = None,
    reason: str | None = None,
    receipt: SignedReceipt | None = None,
    next_agent: KeyId | None = None,
    refusal: SignedRefusal | None = None,
) -> NewDelivery:
    """A report to the orchestrator that signed the order. It never expires."""
    job = context.job
    body = ReportBody(
        order=job.order,
        position=job.position,
        state=state,
        attempt=job.attempt if attempt is None else attempt,
        max_attempts=job.max_attempts,
        reason=reason,
        score=None if receipt is None else receipt.receipt.score,
        receipt=None if receipt is None else envelope_object(receipt.envelope),
        next_agent=next_agent,
        refusal=refusal,
        at=wire_time(host.ports.now()),
        trace=told_trace(context.trace),
    )
    return NewDelivery(DeliveryKind.REPORT, context.signed.signer, encode(body))
