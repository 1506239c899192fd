"""`image try`: an author's image on their own machine, in the cage and by the contract of a host, told run by run."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import replace

from agent.cli.audit import digest_of_file
from agent.cli.doctor_patient import owner_file
from agent.cli.files import as_owner_of, make_folder
from agent.cli.here import here_of, read_file
from agent.cli.out import JsonFlag, clean, print_json, say, seconds, size, warn
from agent.domain.chain import TaskKind
from agent.domain.ids import KeyId
from agent.errors import BadImage, BadSettings, RuntimeUnavailable

if TYPE_CHECKING:
    from agent.config import Settings
    from agent.devkit.breaches import Breach
    from agent.devkit.tryout import Bench, Ran, Tried
    from agent.domain.ceilings import Ceilings
    from agent.domain.ids import Digest
    from agent.ports.runtime import Runtime

FAILED = 1
LOG_LINES = 40  # of a run, at its end: what is longer stands in --json
MAX_POLICY_BYTES = 1 << 20
MOST_FILES = 10  # of a model, named
TASKS = {"train": TaskKind.LEARN, "test": TaskKind.TEST, "predict": TaskKind.PREDICT}


def try_(
    context: typer.Context,
    image: Annotated[
        Path, typer.Argument(help="The algorithm's image: an OCI archive, or a folder with an OCI layout.")
    ],
    data: Annotated[
        Path, typer.Option("--data", help="A folder with example data to train on; each file is one dataset.")
    ],
    problem: Annotated[
        Path | None, typer.Option("--problem", help="The problem's image, for `test`.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option("--test", help="A folder with test data, with their targets, for `test`.")
    ] = None,
    predict: Annotated[
        Path | None,
        typer.Option("--predict", help="A folder with data without targets, for `predict`. Default: --data."),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", metavar="train|test|predict", help="Only these. Default: what data is given for."
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="A folder with the files of an earlier model, to go on from."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", help="A hospital's policy.toml: its [ceilings] hold instead of the defaults."
        ),
    ] = None,
    runtime: Annotated[
        str | None, typer.Option("--runtime", metavar="podman|runc", help="Default: whichever is there.")
    ] = None,
    workspace: Annotated[
        Path | None,
        typer.Option(
            "--workspace", help="Where the runs' folders lie meanwhile. Default: as an agent's, in memory."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A folder to keep what the tasks left: models, predictions, scores."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run an algorithm's image as a hospital would: the same cage, folders, ceilings and judgement, with no agent around it.

    Trains on each file of --data in turn, each time from the model that the one before left; then tests and predicts. Says what
    was mounted, how each run ended, what it left, and which line of the contract was not kept. Nothing stays behind.
    """
    from agent.devkit.breaches import breach_of
    from agent.devkit.podman_service import NoPodman
    from agent.devkit.tryout import datasets_in

    settings = here_of(context).settings
    kinds = _kinds(task, problem, test, predict)
    given = {"algo": image} | ({} if problem is None else {"problem": problem})
    files = {
        TaskKind.LEARN: datasets_in(data),
        TaskKind.TEST: datasets_in(test) if test is not None else (),
        TaskKind.PREDICT: datasets_in(predict or data),
    }
    ceilings = _ceilings(policy)
    tried: list[Tried] = []
    refused: Breach | None = None
    try:
        with (
            as_owner_of(owner_file(settings)),
            _engine(apart(settings, workspace), runtime) as (engine, changed),
            _bench(engine, changed, given, ceilings) as bench,
        ):
            if model is not None:
                bench.start_from(model)
            if out is not None:
                make_folder(out, 0o755)
                bench.out = out
            if not as_json:
                _say_where(bench)
            for one in bench.tasks((kind, file) for kind in kinds for file in files[kind]):
                tried.append(one)
                if not as_json:
                    _say_task(one)
    except BadImage as error:
        refused = breach_of(error, "")
    except NoPodman as cause:
        raise RuntimeUnavailable(str(cause)) from cause
    is_well = refused is None and all(one.is_well for one in tried)
    if as_json:
        print_json({"is_well": is_well, "refused": refused, "tasks": tried})
    else:
        _say_sum(tried, refused)
    if not is_well:
        raise typer.Exit(FAILED)


def _kinds(
    asked: Sequence[str] | None, problem: Path | None, test: Path | None, predict: Path | None
) -> list[TaskKind]:
    """What is tried, in the order of a chain. Raises: BadSettings for what lacks its data."""
    words = asked or ["train", *(["test"] if problem and test else []), *(["predict"] if predict else [])]
    strange = [word for word in words if word not in TASKS]
    if strange:
        raise BadSettings(f"there is no task {strange[0]!r}; there are: {', '.join(TASKS)}")
    if "test" in words and not (problem and test):
        raise BadSettings("the task test needs --problem IMAGE and --test DIR")
    if not asked and (problem is None) != (test is None):
        raise BadSettings("--problem and --test belong together")
    return [kind for word, kind in TASKS.items() if word in words]


def _ceilings(policy: Path | None) -> "Ceilings":
    from agent.domain.ceilings import DEFAULT_CEILINGS
    from agent.trust.policy import HostPolicy

    if policy is None:
        return DEFAULT_CEILINGS
    try:
        text = read_file(policy, limit_bytes=MAX_POLICY_BYTES).decode("utf-8")
    except UnicodeDecodeError as cause:
        raise BadSettings(f"{policy} is not UTF-8") from cause
    return HostPolicy.from_toml(text).ceilings


