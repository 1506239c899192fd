"""The containers of one task, in order. Which folder a guest sees where is the container contract's table, row by row.

What one run left is inspected and taken over before another run mounts it, and no mount's source or target lies in a folder
that a guest wrote.

The lines below are gone through again by a worker that takes over the attempt of another one: a run that ended stands in the
journal, one that was begun is adopted, and what is moved or dropped may have been before.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from msgspec.structs import replace

from agent.domain.ceilings import Ceilings
from agent.domain.chain import TaskKind
from agent.domain.jobs import Job
from agent.errors import BadImage, BadOutput, JobFailed, LedgerUnavailable, RuntimeUnavailable
from agent.log import get_logger
from agent.pipeline import audit
from agent.pipeline.fetch import Inputs
from agent.pipeline.host import Context, Host
from agent.pipeline.journal import RUN, Journal
from agent.pipeline.outputs import Performance, read_performance, take, take_file
from agent.pipeline.workspace import PutOff, Workspace, add_pred, output_bytes_needed
from agent.ports.progress import Meter
from agent.ports.runtime import Mount, Run, RunKind, RunOutcome, RunSpec, Runtime
from agent.trust.job_log import seal_log

_LOG = get_logger(__name__)

JOB_LABEL = "dc-compute.job"
ATTEMPT_LABEL = "dc-compute.attempt"
UNKNOWN = "unknown"


@dataclass(slots=True)
class Runs:
    """How the runs of a task went, by run name, in order."""

    outcomes: dict[str, RunOutcome] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Results:
    """What a task's runs left, taken over: exactly one of the three is set."""

    model: Path | None = None  # folder
    model_files: tuple[str, ...] = ()
    performance: Performance | None = None
    prediction: Path | None = None  # file


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
    stage = _Stage(context, inputs, space, runs, journal, meter, host)
    match context.task.kind:
        case TaskKind.LEARN:
            return _learn(stage)
        case TaskKind.TEST:
            return _test(stage)
        case TaskKind.PREDICT:
            return _predict(stage)
        case kind:
            assert_never(kind)


@dataclass(frozen=True, slots=True)
class _Stage:
    """Everything the runs of one task share."""

    context: Context
    inputs: Inputs
    space: Workspace
    runs: Runs
    journal: Journal
    meter: Meter
    host: Host

    @property
    def dataset(self) -> str:
        return self.context.task.dataset.id

    @property
    def ceilings(self) -> Ceilings:
        return self.host.policy.ceilings_for(self.context.signed.order.limits)


def _learn(stage: _Stage) -> Results:
    space, inputs = stage.space, stage.inputs
    untargeted = space.readable("untargeted_test")
    add_pred(untargeted)
    train_pred, test_pred = space.writable("train_pred"), space.writable("test_pred")
    mounts = (
        Mount(inputs.data, "/data/train"),
        Mount(train_pred, "/data/train/pred", is_writable=True),
        Mount(untargeted, "/data/test"),
        Mount(test_pred, "/data/test/pred", is_writable=True),
        Mount(inputs.model, "/data/model", is_writable=True),
    )
    _run(stage, "train", RunKind.TRAIN, "algo", ("-V", "/data", "-T", "train"), mounts)
    space.drop(inputs.data, train_pred, test_pred)  # before the model is packed: that takes room
    taken = space.private("model")
    names = take(inputs.model, taken, stage.ceilings)
    return Results(model=taken, model_files=names)


def _test(stage: _Stage) -> Results:
    untargeted = _detarget(stage)
    predicted = _predict_on(stage, untargeted)
    return Results(performance=_perf(stage, untargeted, predicted))


def _predict(stage: _Stage) -> Results:
    return Results(prediction=_predict_on(stage, stage.inputs.data))


def _detarget(stage: _Stage) -> Path:
    """A folder with the dataset without its targets, as the problem image left it."""
    left = stage.space.writable("detargeted")
    mounts = (
        Mount(stage.inputs.data, "/hidden_data/test"),
        Mount(left, "/submission_data/test", is_writable=True),
    )
    args = ("-T", "detarget", "-i", "/hidden_data", "-s", "/submission_data")
    _run(stage, "detarget", RunKind.PROBLEM, "problem", args, mounts)
    untargeted = stage.space.readable("untargeted_test")
    take_file(left, stage.dataset, untargeted / stage.dataset, stage.ceilings)
    add_pred(untargeted)
    return untargeted


def _predict_on(stage: _Stage, data: Path) -> Path:
    """The prediction file that the algorithm left for the data in this folder, which has an empty `pred`."""
    left = stage.space.writable("pred")
    mounts = (
        Mount(data, "/data/test"),
        Mount(left, "/data/test/pred", is_writable=True),
        Mount(stage.inputs.model, "/data/model"),
    )
    _run(stage, "predict", RunKind.PREDICT, "algo", ("-V", "/data", "-T", "predict"), mounts)
    stage.space.drop(stage.inputs.model)
    prediction = stage.space.private("prediction")
    take_file(left, stage.dataset, prediction, stage.ceilings)
    return prediction


