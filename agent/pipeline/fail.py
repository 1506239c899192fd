"""An attempt that ends badly: put off, tried again within its budget, or failed with a receipt, by the error's class."""

from agent.domain.backups import CLAIMS_BETWEEN
from agent.domain.jobs import Job, JobEvent
from agent.domain.orders import is_expired
from agent.domain.reports import ReportState
from agent.domain.retries import backoff, dice, may_retry, rest_between_attempts
from agent.errors import AgentError, BadOutput, LostRace
from agent.log import get_logger
from agent.pipeline.attest import Work, attest_failure, reason_of
from agent.pipeline.bells import ring_job
from agent.pipeline.host import Context, Host
from agent.pipeline.report import report
from agent.pipeline.run import keep_log
from agent.ports.ledger import ATTEMPT_FAILED

log = get_logger(__name__)

REFUSED_OUTPUT = "refused output"  # beside the outputs of the runs: what was seen of it, for the operator


def end_badly(context: Context, work: Work, error: AgentError, host: Host, *, is_kept: bool = False) -> Job:
    """The job as the error leaves it. `is_kept`: its work lies in the workspace and only waits to be sent.

    While the order lives, an error that passes puts the attempt off. Otherwise the job goes back to the queue when its class
    allows another attempt and one is left, else it is FAILED. A job that is another's by now is left as it is.
    """
    job = context.job
    now = host.ports.ledger.job(job.id)
    if (now.state, now.attempt, now.claim) != (job.state, job.attempt, job.claim):
        # Cancelled, and its container killed; or another's, who says how the attempt ends; or it ended well before this.
        log.warning("task.given_up", job=job.id, attempt=job.attempt)
        return now
    log.warning("task.attempt_failed", job=job.id, attempt=job.attempt, code=error.code, detail=str(error))
    try:
        if (is_kept or error.is_passing) and not _is_over(context, host):
            return _put_off(context, error, host)
        _tell(context, error, host)
        earlier = host.ports.ledger.codes_before(job)
        if may_retry(error, earlier, job.attempt, job.max_attempts) and not is_kept:
            return _retry(context, work, error, host)
        return attest_failure(context, work, error, host)
    except LostRace:
        log.warning("task.given_up", job=job.id, attempt=job.attempt)
        return job


def _is_over(context: Context, host: Host) -> bool:
    return is_expired(context.signed.order, host.ports.now(), host.rules.skew)


def _put_off(context: Context, error: AgentError, host: Host) -> Job:
    """RUNNING, and nobody's until the rest is over. Raises: LostRace."""
    job, now = context.job, host.ports.now()
    times = (
        job.claim % CLAIMS_BETWEEN - job.attempt
    ) // 2 + 1  # it is taken in hand and put off: two claims each time
    rest = backoff(times, dice(job.id, job.claim))
    job = host.ports.ledger.park(job, now, until=now + rest, reason=reason_of(error))
    ring_job(job, host, delay_s=rest.total_seconds())
    log.info("task.put_off", job=job.id, attempt=job.attempt, reason=job.reason, rest_s=rest.total_seconds())
    return job


def _retry(context: Context, work: Work, error: AgentError, host: Host) -> Job:
    """RUNNING -> QUEUED, to rest. Raises: LostRace."""
    job, now = context.job, host.ports.now()
    reason, rest = reason_of(error), rest_between_attempts(job.attempt, dice(job.id, job.attempt))
    told = report(context, ReportState.ATTEMPT, host, reason=reason)
    job = host.ports.ledger.move(
        job,
        JobEvent.RETRY,
        now,
        reason=reason,
        not_before=now + rest,
        deliveries=[told],
        phases=work.timings(context.job),
    )
    ring_job(job, host, delay_s=rest.total_seconds())
    return job


def _tell(context: Context, error: AgentError, host: Host) -> None:
    """The log of events, and for the operator alone what was seen of an output that was refused."""
    job = context.job
    if isinstance(error, BadOutput) and error.seen:
        keep_log(job, REFUSED_OUTPUT, error.seen.encode(errors="backslashreplace"), host)
    values: dict[str, str | int | float | None] = {
        "attempt": job.attempt,
        "code": error.code,
        "detail": error.detail[:300],
        "advice": error.advice,
    }
    host.ports.ledger.record_event(
        ATTEMPT_FAILED, host.ports.now(), order_id=job.order_id, position=job.position, values=values
    )
