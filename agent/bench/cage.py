"""Part `cage`: what the cage costs over `podman run` with defaults, and what both cost over no container at all.

Every round runs every side (the cage of each runtime, `podman run --rm`, a bare process) at two works: `noop` starts an
interpreter and ends, `fit` trains with scikit-learn. The guest times its own training: steady work is seen apart from a start.
"""

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from msgspec import Struct

from agent.bench.bare import default_network, network_notes
from agent.bench.cage_alone import caged_run, measure_alone
from agent.bench.engines import engines, podman_engine, podman_name, podman_program, runtime_of
from agent.bench.figures import Bench, Measured, Row, order_of, over
from agent.bench.images import TRAINING, training_image
from agent.devkit.podman_service import service_environment
from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest
from agent.ports.runtime import Mount, Runtime
from agent.selftest.images import ENV

PART = "cage"
MIB = 1 << 20
TREES, REPEATS = 500, 3  # of the training, and of its data, so that it takes seconds
MOST_ROUNDS = 7
ARGS = ("-T", "train", "-V")
BARE, PLAIN = "bare process", "podman run"
MEASURES = ("total_s", "train_s", "train_cpu_s")

# No ceiling that a bare process would not have: the bench asks what the walls cost, not what a lower ceiling does.
CEILINGS = Ceilings(
    wall_s=600,
    memory_bytes=8 << 30,
    cpu_millis=1000 * (os.cpu_count() or 1),
    pids=256,
    open_files=1024,
    output_bytes=1 << 30,
    output_files=1000,
    log_bytes=MIB,
    tmp_bytes=256 * MIB,
)

Side = Callable[[Path], str]  # runs the guest on this volume, and gives what it printed


class Sample(Struct, frozen=True, kw_only=True):
    """One run. `total_s`: from the call to the end, by the wall clock; the others as the guest told them."""

    side: str
    work: str
    total_s: float
    train_s: float
    train_cpu_s: float


def measure(bench: Bench) -> Measured:
    """The part, in rounds after one that does not count."""
    trees = TREES if not bench.is_short and find_spec("sklearn") else 0
    works = {"noop": data(0), "fit": data(trees)}
    rounds = min(bench.rounds, MOST_ROUNDS)
    samples: list[Sample] = []
    with podman_engine() as socket, open_sides(socket, has_packages=trees > 0) as (sides, settle):
        pairs = {f"{work} {side}": (side, work) for work in works for side in sides}
        for number in range(-1, rounds):
            for name in order_of(number, list(pairs)):
                side, work = pairs[name]
                one = sample(side, sides[side], work, works[work], bench.memory)
                samples.extend([one] if number >= 0 else [])
                settle()
        alone = measure_alone(bench, socket, CEILINGS)
    told = measured(samples, trees > 0)
    return Measured(rows=told.rows + alone.rows, figures=told.figures | alone.figures, notes=told.notes)


def measured(samples: list[Sample], has_trained: bool) -> Measured:
    """The samples as rows: a work that trained nothing has a total only."""
    rows, figures = [], {}
    for side, work in dict.fromkeys((sample.side, sample.work) for sample in samples):
        for told in MEASURES:
            mine, base = values(samples, side, work, told), values(samples, PLAIN, work, told)
            if any(mine):
                baseline = None if side == PLAIN else _name(work, told, PLAIN)
                rows.append(
                    Row(part=PART, name=_name(work, told, side), unit="s", samples=mine, baseline=baseline)
                )
            if any(mine) and told == "total_s" and side.startswith(PART):
                engine = side.removeprefix(f"{PART} (").removesuffix(")")
                figures[f"cage_{work}_{engine}_ratio"] = over(mine, base)
    meanwhile = "under podman an ended container is removed while its caller goes on: in no figure, nor in the next run's"
    untrained = ["nothing was trained: scikit-learn is not installed here, or the bench is a short one"]
    return Measured(
        rows=tuple(rows),
        figures=figures,
        notes=(meanwhile, *network_notes(), *(() if has_trained else untrained)),
    )


def values(samples: list[Sample], side: str, work: str, measure: str) -> tuple[float, ...]:
    """Seconds, round by round."""
    return tuple(float(getattr(one, measure)) for one in samples if (one.side, one.work) == (side, work))


