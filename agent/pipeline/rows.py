"""The container contract's table, row by row: which image is called how, which folder it sees where, what is taken of it.

What one run left is inspected and taken over before another run mounts it, and no mount's source or target lies in a folder
that a guest wrote. Who makes the container and writes down how it ended is the caller: a worker for a task of an order
(`run.py`), an author on their own machine (`dc-compute image try`). Both go through these lines.

Source: docs/contracts/container.md.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from msgspec import Struct
from msgspec.structs import replace

from agent.domain.ceilings import Ceilings
from agent.domain.chain import TaskKind
from agent.domain.ids import Digest
from agent.pipeline.outputs import Performance, read_performance, take, take_file
from agent.pipeline.workspace import Workspace, add_pred, output_bytes_needed
from agent.ports.runtime import Mount, RunKind, RunSpec


class Row(Struct, frozen=True):
    """One row of the table: the run's name, its kind, whose image it is, its arguments, and what it sees."""

    name: str
    kind: RunKind
    role: str  # problem or algo
    args: tuple[str, ...]
    mounts: tuple[Mount, ...]


@dataclass(frozen=True, slots=True)
class Stage:
    """Where the rows of one task are run, and by whom.

    `data`: a folder with the one dataset file and an empty `pred`; `model`: a folder with the earlier model, or an empty one,
    the guest's own to write in when it learns. `run`: one container to its end; what it wrote then belongs to the caller.
    """

    dataset: str
    data: Path
    model: Path
    space: Workspace
    ceilings: Ceilings
    run: Callable[[Row], None]


@dataclass(frozen=True, slots=True)
class Results:
    """What a task's runs left, taken over: exactly one of the three is set."""

    model: Path | None = None  # folder
    model_files: tuple[str, ...] = ()
    performance: Performance | None = None
    prediction: Path | None = None  # file


def run_rows(kind: TaskKind, stage: Stage) -> Results:
    """Run the rows of such a task in order. Raises: BadOutput, and whatever `stage.run` raises."""
    match kind:
        case TaskKind.LEARN:
            return _learn(stage)
        case TaskKind.TEST:
            return _test(stage)
        case TaskKind.PREDICT:
            return _predict(stage)
        case _:
            assert_never(kind)


def first_row(kind: TaskKind, stage: Stage) -> Row:
    """The first row of such a task, which needs nothing that a run left."""
    match kind:
        case TaskKind.LEARN:
            return _train_row(stage)
        case TaskKind.TEST:
            return _detarget_row(stage)
        case TaskKind.PREDICT:
            return _predict_row(stage, stage.data)
        case _:
            assert_never(kind)


def spec_of(
    row: Row,
    *,
    name: str,
    labels: Mapping[str, str],
    image: Digest,
    ceilings: Ceilings,
    spent_s: float,
    accept_missing: frozenset[str],
) -> RunSpec:
    """The run of this row. `spent_s`: what the task's runs before it took of the wall clock, which all of them share."""
    return RunSpec(
        name=name,
        labels=labels,
        image=image,
        kind=row.kind,
        args=row.args,
        mounts=row.mounts,
        ceilings=replace(ceilings, wall_s=max(1, int(ceilings.wall_s - spent_s))),
        accept_missing=accept_missing,
    )


def _learn(stage: Stage) -> Results:
    space, row = stage.space, _train_row(stage)
    stage.run(row)
    predictions = [m.source for m in row.mounts if m.is_writable and m.source != stage.model]
    space.drop(stage.data, *predictions)  # before the model is packed: that takes room
    taken = space.private("model")
    names = take(stage.model, taken, stage.ceilings)
    return Results(model=taken, model_files=names)


def _train_row(stage: Stage) -> Row:
    space = stage.space
    untargeted = space.readable("untargeted_test")
    add_pred(untargeted)
    train_pred, test_pred = space.writable("train_pred"), space.writable("test_pred")
    mounts = (
        Mount(stage.data, "/data/train"),
        Mount(train_pred, "/data/train/pred", is_writable=True),
        Mount(untargeted, "/data/test"),
        Mount(test_pred, "/data/test/pred", is_writable=True),
        Mount(stage.model, "/data/model", is_writable=True),
    )
    return Row("train", RunKind.TRAIN, "algo", ("-V", "/data", "-T", "train"), mounts)


def _test(stage: Stage) -> Results:
    untargeted = _detarget(stage)
    predicted = _predict_on(stage, untargeted)
    return Results(performance=_perf(stage, untargeted, predicted))


def _predict(stage: Stage) -> Results:
    return Results(prediction=_predict_on(stage, stage.data))


def _detarget(stage: Stage) -> Path:
    """A folder with the dataset without its targets, as the problem image left it."""
    row = _detarget_row(stage)
    stage.run(row)
    untargeted = stage.space.readable("untargeted_test")
    take_file(_left_by(row), stage.dataset, untargeted / stage.dataset, stage.ceilings)
    add_pred(untargeted)
    return untargeted


def _detarget_row(stage: Stage) -> Row:
    left = stage.space.writable("detargeted")
    mounts = (
        Mount(stage.data, "/hidden_data/test"),
        Mount(left, "/submission_data/test", is_writable=True),
    )
    args = ("-T", "detarget", "-i", "/hidden_data", "-s", "/submission_data")
    return Row("detarget", RunKind.PROBLEM, "problem", args, mounts)


def _left_by(row: Row) -> Path:
    """The one folder that this run could write in."""
    (left,) = (mount.source for mount in row.mounts if mount.is_writable)
    return left


def _predict_on(stage: Stage, data: Path) -> Path:
    """The prediction file that the algorithm left for the data in this folder, which has an empty `pred`."""
    row = _predict_row(stage, data)
    stage.run(row)
    stage.space.drop(stage.model)
    prediction = stage.space.private("prediction")
    take_file(_left_by(row), stage.dataset, prediction, stage.ceilings)
    return prediction


def _predict_row(stage: Stage, data: Path) -> Row:
    left = stage.space.writable("pred")
    mounts = (
        Mount(data, "/data/test"),
        Mount(left, "/data/test/pred", is_writable=True),
        Mount(stage.model, "/data/model"),
    )
    return Row("predict", RunKind.PREDICT, "algo", ("-V", "/data", "-T", "predict"), mounts)


def _perf(stage: Stage, untargeted: Path, prediction: Path) -> Performance:
    predicted = untargeted / "pred" / stage.dataset
    if not predicted.exists():
        predicted.hardlink_to(prediction)
    stage.space.keep_only(output_bytes_needed(stage.ceilings))
    left = stage.space.writable("perf")
    mounts = (
        Mount(stage.data, "/hidden_data/test"),
        Mount(left, "/hidden_data/perf", is_writable=True),
        Mount(stage.space.readable("no_train"), "/submission_data/train"),
        Mount(untargeted, "/submission_data/test"),
    )
    args = ("-T", "perf", "-i", "/hidden_data", "-s", "/submission_data")
    stage.run(Row("perf", RunKind.PROBLEM, "problem", args, mounts))
    return read_performance(left, frozenset({stage.dataset}), stage.ceilings)
