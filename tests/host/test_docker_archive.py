"""A docker-archive, whose layers are gzipped, comes into real Podman as the archive that we write anew, and runs."""

import gzip
import io
import json
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.pipeline.outputs import file_digest
from agent.selftest.images import PROGRAM_ROOT, PYTHON, build_image, program_layer, python_layer
from tests.host.podman import Desk, Engine, image_cache, open_desk, open_engine

pytestmark = pytest.mark.host

PROGRAM = f"{PROGRAM_ROOT}/say.py"


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    yield from open_engine()


@pytest.fixture
def desk(engine: Engine) -> Iterator[Desk]:
    yield from open_desk(engine.runtime())


def as_docker(oci: Path, target: Path) -> Path:
    """The same image as `docker save` would write it."""
    with tarfile.open(oci) as source, tarfile.open(target, "w") as archive:

        def blob(name: str) -> bytes:
            return source.extractfile(name.replace("sha256:", "blobs/sha256/")).read()  # type: ignore[union-attr]

        def put(name: str, content: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))

        manifest = json.loads(blob(json.loads(blob("index.json"))["manifests"][0]["digest"]))
        names = [f"layers/{number}/layer.tar" for number, _ in enumerate(manifest["layers"])]
        put("theirs.json", blob(manifest["config"]["digest"]))
        for name, layer in zip(names, manifest["layers"], strict=True):
            put(name, gzip.compress(blob(layer["digest"]), compresslevel=1))
        paper = {"Config": "theirs.json", "RepoTags": ["localhost/theirs:latest"], "Layers": names}
        put("manifest.json", json.dumps([paper]).encode())
    return target


def test_a_docker_archive_with_gzipped_layers_runs(desk: Desk, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    layers = [python_layer(image_cache()), program_layer(tmp_path, {PROGRAM: f"print('{mark}')".encode()})]
    build_image(tmp_path / "oci.tar", layers=layers, entrypoint=[PYTHON, PROGRAM])
    archive = as_docker(tmp_path / "oci.tar", tmp_path / "docker.tar")
    digest = file_digest(archive)

    desk.runtime.load(archive, digest)

    with desk.runtime.run(desk.spec(image=digest, mounts=(desk.output(),))) as run:
        assert run.wait().log == f"{mark}\n".encode()