def _name(work: str, measure: str, side: str) -> str:
    return f"{work} {measure} {side}"


def data(trees: int) -> bytes:
    """The guest's file: the digits of scikit-learn, or nothing when nothing is trained."""
    if trees == 0:
        return json.dumps({"trees": 0}).encode()
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows, targets = digits.data.tolist() * REPEATS, digits.target.tolist() * REPEATS
    return json.dumps({"trees": trees, "rows": rows, "targets": targets}).encode()


# ------------------------------------------------------------------ the sides


@contextmanager
def open_sides(
    socket: Path, *, has_packages: bool
) -> Iterator[tuple[Mapping[str, Side], Callable[[], None]]]:
    """Every side by name, the baseline first, and how to wait for what goes on after a run: Podman's removals.

    `has_packages`: whether the image has scikit-learn.
    """
    archive, digest = training_image(has_packages)
    runtimes: list[Runtime] = []
    with ExitStack() as stack:
        sides: dict[str, Side] = {}
        for name, engine in engines(socket).items():
            runtime = runtime_of(engine)
            runtime.load(archive, digest)
            stack.callback(remove_all, runtime)
            runtimes.append(runtime)
            sides[f"{PART} ({name})"] = caged(runtime, digest)

        def settle() -> None:
            for runtime in runtimes:
                runtime.leftovers()

        yield {PLAIN: plain(socket, digest), **sides, BARE: bare}, settle


@contextmanager
def volume(data: bytes, memory: Path) -> Iterator[Path]:
    """The folders of a training in memory, writable by every user."""
    memory.chmod(0o711)  # `podman run`'s guest is another user
    with TemporaryDirectory(prefix="volume-", dir=memory) as folder:
        root = Path(folder)
        for name in ("train/pred", "model"):
            (root / name).mkdir(parents=True)
            (root / name).chmod(0o777)
        root.chmod(0o755)
        (root / "train" / "data.json").write_bytes(data)
        yield root


def sample(name: str, side: Side, work: str, data: bytes, memory: Path) -> Sample:
    """One timed run. Making and emptying the volume is not timed."""
    with volume(data, memory) as root:
        began = time.perf_counter()
        printed = side(root)
        total_s = time.perf_counter() - began
    told: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return Sample(side=name, work=work, total_s=total_s, **told)


def bare(root: Path) -> str:
    """A process of this user with the image's environment."""
    environment = {name: value for name, value in ENV.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-u", str(TRAINING), *ARGS, str(root)]
    return said(command, environment | {"HOME": str(root), "TMPDIR": str(root)})


def plain(socket: Path, digest: Digest) -> Side:
    """`podman run --rm` with nothing set but the data; `--network none` where this user can have no network of Podman's."""
    podman, network = podman_program(socket), default_network()
    asked = [] if network is None else ["--network", network]
    command = [*podman, "run", "--rm", "--pull", "never", *asked]
    name, environment = podman_name(podman, digest), service_environment()

    def run(root: Path) -> str:
        binds = ["--volume", f"{root}/train:/data/train", "--volume", f"{root}/model:/data/model"]
        return said([*command, *binds, name, *ARGS, "/data"], environment)

    return run


def caged(runtime: Runtime, digest: Digest) -> Side:
    """A run as a worker makes it: created, looked at, started, awaited, removed."""
    numbers = itertools.count()

    def run(root: Path) -> str:
        mounts = (
            Mount(root / "train", "/data/train"),
            Mount(root / "model", "/data/model", is_writable=True),
        )
        outcome = caged_run(
            runtime, digest, f"bench-{next(numbers)}", args=(*ARGS, "/data"), mounts=mounts, ceilings=CEILINGS
        )
        runtime.reclaim(root / "model")
        return outcome.log.decode()

    return run


def remove_all(runtime: Runtime) -> None:
    """Whatever an interrupted run left."""
    for leftover in runtime.leftovers():
        runtime.remove(leftover.name)


def said(command: list[str], environment: Mapping[str, str]) -> str:
    """The stdout of a command. Raises: RuntimeError with what it said when it fails."""
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:8])} … failed: {done.stderr.strip()[-500:]}")
    return done.stdout
