"""A bell rang for a job: do whatever its state in the ledger asks for now. A bell for nothing is harmless."""

from collections.abc import Callable

from agent.domain.chain import TaskKind
from agent.domain.control import Mode
from agent.domain.ids import JobId
from agent.domain.jobs import Job, JobState
from agent.errors import LostRace, NoSpace, OutsideError, TrustError
from agent.log import get_logger
from agent.pipeline.bells import ring_job
from agent.pipeline.cancel import end_if_cancelled
from agent.pipeline.execute import execute, resume
from agent.pipeline.hold import hold, look_again
from agent.pipeline.host import Host, about, context_of
from agent.pipeline.journal import RUN
from agent.pipeline.place import place
from agent.pipeline.resume import tidy

log = get_logger(__name__)

FIRST_REST_S = 2.0
LONGEST_REST_S = 60.0


def advance(job_id: JobId, host: Host, worker: str, *, may_run: bool = True, may_start: bool = True) -> None:
    """Place a received job, look at a held one again, run a queued one, take over a running one that nobody has in hand.

    `may_start`: new tasks; `may_run`: containers at all. What may not go on now stays as it is: the sweep rings for it again.
    Raises: LedgerUnavailable, NotFound.
    """
    if host.ports.ledger.control().mode is Mode.RESTORED:
        return  # it may have been done already
    job = host.ports.ledger.job(job_id)
    if job.is_final or job.state is JobState.ATTESTED:
        return
    with about(job, host):
        _go_on(job, host, worker, may_run=may_run, may_start=may_start)


def _go_on(job: Job, host: Host, worker: str, *, may_run: bool, may_start: bool) -> None:
    if job.state is JobState.RECEIVED and job.next_agent is None:
        _place(job, host)
    elif job.state is JobState.HELD:
        _look_again(job, host)
    elif job.state is JobState.QUEUED and may_run and may_start and not _rests(job, host):
        if job.reason == NoSpace.code:
            tidy(host)  # its last attempt found the disk full: this is the one retry, and it shall find room
        _run(execute, job, host, worker)
    elif job.state is JobState.RUNNING and not _is_leased(job, host) and (may_run or _only_ends(job, host)):
        _run(resume, job, host, worker)


def _place(job: Job, host: Host) -> None:
    try:
        context = context_of(job, host)
        placed = end_if_cancelled(job, host) or hold(context, host) or place(context, host)
        log.info("order.placed", job=placed.id, state=placed.state, next_agent=placed.next_agent)
    except LostRace:
        return
    except OutsideError as error:
        rest_s = _ring_again(job, host)
        log.warning("order.not_placed", job=job.id, code=error.code, detail=error.detail, again_in_s=rest_s)


def _look_again(job: Job, host: Host) -> None:
    try:
        if look_again(context_of(job, host), host) is None:
            _ring_again(job, host)
    except LostRace:
        return
    except (OutsideError, TrustError) as error:  # an archive cannot be had, or not the one that was named
        rest_s = _ring_again(job, host)
        log.warning("image.not_read", job=job.id, code=error.code, detail=error.detail, again_in_s=rest_s)


def _ring_again(job: Job, host: Host) -> float:
    """Ring after a rest, and say how long it is."""
    rest_s = _rest_s(job, host)
    if rest_s < LONGEST_REST_S:  # else the sweep rings: a bell of our own beside its would never end
        ring_job(job, host, delay_s=rest_s)
    return rest_s


def _rests(job: Job, host: Host) -> bool:
    return job.not_before is not None and host.ports.now() < job.not_before


def _run(see_through: Callable[[Job, Host, str], None], job: Job, host: Host, worker: str) -> None:
    """Have the job in hand while it is seen through. Who stalls with a job in hand wakes up to what it left."""
    with host.ports.hands.hold(job.id) as is_mine:
        if is_mine:
            see_through(job, host, worker)
        elif job.state is JobState.RUNNING:
            log.warning("task.in_a_stalled_hand", job=job.id, worker=job.worker)


def _is_leased(job: Job, host: Host) -> bool:
    return job.lease_until is not None and host.ports.now() < job.lease_until


def _only_ends(job: Job, host: Host) -> bool:
    """Whether all that is left of its containers is to wait for one that was begun, and to take it away: that needs no proof of
    the cage, and the proof may need the place that it takes.
    """
    has_begun = any(step.name.startswith(RUN) for step in host.ports.ledger.steps(job))
    return has_begun and job.kind in {TaskKind.LEARN, TaskKind.PREDICT}


def _rest_s(job: Job, host: Host) -> float:
    """As long again as the order has waited already: an exponential backoff that needs no counter."""
    waited = (host.ports.now() - job.received_at).total_seconds()
    return min(LONGEST_REST_S, max(FIRST_REST_S, waited))
