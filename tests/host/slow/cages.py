"""The real cage of each runtime of this host, with the image of the workloads, and the runs of the container contract in it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest, digest_from_hex, hex_of
from agent.errors import BadOutput
from agent.ports.runtime import Mount, RunKind, RunOutcome, RunSpec, Runtime
from tests.host.podman import MIB, Engine, image_cache
from tests.host.runtimes import runtime_of
from tests.host.slow.workloads import image

CEILINGS = Ceilings(
    wall_s=280,
    memory_bytes=4 << 30,
    cpu_millis=2000,
    pids=256,
    open_files=1024,
    output_bytes=1 << 30,
    output_files=1000,
    log_bytes=MIB,
    tmp_bytes=256 * MIB,
)

_numbers = count()


@dataclass(frozen=True)
class Cage:
    """One runtime with the workloads' image loaded, and a workspace in memory."""

    runtime: Runtime
    image: Digest
    root: Path

    def run(self, kind: RunKind, args: str, *mounts: Mount) -> RunOutcome:
        """The end of one run of the image."""
        spec = RunSpec(
            name=f"w-{next(_numbers)}",
            labels={"job": "w.0"},
            image=self.image,
            kind=kind,
            args=tuple(args.split()),
            mounts=mounts,
            ceilings=CEILINGS,
            accept_missing=frozenset({"cpu_millis", "memory_bytes"}),
        )
        with self.runtime.run(spec) as running:
            return running.wait()

    def train(self, volume: Path) -> RunOutcome:
        """The contract's `train`: data read-only, `pred` and the model writable."""
        return self.run(
            RunKind.TRAIN,
            "-V /data -T train",
            Mount(volume / "train", "/data/train"),
            Mount(self.fresh("pred"), "/data/train/pred", is_writable=True),
            Mount(volume / "model", "/data/model", is_writable=True),
        )

    def predict(self, volume: Path, pred: Path) -> RunOutcome:
        """The contract's `predict`: all read-only but its own folder."""
        return self.run(
            RunKind.PREDICT,
            "-V /data -T predict",
            Mount(volume / "test", "/data/test"),
            Mount(pred, "/data/test/pred", is_writable=True),
            Mount(self.harvest(volume / "model"), "/data/model"),
        )

    def fresh(self, name: str) -> Path:
        """An empty folder that every guest may write."""
        path = self.root / f"{name}-{next(_numbers)}"
        path.mkdir()
        path.chmod(0o777)
        return path

    def harvest(self, folder: Path) -> Path:
        """What a guest left there, in a folder of the agent's that every guest may read."""
        self.runtime.reclaim(folder)
        kept = self.fresh("harvest")
        kept.chmod(0o755)
        for path in folder.iterdir():
            shutil.copyfile(path, kept / path.name)
            (kept / path.name).chmod(0o644)
        return kept


def open_cage(name: str, engine: Engine) -> Iterator[Cage]:
    """The cage of this runtime; its workspace is emptied afterwards, whatever guests left."""
    root = Path(tempfile.mkdtemp(prefix="dcc-workloads-", dir="/dev/shm"))
    root.chmod(0o755)
    runtime = runtime_of(name, engine)
    archive, digest = image()
    runtime.load(archive, digest)
    sweep_older(runtime, digest)
    try:
        yield Cage(runtime, digest, root)
    finally:
        for leftover in runtime.leftovers():
            runtime.remove(leftover.name)
        with suppress(BadOutput):
            runtime.reclaim(root)
        shutil.rmtree(root)


def sweep_older(runtime: Runtime, digest: Digest) -> None:
    """Discard the workloads' earlier images: each is over a gigabyte, under Podman again for its user map.

    Every digest that was ever loaded is noted, for a storage that is not in use today may still have it.
    """
    note = image_cache() / "workloads.loaded"
    known = set(note.read_text().split()) if note.exists() else set()
    note.write_text("\n".join(sorted(known | {hex_of(digest)})) + "\n")
    for older in known - {hex_of(digest)}:
        runtime.discard(digest_from_hex(older))  # one in use stays
