"""An author's image on their own machine: the tasks of an order without an order, in the cage and by the contract of a host.

What runs is what a worker runs: the same rows (`pipeline/rows.py`), the same runtimes and cage, the same judgement of what is
left and of archives. There is no agent, ledger, roster or key: nothing is signed, sent or kept.
"""

import errno
import os
import shutil
import tarfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from agent.devkit.breaches import Breach, breach_of, said_in, words_of
from agent.devkit.killed_calls import deadly_calls, killed_calls
from agent.domain.ceilings import Ceilings
from agent.domain.chain import TaskKind
from agent.domain.ids import Digest
from agent.errors import BadOutput, BadSettings, JobFailed, NoSpace
from agent.pipeline.outputs import pack, unpack
from agent.pipeline.publish import prepare
from agent.pipeline.rows import Results, Row, Stage, run_rows, spec_of
from agent.pipeline.trials import TRIAL_LABEL, abandoned, is_under_way
from agent.pipeline.workspace import Workspace, add_pred, remove_folder, set_modes
from agent.ports.runtime import RunOutcome, Runtime

BEGIN_BYTES, BEGIN_LINES = 200, 5
NAMES = uuid.UUID("5e1f6f0c-3d7b-5b0e-9d0e-0c1a7c2f4b11")  # of datasets by the names of their files

# What a guest finds where, for people: the table of the contract, in words.
MEANS = {
    "/data/train": "the dataset",
    "/data/train/pred": "predictions of it, if you like: nobody reads them",
    "/data/test": "what is to be predicted, without targets; empty in a training",
    "/data/test/pred": "the predictions; nobody reads them in a training",
    "/data/model": "the model",
    "/hidden_data/test": "the dataset with its targets",
    "/hidden_data/perf": "the score",
    "/submission_data/train": "empty",
    "/submission_data/test": "the dataset without its targets",
}


class Mounted(Struct, frozen=True):
    """A folder as the guest sees it, and what it is for."""

    path: str
    is_writable: bool
    means: str


class Ran(Struct, frozen=True, kw_only=True):
    """One run of one image, as its author reads it. `log` may carry data."""

    run: str
    image: Digest
    args: tuple[str, ...]
    mounts: tuple[Mounted, ...]
    cause: str | None
    ended: str  # `cause` in words
    wall_s: float
    cpu_s: float | None
    max_memory_bytes: int | None
    ceilings: Mapping[str, str]
    absent: tuple[str, ...]
    log: str


class Left(Struct, frozen=True, kw_only=True):
    """The output of a task as a host sends it. `begins`: the start of a prediction or score, where it is text."""

    name: str
    digest: Digest
    size_bytes: int
    files: tuple[str, ...] = ()  # of a model
    begins: str = ""
    score: float | None = None


class Tried(Struct, frozen=True, kw_only=True):
    """One task on one file. `dataset`: the id under which the guest saw it. `left`: None when the task failed."""

    task: TaskKind
    file: str
    dataset: str
    runs: tuple[Ran, ...]
    left: Left | None
    breaches: tuple[Breach, ...]

    @property
    def is_well(self) -> bool:
        return self.left is not None


