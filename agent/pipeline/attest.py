"""A task's end, told for good: the receipt is signed, and recorded in one transaction with what must be told to whom."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from agent.domain.approvals import Verdict
from agent.domain.audit import NewEvent
from agent.domain.chain import images_for
from agent.domain.ids import Digest, KeyId, wire_time
from agent.domain.jobs import Job, JobEvent
from agent.domain.orders import Learnuplet, ModelRef
from agent.domain.receipts import (
    ImageUse,
    Outcome,
    Output,
    Receipt,
    ReceiptTask,
    Sandbox,
    SignedReceipt,
    Usage,
    final_scores,
    next_link,
)
from agent.domain.reports import ReportState, ResultBody, envelope_object, mean_of
from agent.domain.strict_json import encode
from agent.domain.traces import told_trace
from agent.errors import AgentError, JobError
from agent.pipeline.host import Context, Host
from agent.pipeline.phases import Phases
from agent.pipeline.report import report
from agent.pipeline.run import Runs
from agent.ports.ledger import DeliveryKind, NewDelivery, Successor
from agent.trust.handoff import build_handoff
from agent.trust.signed import sign_receipt

MODEL = "model"


@dataclass(frozen=True, slots=True)
class Work:
    """One attempt as it went: when it began, what its phases took and how its containers ended."""

    started: datetime
    phases: Phases
    runs: Runs = field(default_factory=Runs)

    def timings(self, job: Job) -> dict[str, float]:
        """Seconds by phase in the order they ran, for the receipt and the ledger.

        `wait`: from when this host had the task until the attempt began. `run` in its parts: `start`, what it took until the
        containers ran, one for each run by its name, and `end`, until they were gone and what they left was taken over.
        """
        told = {"wait": round(max(0.0, (self.started - job.received_at).total_seconds()), 4)}
        for name, seconds in self.phases.seconds.items():
            told |= self._parts(seconds) if name == "run" and self.runs.outcomes else {name: seconds}
        return told

    def _parts(self, run_s: float) -> dict[str, float]:
        walls = {name: round(outcome.wall_s, 4) for name, outcome in self.runs.outcomes.items()}
        start_s = round(self.runs.start_s, 4)
        end_s = round(max(0.0, run_s - start_s - sum(walls.values())), 4)
        return ({"start": start_s} if start_s else {}) | walls | {"end": end_s}


@dataclass(frozen=True, slots=True)
class Done:
    """What a finished task left: its output, the score of a test task, and who goes on (None at the end)."""

    output: Output
    score: str | None
    next_agent: KeyId | None


def attest(context: Context, work: Work, done: Done, host: Host, *, told: Sequence[NewEvent] = ()) -> Job:
    """RUNNING -> ATTESTED, with the receipt and what it demands: the report, and the next task, hand-off or result.

    `told`: lines for the audit log.

    Raises: LostRace when the attempt was given up meanwhile; nothing of it is then recorded.
    """
    receipt = _sign(context, work, host, Outcome.DONE, output=done.output, score=done.score)
    receipts = (*context.receipts, receipt)
    demanded = [report(context, ReportState.DONE, host, receipt=receipt, next_agent=done.next_agent)]
    successor = None
    if context.next_task is None:
        demanded.append(result(context, receipts))
    elif host.is_me(done.next_agent):
        successor = Successor(context.next_task.position, context.next_task.kind)
    elif done.next_agent is not None:
        demanded.append(handoff(context, receipts, done.next_agent))
    return host.ports.ledger.move(
        context.job,
        JobEvent.ATTEST,
        host.ports.now(),
        receipt=receipt,
        score=done.score,
        next_agent=done.next_agent,
        deliveries=demanded,
        successor=successor,
        told=told,
        phases=work.timings(context.job),
    )


def attest_failure(context: Context, work: Work, error: AgentError, host: Host) -> Job:
    """The job -> FAILED, with a receipt that says so, which ends the chain. Raises: LostRace."""
    reason = reason_of(error)
    receipt = _sign(context, work, host, Outcome.FAILED, reason=reason)
    told = report(context, ReportState.FAILED, host, reason=reason, receipt=receipt)
    return host.ports.ledger.move(
        context.job,
        JobEvent.FAIL,
        host.ports.now(),
        reason=reason,
        receipt=receipt,
        deliveries=[told],
        phases=work.timings(context.job),
    )


def handoff(context: Context, receipts: Sequence[SignedReceipt], target: KeyId) -> NewDelivery:
    """The rest of the order, for the agent that goes on. It ends with the order."""
    body = build_handoff(context.signed, receipts)
    return NewDelivery(DeliveryKind.HANDOFF, target, body, expires_at=context.signed.order.expires)


def reason_of(error: AgentError) -> str:
    """The error as one word for reports and receipts: the container contract's for a job's fault, else its code."""
    return error.reason if isinstance(error, JobError) else error.code


def _sign(
    context: Context,
    work: Work,
    host: Host,
    outcome: Outcome,
    *,
    output: Output | None = None,
    score: str | None = None,
    reason: str | None = None,
) -> SignedReceipt:
    previous, model_in = next_link(context.signed, context.receipts)
    model_out = output.digest if output is not None and output.name == MODEL else model_in
    task = context.task
    receipt = Receipt(
        order=context.signed.digest,
        order_id=context.signed.order.id,
        position=task.position,
        task=ReceiptTask(task.kind, task.dataset.id, task.dataset.version),
        agent=host.me,
        previous=previous,
        model_in=model_in,
        model_out=None if outcome is Outcome.FAILED else model_out,
        outputs=() if output is None else (output,),
        images=tuple(
            _image_use(role, digest, host) for role, digest in images_for(context.signed.order, task)
        ),
        sandbox=_sandbox(work.runs),
        policy=host.policy.digest,
        attempt=context.job.attempt,
        started=wire_time(work.started),
        finished=wire_time(max(work.started, host.ports.now())),  # a clock may have been set back
        outcome=outcome,
        reason=reason,
        usage=_usage(context.job, work),
        score=score,
        trace=told_trace(context.trace),
    )
    return sign_receipt(receipt, host.key)


def _image_use(role: str, digest: Digest, host: Host) -> ImageUse:
    """The image, and when the operator approved it: `policy` is the digest of the file alone, which does not list it."""
    if digest in host.policy.images:
        return ImageUse(role, digest)
    rulings = host.ports.ledger.rulings(image=digest)
    approved = next((wire_time(r.at) for r in rulings if r.verdict is Verdict.APPROVED), None)
    return ImageUse(role, digest, approved)


def _sandbox(runs: Runs) -> Sandbox | None:
    """The cage of the task's runs; they share everything but the seccomp profile."""
    cages = {name: outcome.cage for name, outcome in runs.outcomes.items()}
    if not cages:
        return None
    first = next(iter(cages.values()))
    return Sandbox(
        runtime=first.runtime,
        version=first.version,
        seccomp={name: cage.seccomp for name, cage in cages.items()},
        ceilings=dict(first.ceilings),
        absent=first.absent,
    )


