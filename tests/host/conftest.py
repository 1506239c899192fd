"""Tests in this folder run real containers. Without an unprivileged user and Podman they are skipped, and say so."""

from collections.abc import Iterator

import pytest

from tests.host.podman import Desk, Engine, open_desk, open_engine


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """The Podman service of this test process."""
    yield from open_engine()


@pytest.fixture
def desk(engine: Engine) -> Iterator[Desk]:
    """A fresh workspace and runtime with the probe image."""
    yield from open_desk(engine)