@dataclass
class Bench:
    """Where one trial goes on. `folder`: a fresh one below the workspace's root; `images`: by role, loaded.

    `accept_missing`: ceilings that this machine lacks; `out`: where what tasks leave is kept; `model`: the archive of the
    model that the next task starts from.
    """

    runtime: Runtime
    folder: Path
    images: Mapping[str, Digest]
    ceilings: Ceilings
    accept_missing: frozenset[str]
    seccomp: Path
    out: Path | None = None
    model: Path | None = None
    count: int = 0  # of tasks so far

    def task(self, kind: TaskKind, file: Path) -> Tried:
        """One task on this file, from the model that the last training left; a training leaves the next one.

        Raises: NoSpace; CageNotApplied, BadImage, RuntimeUnavailable as a host would see them.
        """
        try:
            return self._task(kind, file)
        except OSError as cause:
            if cause.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise NoSpace(f"the workspace {self.folder.parent} filled up: {cause.strerror}") from cause
            raise

    def tasks(self, wanted: Iterable[tuple[TaskKind, Path]]) -> Iterator[Tried]:
        """These tasks, one after the other, until one fails: a chain ends there."""
        for kind, file in wanted:
            tried = self.task(kind, file)
            yield tried
            if not tried.is_well:
                return

    def _task(self, kind: TaskKind, file: Path) -> Tried:
        root = self.folder / f"task-{self.count}"
        self.count += 1
        root.mkdir(mode=0o700)
        space, dataset = Workspace(root), dataset_of(file)
        work = _Work(self, space, datetime.now(UTC))
        stage = Stage(
            dataset=dataset,
            data=_data(file, dataset, space),
            model=self._model(kind, space),
            space=space,
            ceilings=self.ceilings,
            run=work.run,
        )
        left, breaches = None, []
        try:
            left = self._taken(kind, dataset, run_rows(kind, stage), space)
        except (JobFailed, BadOutput) as error:
            breaches.append(breach_of(error, work.killed()))
        breaches += work.said
        return Tried(
            task=kind,
            file=file.name,
            dataset=dataset,
            runs=tuple(work.runs),
            left=left,
            breaches=tuple(breaches),
        )

    def start_from(self, folder: Path) -> None:
        """Go on with the files of an earlier model. Raises: BadSettings for what is no plain folder of files."""
        names = []
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise BadSettings(f"{path} is neither a file nor a folder: no model holds such")
            if path.is_file():
                names.append(path.relative_to(folder).as_posix())
        archive = self.folder / "given.tar"
        pack(folder, tuple(names), archive)
        self.model = archive

    def _model(self, kind: TaskKind, space: Workspace) -> Path:
        """A folder with the model so far, unpacked as the next hospital unpacks it."""
        is_learning = kind is TaskKind.LEARN
        folder = space.writable("model") if is_learning else space.readable("model")
        if self.model is not None:
            unpack(self.model, folder, self.ceilings)
            set_modes(folder, writable=is_learning)
        return folder

    def _taken(self, kind: TaskKind, dataset: str, results: Results, space: Workspace) -> Left:
        """What the task left, packed as it would be sent. Raises: BadOutput."""
        file, name, _, digest = prepare(kind, dataset, results, space)
        size = file.stat().st_size
        begins = "" if kind is TaskKind.LEARN else _begin_of(file)
        if self.out is not None:
            shutil.copyfile(file, self.out / f"{self.count:02}-{kind}-{name.replace('/', '-')}")
        if kind is TaskKind.LEARN:
            carried = self.folder / "carried.tar"
            os.replace(file, carried)
            self.model = carried
        score = None if results.performance is None else results.performance.perf
        return Left(
            name=name, digest=digest, size_bytes=size, files=results.model_files, begins=begins, score=score
        )


