"""One task, whole. This is the page to read first: everything else in this room is one of its lines."""

from dataclasses import replace
from datetime import timedelta

from agent.domain.jobs import Job, JobEvent
from agent.domain.orders import is_expired
from agent.domain.reports import ReportState
from agent.domain.retries import dice, may_retry, rest_between_attempts
from agent.errors import AgentError, BadOutput, LostRace
from agent.log import get_logger
from agent.pipeline.attest import Done, Work, attest, attest_failure, reason_of
from agent.pipeline.bells import ring_deliveries, ring_job, ring_successor
from agent.pipeline.fetch import dataset_for, fetch, model_for
from agent.pipeline.host import Context, Host, context_of
from agent.pipeline.phases import Phases
from agent.pipeline.place import expire, holder_of
from agent.pipeline.publish import publish
from agent.pipeline.report import report
from agent.pipeline.run import Runs, keep_log, run_task
from agent.pipeline.workspace import bytes_needed, workspace
from agent.ports.ledger import ATTEMPT_FAILED
from agent.trust.signed import open_order

log = get_logger(__name__)

REFUSED_OUTPUT = "refused output"  # beside the outputs of the runs: what was seen of it, for the operator


def execute(job: Job, host: Host, worker: str) -> None:
    """Claim a queued job and see its attempt to an end: attested, failed, back in the queue, or lost to another worker."""
    context = _start(context_of(job, host), host, worker)
    if context is None:
        return
    work = Work(host.ports.now(), Phases(), Runs())
    try:
        done = _attempt(context, work, host)
        job = attest(context, work, done, host)
        log.info(
            "task.attested", job=job.id, attempt=job.attempt, wall_s=work.phases.total_s, score=done.score
        )
    except LostRace:
        log.warning("task.given_up", job=job.id, attempt=context.job.attempt)
        return
    except AgentError as error:
        job = _end_badly(context, work, error, host)
    ring_deliveries(job, host)
    ring_successor(context, job, host)


def _attempt(context: Context, work: Work, host: Host) -> Done:
    """The attempt itself. Raises: whatever went wrong, as the ports and the guest tell it."""
    phase = work.phases
    with phase("ask"):
        open_order(context.signed.envelope, host.roster, None)  # a key revoked since intake runs nothing
        host.policy.admit(context.signed, [context.task], host.ports.ledger.verdict_on)
        info, header = dataset_for(context, host)
        next_agent = None if context.next_task is None else holder_of(context.next_task, host)
        model = model_for(context, host)
    reserve = bytes_needed(
        context.task.kind,
        dataset_bytes=header.header.size,
        model_bytes=0 if model is None else model.size,
        ceilings=host.policy.ceilings_for(context.signed.order.limits),
    )
    with workspace(
        context.job, host.rules.workspace_root, host.ports.runtime, reserve_bytes=reserve
    ) as space:
        with phase("fetch"):
            inputs = fetch(context, info, header, model, space, host)
        with phase("run"):
            results = run_task(context, inputs, space, work.runs, host)
        with phase("publish"):
            output = publish(context, results, space, host)
    score = None if results.performance is None else repr(results.performance.perf)
    return Done(output, score, next_agent)


def _start(context: Context, host: Host, worker: str) -> Context | None:
    """The context with its job RUNNING for this worker, or None when there is nothing to run."""
    now = host.ports.now()
    job = context.job
    try:
        if is_expired(context.signed.order, now, host.rules.skew):
            expire(context, host)
            return None
        told = report(context, ReportState.STARTED, host, attempt=job.attempt + 1)
        job = host.ports.ledger.start(
            job, now, worker=worker, lease_until=now + host.rules.lease, deliveries=[told]
        )
    except LostRace:
        return None  # a doubled bell, or another worker was quicker
    ring_deliveries(job, host)
    log.info("task.started", job=job.id, kind=job.kind, attempt=job.attempt, of=job.max_attempts)
    return replace(context, job=job)


def _end_badly(context: Context, work: Work, error: AgentError, host: Host) -> Job:
    """The job back in the queue when the cause may pass and attempts are left, else FAILED with a receipt."""
    job = context.job
    log.warning("task.attempt_failed", job=job.id, attempt=job.attempt, code=error.code, detail=str(error))
    if isinstance(error, BadOutput) and error.seen:
        keep_log(job, REFUSED_OUTPUT, error.seen.encode(errors="backslashreplace"), host)
    host.ports.ledger.record_event(
        ATTEMPT_FAILED,
        host.ports.now(),
        order_id=job.order_id,
        position=job.position,
        values={
            "attempt": job.attempt,
            "code": error.code,
            "detail": error.detail[:300],
            "advice": error.advice,
        },
    )
    try:
        earlier = host.ports.ledger.codes_before(job)
        if may_retry(error, earlier, job.attempt, job.max_attempts):
            rest = rest_between_attempts(job.attempt, dice(job.id, job.attempt))
            return retry(context, reason_of(error), rest, host)
        return attest_failure(context, work, error, host)
    except LostRace:
        log.warning("task.given_up", job=job.id, attempt=job.attempt)
        return job


def retry(context: Context, reason: str, rest: timedelta, host: Host) -> Job:
    """RUNNING -> QUEUED, to rest that long. Raises: LostRace."""
    job, now = context.job, host.ports.now()
    told = report(context, ReportState.ATTEMPT, host, reason=reason)
    job = host.ports.ledger.move(
        job, JobEvent.RETRY, now, reason=reason, not_before=now + rest, deliveries=[told]
    )
    ring_job(job, host, delay_s=rest.total_seconds())
    return job
