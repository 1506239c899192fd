"""Loads and discards that were killed half way: the next sweep ends them, and what is still going on is let alone."""

import fcntl
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.domain.ids import Digest, hex_of
from agent.ports.image_archive import inspect
from agent.ports.runtime_podman_api import ApiRefusal, PodmanApi
from agent.selftest.images import build_image, program_layer
from tests.host.podman import ROOT, Engine, open_engine

pytestmark = pytest.mark.host

DIES = """
import os, signal, sys
from pathlib import Path
from agent.domain.ids import Digest
from agent.ports.runtime_podman_api import PodmanApi
from agent.ports.runtime_podman_images import PodmanImages

def die(*_): os.kill(os.getpid(), signal.SIGKILL)

socket, store, archive, digest, step, what = sys.argv[1:]
setattr(PodmanImages, step, die)
images = PodmanImages(PodmanApi(Path(socket)), Path(store))
images.load(Path(archive), Digest(digest)) if what == "load" else images.discard(Digest(digest))
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    yield from open_engine()


@dataclass(frozen=True)
class Spare:
    """An image that nobody else has, and whether Podman and the store have it."""

    engine: Engine
    archive: Path
    digest: Digest

    def die(self, what: str, step: str) -> None:
        """A process begins it and is killed where it would take this step."""
        words = [str(self.engine.socket), str(self.engine.store), str(self.archive), self.digest, step, what]
        done = subprocess.run([sys.executable, "-B", "-c", DIES, *words], cwd=ROOT, check=False)
        assert done.returncode == -signal.SIGKILL

    def is_in_podman(self) -> bool:
        image = hex_of(inspect(self.archive, self.digest).image_id)
        try:
            PodmanApi(self.engine.socket).get(f"/images/{image}/exists")
        except ApiRefusal as refusal:
            if refusal.status != 404:
                raise
            return False
        return True

    def files(self) -> set[str]:
        return {path.suffix for path in self.engine.store.glob(f"{hex_of(self.digest)}*")}


@pytest.fixture
def spare(engine: Engine, tmp_path: Path) -> Iterator[Spare]:
    layer = program_layer(tmp_path / "cache", {"/mark": uuid.uuid4().bytes})
    digest = build_image(tmp_path / "spare.tar", layers=[layer], entrypoint=["/mark"])
    engine.runtime().clear_images()
    yield Spare(engine, tmp_path / "spare.tar", digest)
    engine.runtime().discard(digest)


@pytest.mark.parametrize(("step", "is_there"), [("_upload", False), ("_name", True), ("remember", True)])
def test_a_load_that_was_killed_is_cleared(spare: Spare, step: str, is_there: bool) -> None:
    spare.die("load", step)
    assert (spare.files(), spare.is_in_podman()) == ({".loading"}, is_there)

    assert spare.engine.runtime().clear_images() == 1

    assert (spare.files(), spare.is_in_podman()) == (set(), False)


def test_a_load_that_was_killed_can_simply_be_done_again(spare: Spare) -> None:
    spare.die("load", "_name")

    spare.engine.runtime().load(spare.archive, spare.digest)

    assert (spare.files(), spare.is_in_podman()) == ({".json"}, True)
    assert spare.engine.runtime().clear_images() == 0


def test_a_discard_that_was_killed_is_ended(spare: Spare) -> None:
    spare.engine.runtime().load(spare.archive, spare.digest)
    spare.die("discard", "_delete")
    assert spare.engine.runtime().image(spare.digest) is None
    assert (spare.files(), spare.is_in_podman()) == ({".leaving"}, True)

    assert spare.engine.runtime().clear_images() == 1

    assert (spare.files(), spare.is_in_podman()) == (set(), False)


def test_a_load_that_goes_on_is_let_alone(spare: Spare) -> None:
    spare.die("load", "_name")
    lock = os.open(spare.engine.store / f"{hex_of(spare.digest)[0]}.lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)

    try:
        assert spare.engine.runtime().clear_images() == 0
        assert (spare.files(), spare.is_in_podman()) == ({".loading"}, True)
    finally:
        os.close(lock)
    assert spare.engine.runtime().clear_images() == 1


def test_an_image_of_two_archives_stays_until_the_last_is_discarded(spare: Spare, tmp_path: Path) -> None:
    other = tmp_path / "other.tar"
    other.write_bytes(spare.archive.read_bytes() + bytes(512))  # the same image in another archive
    other_digest = Digest("sha256:" + uuid.uuid4().hex * 2)
    runtime = spare.engine.runtime()
    runtime.load(spare.archive, spare.digest)
    runtime.load(other, other_digest)

    assert runtime.discard(spare.digest)

    assert spare.is_in_podman()
    assert runtime.image(other_digest) is not None
    assert runtime.discard(other_digest)
    assert not spare.is_in_podman()