def _usage(job: Job, work: Work) -> Usage:
    outcomes = work.runs.outcomes.values()
    cpu = [outcome.cpu_s for outcome in outcomes if outcome.cpu_s is not None]
    memory = [outcome.max_memory_bytes for outcome in outcomes if outcome.max_memory_bytes is not None]
    return Usage(
        wall_s=work.phases.total_s,
        cpu_s=round(sum(cpu), 3) if cpu else None,
        max_memory_bytes=max(memory, default=None),
        phases=work.timings(job),
    )


def result(context: Context, receipts: Sequence[SignedReceipt]) -> NewDelivery:
    """The order's result: every receipt, the scores and their mean, the final model and where it lies."""
    scores = final_scores(receipts)
    body = ResultBody(
        order=context.signed.digest,
        receipts=tuple(envelope_object(receipt.envelope) for receipt in receipts),
        scores=scores,
        mean=mean_of(scores),
        model=_final_model(context, receipts),
        trace=told_trace(context.trace),
    )
    return NewDelivery(DeliveryKind.RESULT, context.signed.signer, encode(body))


def _final_model(context: Context, receipts: Sequence[SignedReceipt]) -> ModelRef | None:
    digest: Digest | None = receipts[-1].receipt.model_out
    if digest is None or not isinstance(context.signed.order, Learnuplet):
        return None
    start = context.signed.order.model_start
    if start is not None and start.digest == digest:
        return start
    maker = next(r.signer for r in receipts if r.receipt.model_out == digest)
    return ModelRef(digest, maker)
