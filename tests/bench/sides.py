"""The sides that the bench compares: the same guest as a bare process, under `podman run`, and in the cage of each runtime."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from agent.devkit.podman_service import checkout_folders, oci_runtime, podman_service
from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest
from agent.ports.runtime import Mount, RunKind, RunSpec, Runtime
from agent.selftest.images import (
    ENV,
    PROGRAM_ROOT,
    PYTHON,
    build_image,
    packages_layer,
    program_layer,
    python_layer,
)
from tests.bench.figures import Sample
from tests.host.podman import MIB, Engine, image_cache
from tests.host.runtimes import RUNTIMES, runtime_of

GUEST = Path(__file__).parent / "guest.py"
ARGS = ("-T", "train", "-V")
BARE, PLAIN = "bare process", "podman run"

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


@contextmanager
def own_engine() -> Iterator[Engine]:
    """A Podman service of the bench's own, on the storage of this clone. Raises: NoPodman."""
    runtime_dir, root = checkout_folders()
    name = f"bench-{os.getpid()}"
    with (
        TemporaryDirectory(prefix="dcc-store-") as store,
        podman_service(runtime_dir, root, name=name) as path,
    ):
        yield Engine(path, Path(store))


@contextmanager
def open_sides(engine: Engine, *, has_packages: bool) -> Iterator[Mapping[str, Side]]:
    """Every side by name, the baseline first. `has_packages`: whether the image has scikit-learn."""
    archive, digest = image(has_packages)
    with ExitStack() as stack:
        sides: dict[str, Side] = {}
        for name in RUNTIMES:
            runtime = runtime_of(name, engine)
            runtime.load(archive, digest)
            stack.callback(remove_all, runtime)
            sides[f"cage ({name})"] = caged(runtime, digest)
        yield {PLAIN: plain(engine, digest), **sides, BARE: bare}


def image(has_packages: bool) -> tuple[Path, Digest]:
    """The guest's image: its archive and digest."""
    cache = image_cache()
    layers = [python_layer(cache), *([packages_layer(cache, ["scikit-learn"])] if has_packages else [])]
    inside = f"{PROGRAM_ROOT}/guest.py"
    layers.append(program_layer(cache, {inside: GUEST.read_bytes()}))
    archive = cache / ("bench.tar" if has_packages else "bench-short.tar")
    return archive, build_image(archive, layers=layers, entrypoint=[PYTHON, "-u", inside], env=ENV)


@contextmanager
def volume(data: bytes) -> Iterator[Path]:
    """The folders of a training in memory, writable by every user."""
    with TemporaryDirectory(prefix="dcc-bench-", dir="/dev/shm") as folder:
        root = Path(folder)
        for name in ("train/pred", "model"):
            (root / name).mkdir(parents=True)
            (root / name).chmod(0o777)
        root.chmod(0o755)
        (root / "train" / "data.json").write_bytes(data)
        yield root


def sample(name: str, side: Side, work: str, data: bytes, number: int) -> Sample:
    """One timed run. Making and emptying the volume is not timed."""
    with volume(data) as root:
        began = time.perf_counter()
        printed = side(root)
        total_s = time.perf_counter() - began
    told: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return Sample(side=name, work=work, round=number, total_s=total_s, **told)


def bare(root: Path) -> str:
    """A process of this user with the image's environment."""
    environment = {name: value for name, value in ENV.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-u", str(GUEST), *ARGS, str(root)]
    return said(command, environment | {"HOME": "/tmp", "TMPDIR": "/tmp"})


def plain(engine: Engine, digest: Digest) -> Side:
    """`podman run --rm` with nothing set but the data; `--network none` where this user can have no network of Podman's."""
    runtime_dir, _ = checkout_folders()
    environment = {
        name: os.environ[name] for name in ("PATH", "HOME", "XDG_RUNTIME_DIR") if name in os.environ
    }
    ask = [
        "podman",
        "--remote",
        "--url",
        f"unix://{engine.socket}",
        "info",
        "--format",
        "{{.Store.GraphRoot}}",
    ]
    places = {"--root": said(ask, environment).strip(), "--runroot": str(runtime_dir / "run")}
    places |= {
        "--tmpdir": str(runtime_dir / "tmp"),
        "--runtime": oci_runtime(),
        "--storage-driver": "overlay",
    }
    command = ["podman", *itertools.chain(*places.items()), "run", "--rm", "--pull", "never", *network()]
    name = engine.runtime()._images._reference(digest)

    def run(root: Path) -> str:
        binds = ["--volume", f"{root}/train:/data/train", "--volume", f"{root}/model:/data/model"]
        return said([*command, *binds, name, *ARGS, "/data"], environment)

    return run


def network() -> list[str]:
    """What `podman run` must be told where this user cannot have its default network: no program for it, or no tun device."""
    has_program = shutil.which("slirp4netns") or shutil.which("pasta")
    return [] if has_program and os.access("/dev/net/tun", os.R_OK | os.W_OK) else ["--network", "none"]


def caged(runtime: Runtime, digest: Digest) -> Side:
    """A run as a worker makes it: created, looked at, started, awaited, removed."""
    numbers = itertools.count()

    def run(root: Path) -> str:
        spec = RunSpec(
            name=f"bench-{next(numbers)}",
            labels={"job": "bench.0"},
            image=digest,
            kind=RunKind.TRAIN,
            args=(*ARGS, "/data"),
            mounts=(
                Mount(root / "train", "/data/train"),
                Mount(root / "model", "/data/model", is_writable=True),
            ),
            ceilings=CEILINGS,
            accept_missing=frozenset({"cpu_millis", "memory_bytes"}),
        )
        with runtime.run(spec) as running:
            outcome = running.wait()
        if outcome.cause is not None:
            raise RuntimeError(f"the guest ended as {outcome.cause}: {outcome.log.decode(errors='replace')}")
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
