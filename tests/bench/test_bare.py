"""The baselines run what they say they run: the image's own program, in a container, and nothing of this agent's."""

from pathlib import Path

import pytest

from agent.bench.bare import BarePodman, BareRunc, default_network, noop_image, unpacked
from agent.devkit.podman_service import checkout_folders, podman_words, why_no_runc
from agent.domain.ids import Digest
from agent.ports.runtime_podman_api import PodmanApi
from tests.host.podman import Engine, image_cache, open_engine

pytestmark = pytest.mark.host
engine = pytest.fixture(scope="module")(open_engine)


@pytest.fixture(scope="module")
def image() -> tuple[Path, Digest]:
    if lacking := why_no_runc():
        pytest.skip(f"real containers need {lacking}")
    return noop_image(image_cache())


@pytest.mark.parametrize("has_ids", [False, True])
def test_bare_runc_runs_the_images_program(tmp_path: Path, image: tuple[Path, Digest], has_ids: bool) -> None:
    root = unpacked(*image, tmp_path / "root")

    assert BareRunc(tmp_path, root, ["/usr/bin/true"], has_ids=has_ids).run() > 0
    with pytest.raises(RuntimeError, match="/usr/bin/false"):
        BareRunc(tmp_path, root, ["/usr/bin/false"], has_ids=has_ids).run()
    assert list((tmp_path / "state").iterdir()) == []


def test_podman_run_runs_the_images_program(engine: Engine, image: tuple[Path, Digest]) -> None:
    runtime = engine.runtime()
    runtime.load(*image)
    stored = runtime._images.stored(image[1])
    assert stored is not None
    runtime_dir, _ = checkout_folders()
    podman = podman_words(storage_of(engine), runtime_dir)

    assert BarePodman(podman, stored.id, network=default_network()).run() > 0
    with pytest.raises(RuntimeError, match="0000"):
        BarePodman(podman, "0" * 64, network=default_network()).run()


def storage_of(engine: Engine) -> Path:
    """Where the service at hand keeps its images."""
    return Path(PodmanApi(engine.socket).get("/info")["store"]["graphRoot"])
