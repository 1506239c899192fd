"""The containers of one task of an order, in order: each begun or found, awaited, written down. What each run sees: `rows.py`.

The lines below are gone through again by a worker that takes over the attempt of another one: a run that ended stands in the
journal, one that was begun is adopted, and what is moved or dropped may have been before.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from agent.domain.jobs import Job
from agent.errors import BadImage, BadOutput, JobFailed, LedgerUnavailable, RuntimeUnavailable
from agent.log import get_logger
from agent.pipeline import audit
from agent.pipeline.admit import require_admitted
from agent.pipeline.fetch import Inputs
from agent.pipeline.host import Context, Host
from agent.pipeline.journal import RUN, Journal
from agent.pipeline.phases import Phases
from agent.pipeline.rows import Results, Row, Stage, first_row, run_rows, spec_of
from agent.pipeline.workspace import PutOff, Workspace
from agent.ports.progress import Meter
from agent.ports.runtime import Run, RunOutcome, RunSpec, Runtime
from agent.trust.job_log import seal_log

_LOG = get_logger(__name__)

JOB_LABEL = "dc-compute.job"
ATTEMPT_LABEL = "dc-compute.attempt"
UNKNOWN = "unknown"


@dataclass(slots=True)
class Runs:
    """How the runs of a task went, by run name, in order. `start_s`: until the containers ran, in all, of this worker."""

    outcomes: dict[str, RunOutcome] = field(default_factory=dict)
    start_s: float = 0.0


def run_task(
    context: Context,
    inputs: Inputs,
    space: Workspace,
    runs: Runs,
    journal: Journal,
    meter: Meter,
    host: Host,
) -> Results:
    """Run the task's containers; `runs` is filled as they end, also when one fails.

    Raises: JobFailed, BadOutput, BadImage, CageNotApplied, RuntimeUnavailable, ContainerLost, LostRace.
    """
    work = _Work(context, inputs, runs, journal, meter, host)
    stage = _stage(context, inputs, space, host, lambda row: _run(work, row))
    return run_rows(context.task.kind, stage)


def first_run(context: Context, inputs: Inputs, space: Workspace, host: Host) -> RunSpec:
    """The first run of the task, as `run_task` runs it. `inputs`: where they will lie; they need not be there yet."""
    stage = _stage(context, inputs, space, host, _nothing)
    return _spec(first_row(context.task.kind, stage), context, inputs, host, spent_s=0.0)


def _nothing(_row: Row) -> None:
    pass


def _stage(
    context: Context, inputs: Inputs, space: Workspace, host: Host, run: Callable[[Row], None]
) -> Stage:
    return Stage(
        dataset=context.task.dataset.id,
        data=inputs.data,
        model=inputs.model,
        space=space,
        ceilings=host.policy.ceilings_for(context.signed.order.limits),
        run=run,
    )


def _spec(row: Row, context: Context, inputs: Inputs, host: Host, *, spent_s: float) -> RunSpec:
    job = context.job
    return spec_of(
        row,
        name=f"dc-{job.id}-{job.attempt}-{row.name}",
        labels={JOB_LABEL: job.id, ATTEMPT_LABEL: str(job.attempt)},
        image=inputs.images[row.role],
        ceilings=host.policy.ceilings_for(context.signed.order.limits),
        spent_s=spent_s,
        accept_missing=frozenset(host.policy.accept_missing),
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """Everything the runs of one task share."""

    context: Context
    inputs: Inputs
    runs: Runs
    journal: Journal
    meter: Meter
    host: Host


def _run(work: _Work, row: Row) -> None:
    """One container, begun or found, to its end; what it wrote then belongs to the agent. Raises: JobFailed with its cause."""
    name, runtime = row.name, work.host.ports.runtime
    spent_s = sum(outcome.wall_s for outcome in work.runs.outcomes.values())
    spec = _spec(row, work.context, work.inputs, work.host, spent_s=spent_s)
    outcome = work.journal.outcome(RUN + name, RunOutcome)
    if outcome is None:
        began = work.journal.begun_at(RUN + name)
        work.meter.begin("run", name, limit_s=spec.ceilings.wall_s, since=began)
        outcome = _outcome(work, name, row.role, spec)
    else:
        with suppress(RuntimeUnavailable):  # its worker may have died before this; else the sweep does it
            runtime.remove(spec.name)
    work.runs.outcomes[name] = outcome
    if outcome.cause == UNKNOWN:  # the host's accident, not the guest's: a guest that ends gives a code
        raise RuntimeUnavailable(f"nobody can tell how run {name!r} ended")
    if outcome.cause is not None:
        raise JobFailed(f"run {name!r} of the {row.role} image ended with {outcome.cause}", outcome.cause)
    for mount in row.mounts:
        if mount.is_writable and mount.source.exists():
            _reclaim(mount.source, name, runtime)


def _outcome(work: _Work, name: str, role: str, spec: RunSpec) -> RunOutcome:
    """How the run ended, recorded before its container goes; its log is kept apart, sealed.

    Raises: LostRace when the attempt is another worker's by now, LedgerUnavailable: the container is left to whoever goes on.
    """
    job, runtime = work.context.job, work.host.ports.runtime
    outcome, is_recorded, until_it_runs = None, False, Phases()
    try:
        with _open(work, name, role, spec) as run:
            work.runs.start_s += until_it_runs.total_s
            _LOG.debug("run.began", run=name)
            is_for_the_next = False
            try:
                outcome = run.wait()
                _LOG.debug("run.ended", run=name, wall_s=outcome.wall_s)
                log = seal_log(outcome.log, work.host.key, job=job.id, attempt=job.attempt, run=name)
                outcome = replace(outcome, log=b"")
                told = audit.run_ended(job, name, spec.image, outcome)
                work.journal.end(RUN + name, outcome, log=(name, log), told=[told])
                is_recorded = True
            except LedgerUnavailable:  # what it did is not lost because that could not be written down
                is_for_the_next = True
                raise
            finally:
                if is_for_the_next or (not is_recorded and work.journal.is_anothers()):
                    run.leave()
    except RuntimeUnavailable as error:
        if not is_recorded:
            raise
        _LOG.warning("leftover.stays", container=spec.name, detail=str(error))  # the sweep takes it
    except BadImage as cause:
        if (
            runtime.image(spec.image) is None
        ):  # it was there when the task looked: somebody took it away since
            raise RuntimeUnavailable(f"the {role} image left the engine before run {name!r}") from cause
        raise
    assert outcome is not None  # noqa: S101 - else something was raised
    return outcome


def _open(work: _Work, name: str, role: str, spec: RunSpec) -> AbstractContextManager[Run]:
    """The run's container: that of the worker before this one, or a new one.

    Raises: TrustError when the operator denied an image of the order, or admits it no more, meanwhile.
    """
    context, host = work.context, work.host
    if work.journal.has_begun(RUN + name):
        return _adopted(spec, host)
    # Once more: inputs may have been fetched for hours, and what the operator withdrew meanwhile does not start.
    require_admitted(context, host)
    work.journal.begin(RUN + name, [audit.run_started(context.job, name, role, spec.image)])
    if work.journal.is_resumed:
        # Made ahead by a worker that died before it began to run. Not before the line above, which says that the attempt is
        # ours still: else it may be the one that runs for who took it over.
        host.ports.runtime.remove(spec.name)
    return host.ports.runtime.run(spec)


@contextmanager
def _adopted(spec: RunSpec, host: Host) -> Iterator[Run]:
    """The container of the worker before this one. An engine that is away, as at a restart, is waited for: it may run on.

    Raises: ContainerLost; PutOff.
    """
    with ExitStack() as stack:
        try:
            run = stack.enter_context(host.ports.runtime.adopt(spec))
        except RuntimeUnavailable as error:
            raise PutOff(error) from error
        yield run


def _reclaim(folder: Path, run: str, runtime: Runtime) -> None:
    try:
        runtime.reclaim(folder)
    except RuntimeUnavailable as error:
        raise PutOff(error) from error  # the run ended, and stands in the journal: it is not done again
    except BadOutput as cause:
        raise BadOutput(
            f"run {run!r} left a set-id file, or folders that lie too deep", str(cause)
        ) from cause


def keep_log(job: Job, run: str, output: bytes, host: Host) -> None:
    """Keep what a guest said, for this host's operator: sealed, for it may carry data and the ledger lies on a disk."""
    sealed = seal_log(output, host.key, job=job.id, attempt=job.attempt, run=run)
    host.ports.ledger.keep_log(job, run, sealed)
