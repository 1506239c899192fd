"""Tests in this folder take minutes: `make test-host` runs them, `make test` does not."""

from collections.abc import Iterator

import pytest

from tests.host.podman import Engine, open_engine
from tests.host.runtimes import RUNTIMES
from tests.host.slow.cages import Cage, open_cage
from tests.host.slow.workloads import Outside, need, outside


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The Podman service of this test process."""
    yield from open_engine()


@pytest.fixture(scope="session", params=RUNTIMES)
def cage(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Cage]:
    """The real cage of one runtime with the image of the workloads."""
    need("kernel")
    yield from open_cage(request.param, engine)


@pytest.fixture(scope="session")
def outsides() -> dict[str, Outside]:
    """What was seen outside so far, by workload; `seen_outside` fills it."""
    return {}


@pytest.fixture
def seen_outside(
    request: pytest.FixtureRequest, outsides: dict[str, Outside], tmp_path_factory: pytest.TempPathFactory
) -> Outside:
    """The workload of this test, run once outside any container."""
    workload = request.getfixturevalue("workload")
    need(workload)
    if workload not in outsides:
        outsides[workload] = outside(workload, tmp_path_factory.mktemp(workload))
    return outsides[workload]
