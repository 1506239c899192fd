"""Tests in this folder run real containers. Without an unprivileged user and Podman they are skipped, and say so."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.ports.runtime import Runtime
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


@pytest.fixture(params=["podman", "runc"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    """Every runtime in turn, with images of its own under runc: a weakened cage may write to their roots."""
    if request.param == "podman":
        yield request.getfixturevalue("engine").runtime()
    else:
        with open_runc() as runtime:
            yield runtime


@pytest.fixture
def workspaces() -> Iterator[Path]:
    """A folder in memory for workspaces, left as empty as it was."""
    folder = Path(tempfile.mkdtemp(prefix="dcc-work-", dir="/dev/shm"))
    yield folder
    left = os.listdir(folder)
    shutil.rmtree(folder)
    assert left == []
