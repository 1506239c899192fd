"""A real Podman for tests: one service a test process, its storage kept from run to run, images made once.

@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    yield from open_engine()
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from agent.devkit.images import program_image
from agent.devkit.podman_service import checkout_folders, podman_service, why_no_runc, why_not
from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest
from agent.errors import BadOutput
from agent.ports.runtime import Mount, RunKind, RunSpec, Runtime
from agent.ports.runtime_podman import PodmanRuntime
from agent.ports.runtime_runc import RuncRuntime
from agent.ports.runtime_runc_cgroups import find_cgroups

ROOT = Path(__file__).resolve().parent.parent.parent
SECCOMP = ROOT / "seccomp"
GIVEN = "DC_COMPUTE_TEST_PODMAN"  # names a socket: that service is used, and no other is started or ended
PLANTED = "DC_COMPUTE_PLANTED_SECRET"  # in the service's environment, where no guest may see it
MIB = 1 << 20

CEILINGS = Ceilings(
    wall_s=60,
    memory_bytes=512 * MIB,
    cpu_millis=1000,
    pids=64,
    open_files=1024,
    output_bytes=64 * MIB,
    output_files=1000,
    log_bytes=64 << 10,
    tmp_bytes=32 * MIB,
)


@dataclass(frozen=True)
class Engine:
    """A running service, and what every test on it needs."""

    socket: Path
    store: Path

    def runtime(self) -> PodmanRuntime:
        """An agent's runtime of its own: nobody else sees its containers. What is loaded is known to all of them."""
        instance = f"test-{uuid.uuid4()}"
        return PodmanRuntime(self.socket, SECCOMP, self.store, instance=instance, pool_size=3)


@dataclass(frozen=True)
class Desk:
    """One agent's workspace in memory, and its runtime with the probe image loaded."""

    runtime: Runtime
    image: Digest
    root: Path

    @property
    def podman(self) -> PodmanRuntime:
        """The runtime, for tests that look behind the door of this one adapter."""
        assert isinstance(self.runtime, PodmanRuntime)
        return self.runtime

    def spec(
        self,
        *args: str,
        name: str = "run",
        kind: RunKind = RunKind.TRAIN,
        mounts: tuple[Mount, ...] = (),
        ceilings: Ceilings = CEILINGS,
        image: Digest | None = None,
    ) -> RunSpec:
        """A run of the probe; it accepts what this host may lack."""
        return RunSpec(
            name=name,
            labels={"job": "a.0"},
            image=image or self.image,
            kind=kind,
            args=args,
            mounts=mounts,
            ceilings=ceilings,
            accept_missing=frozenset({"cpu_millis", "memory_bytes"}),
        )

    def folder(self, name: str, *, mode: int = 0o777) -> Path:
        """A fresh folder of the workspace."""
        path = self.root / name
        path.mkdir(parents=True)
        path.chmod(mode)
        return path

    def output(self) -> Mount:
        """A fresh folder mounted where the guest leaves its model."""
        return Mount(self.folder("model"), "/data/model", is_writable=True)


_open: dict[str, tuple[ExitStack, Engine, int]] = {}


def open_engine() -> Iterator[Engine]:
    """The engine of this process, however many fixtures ask for it; gone with the last of them."""
    lacking = why_not()
    if lacking:
        pytest.skip(f"real containers need {lacking}")
    stack, engine, users = _open.get("one") or (ExitStack(), None, 0)
    if engine is None:
        given = os.environ.get(GIVEN)
        # The notes stay with the storage, whose images bear their name.
        store = checkout_folders()[1].parent / f"{_service_name()}-images"
        engine = Engine(Path(given) if given else stack.enter_context(_service()), store)
    _open["one"] = (stack, engine, users + 1)
    try:
        yield engine
    finally:
        stack, engine, users = _open.pop("one")
        if users == 1:
            stack.close()
        else:
            _open["one"] = (stack, engine, users - 1)


def _service_name() -> str:
    return f"test-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}"


def _service() -> AbstractContextManager[Path]:
    runtime_dir, root = checkout_folders()
    return podman_service(runtime_dir, root, name=_service_name(), env={PLANTED: "swordfish"})


def open_desk(runtime: Runtime) -> Iterator[Desk]:
    """A workspace in memory with the probe image loaded; emptied afterwards, whatever guests left."""
    root = Path(tempfile.mkdtemp(prefix="dcc-desk-", dir="/dev/shm"))
    archive, image = probe_archive()
    before = os.umask(0o077)  # as the services have it
    try:
        runtime.load(archive, image)
        yield Desk(runtime, image, root)
    finally:
        os.umask(before)
        for leftover in runtime.leftovers():
            runtime.remove(leftover.name)
        with suppress(BadOutput):
            runtime.reclaim(root)
        shutil.rmtree(root)


@contextmanager
def open_runc() -> Iterator[RuncRuntime]:
    """An agent's runtime of its own over runc, its images unpacked in memory and gone afterwards."""
    lacking = why_no_runc()
    if lacking:
        pytest.skip(f"runc's containers need {lacking}")
    with tempfile.TemporaryDirectory(prefix="dcc-runc-", dir=os.environ["XDG_RUNTIME_DIR"]) as folder:
        yield runc_runtime(Path(folder))


def runc_kept() -> RuncRuntime:
    """A runtime whose images stay from run to run, as Podman's do: big ones are unpacked once."""
    folder = Path(os.environ["XDG_RUNTIME_DIR"]) / "dcc-runc"
    return runc_runtime(folder, store=Path.home() / ".local/share/dc-compute-dev/roots")


def runc_runtime(folder: Path, instance: str | None = None, store: Path | None = None) -> RuncRuntime:
    """A runtime whose runs, and images unless `store` says otherwise, lie in this folder."""
    return RuncRuntime(
        folder / "run",
        SECCOMP,
        store or folder / "images",
        instance=instance or f"test-{uuid.uuid4()}",
        cgroups=find_cgroups(os.environ.get("DC_COMPUTE_RUNTIME_CGROUP_PARENT", ""), os.environ),
        pool_size=3,
    )


def image_cache() -> Path:
    """Where layers and archives stay from run to run."""
    folder = Path.home() / ".cache/dc-compute-dev/images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def probe_archive() -> tuple[Path, Digest]:
    """The image of `demo_images/probe.py`: nothing but Python, and its digest."""
    archive = image_cache() / f"probe-{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}.tar"
    return archive, program_image(archive, "probe", image_cache())