def apart(settings: "Settings", workspace: Path | None) -> "Settings":
    """The settings with folders of trials in the place of an agent's: what one of them left is nobody else's."""
    root = (workspace or settings.workspace.root.with_name("tryouts")).absolute()
    data = settings.paths.data / "tryouts" / hashlib.sha256(bytes(root)).hexdigest()[:8]
    return replace(
        settings, workspace=replace(settings.workspace, root=root), paths=replace(settings.paths, data=data)
    )


def instance_of(settings: "Settings") -> KeyId:
    """The name under which trials with these folders have their containers; no agent's."""
    return KeyId(hashlib.sha256(bytes(settings.workspace.root)).hexdigest())


@contextmanager
def _engine(settings: "Settings", wanted: str | None) -> "Iterator[tuple[Runtime, Settings]]":
    """The container engine of this machine: Podman's socket, else a service of our own meanwhile, else runc.

    Raises: NoPodman, BadSettings.
    """
    from agent.devkit.podman_service import NoPodman, answers, podman_service, why_no_runc, why_not
    from agent.wiring import make_runtime

    name = wanted or settings.runtime.engine
    if name not in {"auto", "podman", "runc"}:
        raise BadSettings(f"there is no runtime {name!r}; there are: podman, runc")
    with ExitStack() as stack:
        socket = settings.runtime.podman_socket
        lacks_podman = None if answers(socket) else why_not()
        if name == "podman" or (name == "auto" and lacks_podman is None):
            if not answers(socket):
                folder = settings.runtime.run_dir.parent / "dc-compute-try"
                socket = stack.enter_context(podman_service(folder))
            runtime = replace(settings.runtime, engine="podman", podman_socket=socket)
        else:
            lacks_runc = why_no_runc()
            if lacks_runc is not None:
                raise NoPodman(f"runc's containers need {lacks_runc}; Podman's {lacks_podman}")
            runtime = replace(settings.runtime, engine="runc")
        changed = replace(settings, runtime=runtime)
        yield make_runtime(changed, instance_of(changed)), changed


@contextmanager
def _bench(
    runtime: "Runtime",
    settings: "Settings",
    given: dict[str, Path],
    ceilings: "Ceilings",
) -> "Iterator[Bench]":
    """A fresh folder with the images judged and loaded; what was loaded for the trial goes again. Raises: BadImage."""
    from agent.devkit.tryout import Bench, archive_of, clear
    from agent.pipeline.trials import trial

    root = settings.workspace.root
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as cause:
        raise BadSettings(f"the folder {root} cannot be made: {cause.strerror}") from cause
    clear(runtime, root)
    with ExitStack() as stack:
        folder = stack.enter_context(trial(root, runtime))
        images: dict[str, Digest] = {}
        for role, path in given.items():
            archive = archive_of(path, folder)
            digest = digest_of_file(archive)
            if runtime.image(digest) is None:
                stack.callback(runtime.discard, digest)
            runtime.load(archive, digest)
            images[role] = digest
        yield Bench(
            runtime=runtime,
            folder=folder,
            images=images,
            ceilings=ceilings,
            accept_missing=frozenset(runtime.enforcement().absent),
            seccomp=settings.runtime.seccomp_dir,
        )


# ------------------------------------------------------------------ telling


def _say_where(bench: "Bench") -> None:
    told = bench.runtime.enforcement()
    for role, digest in bench.images.items():
        say(f"{role:<8}  {digest}")
    say(f"runtime   {bench.runtime.name} {told.version}")
    if told.absent:
        warn(
            f"This machine cannot hold {', '.join(sorted(told.absent))}: a hospital does, and may end what runs here."
        )


def _say_task(tried: "Tried") -> None:
    word = next(word for word, kind in TASKS.items() if kind is tried.task)
    say()
    say(f"{word} on {tried.file}, which the image sees as {tried.dataset}")
    for ran in tried.runs:
        _say_run(ran)
    left = tried.left
    if left is not None:
        say(f"  left      {left.name}: {size(left.size_bytes)}  {left.digest}")
        for name in left.files[:MOST_FILES]:
            say(f"  file      {name}")
        if len(left.files) > MOST_FILES:
            say(f"  file      … and {len(left.files) - MOST_FILES} more")
        for line in left.begins.splitlines():
            say(f"  begins    {line}")
    for breach in tried.breaches:
        _say_breach(breach)


def _say_run(ran: "Ran") -> None:
    say(f"  run       {ran.run}: {' '.join(ran.args)}")
    for mount in ran.mounts:
        how = "to write" if mount.is_writable else "to read"
        say(f"  mounted   {mount.path:<24} {how:<8}  {mount.means}")
    used = [seconds(ran.wall_s)]
    if ran.cpu_s is not None:
        used.append(f"{seconds(ran.cpu_s)} of CPU")
    if ran.max_memory_bytes is not None:
        used.append(f"at most {size(ran.max_memory_bytes)} of memory")
    say(f"  ended     {ran.ended}; {', '.join(used)}")
    lines = clean(ran.log, keeps_lines=True).splitlines()
    if len(lines) > LOG_LINES:
        say(f"  log       … {len(lines) - LOG_LINES} lines before these")
    for line in lines[-LOG_LINES:]:
        say(f"  log       {line}")


def _say_breach(breach: "Breach") -> None:
    say(f"  {'BROKEN' if breach.is_fatal else 'look':<8}  {breach.seen}")
    if breach.contract:
        say(f"  contract  “{breach.contract}” (docs/contracts/container.md)")
    say(f"  mend      {breach.mend}")


def _say_sum(tried: "Sequence[Tried]", refused: "Breach | None") -> None:
    say()
    if refused is not None:
        _say_breach(refused)
        say("no host loads this image")
    elif all(one.is_well for one in tried):
        say(f"{len(tried)} task{'' if len(tried) == 1 else 's'} done: a host takes what they left")
    else:
        say("a host fails this task; those that come after it were not tried")
