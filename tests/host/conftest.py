"""Tests in this folder run real containers. Without an unprivileged user and Podman they are skipped, and say so."""

from collections.abc import Iterator

import pytest

from tests.host.podman import Desk, Engine, open_desk, open_engine, open_runc


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The Podman service of this test process."""
    yield from open_engine()


@pytest.fixture(params=["podman", "runc"])
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    """A fresh workspace and runtime with the probe image, for every runtime in turn."""
    if request.param == "podman":
        yield from open_desk(request.getfixturevalue("engine").runtime())
    else:
        with open_runc() as runtime:
            yield from open_desk(runtime)


@pytest.fixture
def podman_desk(engine: Engine) -> Iterator[Desk]:
    """The same, for what only Podman does."""
    yield from open_desk(engine.runtime())


@pytest.fixture
def runc_desk() -> Iterator[Desk]:
    """The same, for what only runc does."""
    with open_runc() as runtime:
        yield from open_desk(runtime)
