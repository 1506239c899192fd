"""The world that the stories of the pipeline happen in."""

from pathlib import Path

import pytest

from tests.pipeline.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)
