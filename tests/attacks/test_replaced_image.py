"""One admitted algorithm archive makes Podman hold other layers under the id of the *problem* image. Real Podman."""

import io
import json
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.domain.ids import Digest, digest_of, hex_of
from agent.errors import BadImage
from agent.pipeline.outputs import file_digest
from agent.ports.image_archive import inspect
from agent.ports.runtime_podman_api import ApiRefusal, PodmanApi
from agent.selftest.images import PROGRAM_ROOT, PYTHON, build_image, program_layer, python_layer
from tests.host.podman import Desk, Engine, image_cache, open_desk, open_engine

pytestmark = pytest.mark.host

PROGRAM = f"{PROGRAM_ROOT}/who.py"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    yield from open_engine()


@pytest.fixture
def desk(engine: Engine) -> Iterator[Desk]:
    yield from open_desk(engine.runtime())


def part(content: bytes, media_type: str) -> dict[str, object]:
    return {
        "mediaType": f"application/vnd.oci.image.{media_type}",
        "digest": digest_of(content),
        "size": len(content),
    }


def poisoned(honest: Path, target: Path, evil_layer: bytes, base_layer: str) -> Digest:
    """The honest archive, whole, and behind it a second index.json under another spelling, whose manifest names the honest
    config but another last layer."""
    with tarfile.open(honest) as archive:
        index = json.loads(archive.extractfile("index.json").read())  # type: ignore[union-attr]
        name = index["manifests"][0]["digest"].replace("sha256:", "blobs/sha256/")
        manifest = json.loads(archive.extractfile(name).read())  # type: ignore[union-attr]
    assert manifest["layers"][0]["digest"] == base_layer
    manifest["layers"][-1] = part(evil_layer, "layer.v1.tar")
    manifest_bytes = json.dumps(manifest).encode()
    index["manifests"] = [part(manifest_bytes, "manifest.v1+json")]
    shutil.copyfile(honest, target)
    with tarfile.open(target, "a") as archive:
        for path, content in (
            (digest_of(evil_layer).replace("sha256:", "blobs/sha256/"), evil_layer),
            (digest_of(manifest_bytes).replace("sha256:", "blobs/sha256/"), manifest_bytes),
            ("././index.json", json.dumps(index).encode()),
        ):
            entry = tarfile.TarInfo(path)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file_digest(target)


@dataclass(frozen=True)
class Archives:
    """The problem's archive, and the one that the author of an algorithm made of it."""

    honest: Path
    honest_digest: Digest
    evil: Path
    evil_digest: Digest
    said_by_honest: bytes


@pytest.fixture
def archives(engine: Engine, tmp_path: Path) -> Iterator[Archives]:
    mark = uuid.uuid4().hex
    base = python_layer(image_cache())
    said = {who: f'print("{who}", "{mark}")\n'.encode() for who in ("problem", "algorithm")}
    honest_layer, evil_layer = (program_layer(tmp_path / who, {PROGRAM: said[who]}) for who in said)
    honest, evil = tmp_path / "problem.tar", tmp_path / "algorithm.tar"
    honest_digest = build_image(honest, layers=[base, honest_layer], entrypoint=[PYTHON, PROGRAM])
    evil_digest = poisoned(honest, evil, evil_layer.path.read_bytes(), base.digest)
    yield Archives(honest, honest_digest, evil, evil_digest, f"problem {mark}\n".encode())
    remove_image(engine, honest)


def remove_image(engine: Engine, honest: Path) -> None:
    image = hex_of(inspect(honest, digest_of(b"any")).image_id)
    with suppress(ApiRefusal):
        PodmanApi(engine.socket).delete(f"/images/{image}", force="true")


def load_evil(desk: Desk, archives: Archives) -> None:
    with suppress(BadImage):  # refusing it is right
        desk.runtime.load(archives.evil, archives.evil_digest)


def what_runs(desk: Desk, archives: Archives) -> bytes:
    spec = desk.spec(image=archives.honest_digest, mounts=(desk.output(),))
    with desk.runtime.run(spec) as run:
        return run.wait().log


def test_an_algorithm_cannot_become_the_problem_image(engine: Engine, desk: Desk, archives: Archives) -> None:
    """Promise 2: what runs is not what the order names by digest, and receipts say that it was.

    Podman (4.3.1) does not hold an image's layers against the diff_ids of its config, and `PodmanImages.stored` takes an
    image for the remembered one when its id, the *config's* digest, is there. The author of an admitted algorithm takes
    the problem's archive (any storage serves it) and adds a second `index.json`, as `././index.json`, that names the
    problem's config with a layer of his own. Our checker reads the first index and finds an honest image; Podman unpacks
    both onto one path and reads the second. Once the honest image was removed (`podman rmi`, `image prune -a`, `system
    reset`, a lost disk) and his was loaded, the host runs his code in the problem's role: it sees the targets and writes
    the score. (Before af0949a `load` skipped the upload for a known id, and loading his first was enough. Every other
    difference between our tar reader and Go's in test_image_parsers.py serves as well.)
    Mend: agent/ports/image_archive.py `_members`: refuse every spelling of a name but the normal one, global headers,
    headers that do not parse; and agent/ports/runtime_podman_images.py `_upload`: send an archive written anew from the
    checked members, never the author's bytes.
    """
    desk.runtime.load(archives.honest, archives.honest_digest)
    remove_image(engine, archives.honest)
    load_evil(desk, archives)

    desk.runtime.load(archives.honest, archives.honest_digest)

    assert what_runs(desk, archives) == archives.said_by_honest


def test_an_algorithm_cannot_keep_the_problem_image_out(desk: Desk, archives: Archives) -> None:
    """Promise 1: the same archive, loaded before the honest one. Podman then refuses the honest archive ("uses a
    different top layer: that ID is already in use"), which is BadImage: every test task on this host FAILS at its first
    attempt, for ever.

    Mend: as above.
    """
    load_evil(desk, archives)

    desk.runtime.load(archives.honest, archives.honest_digest)

    assert what_runs(desk, archives) == archives.said_by_honest
