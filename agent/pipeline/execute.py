"""One task, whole. This is the page to read first: everything else in this room is one of its lines.

An attempt belongs to a claim, not to a worker: when a worker dies, the next one takes the attempt over and goes through the
same lines. What the journal has is not done again, a container that was begun is found and waited for.
"""

from contextlib import suppress
from dataclasses import dataclass, replace

from msgspec import Struct

from agent.domain.ids import Digest, KeyId
from agent.domain.jobs import Job, JobState
from agent.domain.orders import is_expired
from agent.domain.reports import ReportState
from agent.errors import AgentError, LedgerUnavailable, LostRace, OrderExpired, RuntimeUnavailable, WorkerLost
from agent.log import bound, get_logger
from agent.pipeline import audit
from agent.pipeline.admit import require_admitted
from agent.pipeline.attest import Done, Work, attest
from agent.pipeline.bells import ring_deliveries, ring_successor
from agent.pipeline.fail import end_badly
from agent.pipeline.fetch import Inputs, dataset_for, fetch, kept_inputs, model_for
from agent.pipeline.frame import framing, remove_frames
from agent.pipeline.host import Context, Host, context_of
from agent.pipeline.journal import INPUTS, LATE, OUTPUT, RUN, Journal
from agent.pipeline.phases import Phases
from agent.pipeline.place import expire, holder_of
from agent.pipeline.publish import Packed, pack_output, publish
from agent.pipeline.report import report
from agent.pipeline.run import run_task
from agent.pipeline.workspace import (
    PutOff,
    Workspace,
    bytes_needed,
    end_is_recorded_first,
    folder_name,
    kept_workspace,
    remove_folder,
    workspace,
)
from agent.ports.progress import Meter
from agent.trust.signed import open_order

log = get_logger(__name__)