@dataclass
class _Work:
    """The runs of one task."""

    bench: Bench
    space: Workspace
    began: datetime
    runs: list[Ran] = field(default_factory=list)
    said: list[Breach] = field(default_factory=list)
    kind: str = ""

    def run(self, row: Row) -> None:
        """One container to its end; what it wrote then belongs to us. Raises: JobFailed; as the runtime does."""
        bench, self.kind = self.bench, row.kind.value
        spec = spec_of(
            row,
            name=f"{bench.folder.name}-{self.space.root.name}-{row.name}",
            labels={TRIAL_LABEL: bench.folder.name},
            image=bench.images[row.role],
            ceilings=bench.ceilings,
            spent_s=sum(ran.wall_s for ran in self.runs),
            accept_missing=bench.accept_missing,
        )
        with bench.runtime.run(spec) as run:
            outcome = run.wait()
        self.runs.append(_ran(row, spec.image, outcome))
        self.said += said_in(outcome)
        if outcome.cause is not None:
            raise JobFailed(
                f"run {row.name!r} of the {row.role} image ended with {outcome.cause}", outcome.cause
            )
        for mount in row.mounts:
            if mount.is_writable and mount.source.exists():
                bench.runtime.reclaim(mount.source)

    def killed(self) -> str:
        """What is known of the calls that killed a guest of this task, as the end of a sentence."""
        told = killed_calls(self.began, datetime.now(UTC))
        if told:
            return ": " + ", ".join(dict.fromkeys(f"`{one.call}` by {one.program}" for one in told))
        deadly = " ".join(deadly_calls(self.bench.seccomp / f"{self.kind}.json")) if self.kind else ""
        return f"; which one stands in the kernel's log, which is closed to you. It is one of: {deadly}"


def _ran(row: Row, image: Digest, outcome: RunOutcome) -> Ran:
    return Ran(
        run=row.name,
        image=image,
        args=row.args,
        mounts=tuple(Mounted(one.target, one.is_writable, MEANS[one.target]) for one in row.mounts),
        cause=outcome.cause,
        ended=words_of(outcome.cause),
        wall_s=outcome.wall_s,
        cpu_s=outcome.cpu_s,
        max_memory_bytes=outcome.max_memory_bytes,
        ceilings=outcome.cage.ceilings,
        absent=outcome.cage.absent,
        log=outcome.log.decode("utf-8", "replace"),
    )


def _begin_of(file: Path) -> str:
    """The first lines of an output, of few characters."""
    with file.open("rb") as content:
        text = content.read(BEGIN_BYTES).decode("utf-8", "replace")
    return "\n".join(text.splitlines()[:BEGIN_LINES])


def _data(file: Path, dataset: str, space: Workspace) -> Path:
    """A folder with this one file, under the name that a dataset has."""
    data = space.readable("data")
    shutil.copyfile(file, data / dataset)
    (data / dataset).chmod(0o644)
    add_pred(data)
    return data


def dataset_of(file: Path) -> str:
    """The id of a dataset, the same for the same name of its file: a guest sees no other name."""
    return str(uuid.uuid5(NAMES, file.name))


def datasets_in(folder: Path) -> Sequence[Path]:
    """The data files of a folder, in the order of their names. Raises: BadSettings when there is none."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as cause:
        raise BadSettings(f"{folder} cannot be read: {cause.strerror}") from cause
    if not files:
        raise BadSettings(f"{folder} holds no file: each file of it is one dataset")
    return files


def clear(runtime: Runtime, root: Path) -> None:
    """Remove what trials below this root left that were killed. Those under way are let alone."""
    under_way = {path.name for path in root.iterdir() if is_under_way(path.name, root)}
    for leftover in runtime.leftovers():
        if leftover.labels.get(TRIAL_LABEL) not in under_way:
            runtime.remove(leftover.name)
    for folder in abandoned(root):
        remove_folder(folder, runtime)
    if not under_way:  # else one of them may be about to run its own
        for image in runtime.images():
            runtime.discard(image.digest)


def archive_of(image: Path, folder: Path) -> Path:
    """The archive of an image: itself, or made in `folder` of an OCI layout (`podman save --format oci-dir`).

    Raises: BadSettings when it is neither.
    """
    if image.is_file():
        return image
    if not (image / "index.json").is_file():
        raise BadSettings(
            f"{image} is neither an archive nor a folder with an OCI layout (index.json, blobs)"
        )
    target = folder / f"{image.name}.tar"
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(image.rglob("*")):
            if path.is_file() and not path.is_symlink():
                entry = tarfile.TarInfo(str(path.relative_to(image)))
                entry.size, entry.mode = path.stat().st_size, 0o644
                with path.open("rb") as content:
                    archive.addfile(entry, content)
    return target
