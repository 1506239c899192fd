"""A bell rang for a job: do whatever its state in the ledger asks for now. A bell for nothing is harmless."""

from agent.domain.ids import JobId
from agent.domain.jobs import Job, JobState
from agent.errors import LostRace, OutsideError
from agent.log import get_logger
from agent.pipeline.bells import ring_job
from agent.pipeline.execute import execute
from agent.pipeline.host import Host, context_of
from agent.pipeline.place import place

log = get_logger(__name__)

FIRST_REST_S = 2.0
LONGEST_REST_S = 60.0


def advance(job_id: JobId, host: Host, worker: str, *, may_run: bool = True) -> None:
    """Place a received job, run a queued one; nothing for any other. Raises: LedgerUnavailable, NotFound.

    A queued job that may not run now stays queued: the sweep rings for it again.
    """
    job = host.ports.ledger.job(job_id)
    if job.state is JobState.RECEIVED and job.next_agent is None:
        _place(job, host)
    elif job.state is JobState.QUEUED and may_run and not _rests(job, host):
        execute(job, host, worker)


def _place(job: Job, host: Host) -> None:
    try:
        placed = place(context_of(job, host), host)
        log.info("order.placed", job=placed.id, state=placed.state, next_agent=placed.next_agent)
    except LostRace:
        return
    except OutsideError as error:
        rest_s = _rest_s(job, host)
        log.warning("order.not_placed", job=job.id, code=error.code, detail=error.detail, again_in_s=rest_s)
        if rest_s < LONGEST_REST_S:  # else the sweep rings: a bell of our own beside its would never end
            ring_job(job, host, delay_s=rest_s)


def _rests(job: Job, host: Host) -> bool:
    return job.not_before is not None and host.ports.now() < job.not_before


def _rest_s(job: Job, host: Host) -> float:
    """As long again as the order has waited already: an exponential backoff that needs no counter."""
    waited = (host.ports.now() - job.received_at).total_seconds()
    return min(LONGEST_REST_S, max(FIRST_REST_S, waited))