class Taken(Struct, frozen=True, kw_only=True):
    """What is known of an attempt once its inputs lie in the workspace: its images by role, who goes on, seconds by phase."""

    images: dict[str, Digest]
    next_agent: KeyId | None
    phases: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An attempt in hand."""

    context: Context
    work: Work
    journal: Journal
    meter: Meter
    host: Host


def execute(job: Job, host: Host, worker: str) -> None:
    """Claim a queued job and see its attempt to an end: attested, failed, back in the queue, put off, or lost to another."""
    context = claim(context_of(job, host), host, worker)
    if context is not None:
        work = Work(host.ports.now(), Phases())
        with bound(attempt=context.job.attempt), host.ports.progress.telling(context.job) as meter:
            _see_through(_Attempt(context, work, Journal(context.job, host), meter, host))


def resume(job: Job, host: Host, worker: str) -> None:
    """Take over the attempt of a worker that is gone, or one that was put off, and see it to an end."""
    now = host.ports.now()
    if not _may_go_on(job, host):
        return
    try:
        job = host.ports.ledger.adopt(job, now, worker=worker, lease_until=now + host.rules.lease)
    except LostRace:
        return  # a doubled bell, its worker lives, or another one was quicker
    journal = Journal(job, host, host.ports.ledger.steps(job))
    known = _known(journal)
    work = Work(job.changed_at, Phases(None if known is None else known.phases))
    log.info("task.taken_over", job=job.id, attempt=job.attempt, claim=job.claim)
    with bound(attempt=job.attempt), host.ports.progress.telling(job) as meter:
        _see_through(_Attempt(context_of(job, host), work, journal, meter, host))


def _may_go_on(job: Job, host: Host) -> bool:
    """Whether it may: on a host that starts nothing, only what runs ends, and what ran is sent."""
    return host.ports.ledger.control().may_start or any(
        step.name.startswith(RUN) for step in host.ports.ledger.steps(job)
    )


def _known(journal: Journal) -> Packed | Taken | None:
    """What the worker before this one recorded last; None too when nobody can read it, which ends the attempt later."""
    with suppress(WorkerLost):
        return journal.outcome(OUTPUT, Packed) or journal.outcome(INPUTS, Taken)
    return None


def claim(context: Context, host: Host, worker: str) -> Context | None:
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


def _see_through(attempt: _Attempt) -> None:
    context, host = attempt.context, attempt.host
    try:
        ring_successor(context, _go(attempt), host)
        return
    except LostRace:
        log.warning("task.given_up", job=context.job.id, attempt=context.job.attempt)
        return
    except PutOff as left:
        job = end_badly(context, attempt.work, left.cause, host, is_kept=left.goes_on)
        _remove_when_over(job, attempt)
    except LedgerUnavailable:
        raise  # the attempt stands where the ledger has it: it is taken over when its lease is out
    except AgentError as error:
        job = end_badly(context, attempt.work, error, host)
    ring_deliveries(job, host)


def _go(attempt: _Attempt) -> Job:
    """The attempt from where it stands; its job, attested, and what is to be told rung for. A next task here is not: the room
    of this one is free by then.

    Raises: whatever went wrong, as the ports and the guest tell it.
    """
    taken = attempt.journal.outcome(INPUTS, Taken)
    if taken is None:
        return _from_the_start(attempt)
    job, host = attempt.context.job, attempt.host
    root, runtime = host.rules.workspace_root, host.ports.runtime
    is_anothers = attempt.journal.is_anothers
    with kept_workspace(job, root, runtime, is_anothers=is_anothers) as space, end_is_recorded_first():
        _require_still_wanted(attempt)
        return _to_the_end(attempt, taken, kept_inputs(taken.images, space), space)


def _require_still_wanted(attempt: _Attempt) -> None:
    """What changed while nobody had it in hand. What had begun to run in time goes on, after the order's end not for ever.

    Raises: OrderExpired, TrustError when nothing ran yet; WorkerLost when too many workers died of it after the end.
    """
    context, journal, host = attempt.context, attempt.journal, attempt.host
    is_over = is_expired(context.signed.order, host.ports.now(), host.rules.skew)
    if not journal.has_runs():
        open_order(context.signed.envelope, host.roster, None)
        if is_over:
            raise OrderExpired("the order expired before its task began to run")
    elif is_over:
        journal.begin(LATE)


def _from_the_start(attempt: _Attempt) -> Job:
    context, journal, host, phase = attempt.context, attempt.journal, attempt.host, attempt.work.phases
    attempt.meter.begin("ask")
    if journal.is_resumed:
        _clear(attempt)
    with phase("ask"):
        require_admitted(context, host)  # a key revoked since intake runs nothing
        (info, header), next_agent, model = host.ports.together(
            lambda: dataset_for(context, host),
            lambda: None if context.next_task is None else holder_of(context.next_task, host),
            lambda: model_for(context, host),
        )
    reserve = bytes_needed(
        context.task.kind,
        dataset_bytes=header.header.size,
        model_bytes=0 if model is None else model.size,
        ceilings=host.policy.ceilings_for(context.signed.order.limits),
    )
    with (
        workspace(
            context.job,
            host.rules.workspace_root,
            host.ports.runtime,
            reserve_bytes=reserve,
            is_anothers=journal.is_anothers,
        ) as space,
        end_is_recorded_first(),
        framing(context, space, host, awaited_bytes=info.size) as frame,
    ):
        inputs = fetch(context, info, header, model, space, phase, attempt.meter, host, frame)
        taken = Taken(images=inputs.images, next_agent=next_agent, phases=phase.seconds)
        journal.end(INPUTS, taken, told=inputs.told)
        return _to_the_end(attempt, taken, inputs, space)


def _clear(attempt: _Attempt) -> None:
    """Begin anew, within the attempt: nothing ran yet. Raises: OrderExpired when it is too late for that; WorkerLost."""
    context, journal, host = attempt.context, attempt.journal, attempt.host
    try:
        journal.begin(INPUTS)
    finally:
        if not journal.is_anothers():
            remove_frames(context.job, host)
            _remove_folders(context.job, host)
    if is_expired(context.signed.order, host.ports.now(), host.rules.skew):
        raise OrderExpired("the order expired before its task had its inputs")


def _remove_when_over(job: Job, attempt: _Attempt) -> None:
    """`job`: as it stands by now. The folders of an attempt that goes on are its own; the sweep takes what cannot go now."""
    if job.state is not JobState.RUNNING:
        with suppress(RuntimeUnavailable, OSError):
            _remove_folders(attempt.context.job, attempt.host)


def _remove_folders(job: Job, host: Host) -> None:
    for root in (host.rules.workspace_root, host.rules.spool):
        remove_folder(root / folder_name(job.id, job.attempt), host.ports.runtime)


def _to_the_end(attempt: _Attempt, taken: Taken, inputs: Inputs, space: Workspace) -> Job:
    """With its inputs in the workspace: run, packed, sent, attested. What is on the way stays when storage is away."""
    context, work, journal, host = attempt.context, attempt.work, attempt.journal, attempt.host
    packed = journal.outcome(OUTPUT, Packed)
    if packed is None:
        if journal.is_resumed and not journal.has_open_run():
            journal.begin(OUTPUT)
        with work.phases("run"):
            results = run_task(context, inputs, space, work.runs, journal, attempt.meter, host)
        work.phases.at_least("run", sum(outcome.wall_s for outcome in work.runs.outcomes.values()))
        attempt.meter.begin("pack")
        with work.phases("pack"):
            packed = pack_output(context, results, space, work.phases)
        journal.end(
            OUTPUT, packed, told=[audit.upload("started", context.job, packed.output, packed.kind, host)]
        )
    else:
        work.runs.outcomes.update(journal.ended_runs())
    try:
        with work.phases("publish"):
            attempt.meter.begin("upload", packed.output.name, total=packed.output.size)
            publish(packed, space, attempt.meter, host)
    except AgentError as error:
        if error.is_retried:
            raise PutOff(error) from error  # never trained again because it could not be sent
        raise
    attempt.meter.begin("attest")
    done = Done(packed.output, packed.score, taken.next_agent)
    told = audit.upload("ended", context.job, packed.output, packed.kind, host)
    job = attest(context, work, done, host, told=[told])
    log.info("task.attested", job=job.id, attempt=job.attempt, wall_s=work.phases.total_s, score=done.score)
    with suppress(LedgerUnavailable):  # lost bells: the end is recorded, and keeps no plaintext here
        ring_deliveries(job, host)  # others go on while the workspace is cleared
    return job