def _perf(stage: _Stage, untargeted: Path, prediction: Path) -> Performance:
    predicted = untargeted / "pred" / stage.dataset
    if not predicted.exists():
        predicted.hardlink_to(prediction)
    stage.space.keep_only(output_bytes_needed(stage.ceilings))
    left = stage.space.writable("perf")
    mounts = (
        Mount(stage.inputs.data, "/hidden_data/test"),
        Mount(left, "/hidden_data/perf", is_writable=True),
        Mount(stage.space.readable("no_train"), "/submission_data/train"),
        Mount(untargeted, "/submission_data/test"),
    )
    args = ("-T", "perf", "-i", "/hidden_data", "-s", "/submission_data")
    _run(stage, "perf", RunKind.PROBLEM, "problem", args, mounts)
    return read_performance(left, frozenset({stage.dataset}), stage.ceilings)


def _run(
    stage: _Stage, name: str, kind: RunKind, role: str, args: tuple[str, ...], mounts: tuple[Mount, ...]
) -> None:
    """One container, begun or found, to its end; what it wrote then belongs to the agent. Raises: JobFailed with its cause."""
    spent_s = sum(outcome.wall_s for outcome in stage.runs.outcomes.values())
    job, runtime = stage.context.job, stage.host.ports.runtime
    spec = RunSpec(
        name=f"dc-{job.id}-{job.attempt}-{name}",
        labels={JOB_LABEL: job.id, ATTEMPT_LABEL: str(job.attempt)},
        image=stage.inputs.images[role],
        kind=kind,
        args=args,
        mounts=mounts,
        ceilings=replace(stage.ceilings, wall_s=max(1, int(stage.ceilings.wall_s - spent_s))),
        accept_missing=frozenset(stage.host.policy.accept_missing),
    )
    outcome = stage.journal.outcome(RUN + name, RunOutcome)
    if outcome is None:
        began = stage.journal.begun_at(RUN + name)
        stage.meter.begin("run", name, limit_s=spec.ceilings.wall_s, since=began)
        outcome = _outcome(stage, name, role, spec)
    else:
        with suppress(RuntimeUnavailable):  # its worker may have died before this; else the sweep does it
            runtime.remove(spec.name)
    stage.runs.outcomes[name] = outcome
    if outcome.cause == UNKNOWN:  # the host's accident, not the guest's: a guest that ends gives a code
        raise RuntimeUnavailable(f"nobody can tell how run {name!r} ended")
    if outcome.cause is not None:
        raise JobFailed(f"run {name!r} of the {role} image ended with {outcome.cause}", outcome.cause)
    for mount in mounts:
        if mount.is_writable and mount.source.exists():
            _reclaim(mount.source, name, runtime)


def _outcome(stage: _Stage, name: str, role: str, spec: RunSpec) -> RunOutcome:
    """How the run ended, recorded before its container goes; its log is kept apart, sealed.

    Raises: LostRace when the attempt is another worker's by now, LedgerUnavailable: the container is left to whoever goes on.
    """
    job, runtime = stage.context.job, stage.host.ports.runtime
    outcome, is_recorded = None, False
    try:
        with _open(stage, name, role, spec) as run:
            is_for_the_next = False
            try:
                outcome = run.wait()
                log = seal_log(outcome.log, stage.host.key, job=job.id, attempt=job.attempt, run=name)
                outcome = replace(outcome, log=b"")
                told = audit.run_ended(job, name, spec.image, outcome)
                stage.journal.end(RUN + name, outcome, log=(name, log), told=[told])
                is_recorded = True
            except LedgerUnavailable:  # what it did is not lost because that could not be written down
                is_for_the_next = True
                raise
            finally:
                if is_for_the_next or (not is_recorded and stage.journal.is_anothers()):
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


def _open(stage: _Stage, name: str, role: str, spec: RunSpec) -> AbstractContextManager[Run]:
    """The run's container: that of the worker before this one, or a new one.

    Raises: PolicyRefused when the operator denied an image of the order meanwhile.
    """
    context, host = stage.context, stage.host
    if stage.journal.has_begun(RUN + name):
        return _adopted(spec, host)
    # Once more: inputs may have been fetched for hours, and an image that the operator denied meanwhile does not start.
    host.policy.admit(context.signed, [context.task], host.ports.ledger.verdict_on)
    stage.journal.begin(RUN + name, [audit.run_started(context.job, name, role, spec.image)])
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
