"""The short form of `make chaos`: everything is killed, cut and mangled for a while, and nothing is lost or doubled."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.devkit.consortium import NotStarted
from tests.chaos.run import run
from tests.chaos.stage import find_engines
from tests.host.podman import image_cache

pytestmark = [
    pytest.mark.chain,
    pytest.mark.host,
    pytest.mark.xdist_group("chain"),
    pytest.mark.timeout(500),
]

SEED = 5
DURATION_S = 25.0
SETTLE_S = 300.0  # at most: it ends as soon as the checker finds nothing


@pytest.fixture
def folders() -> Iterator[tuple[Path, Path]]:
    """(on a disk, in memory)"""
    folder = Path(tempfile.mkdtemp(prefix="dcc-chaos-", dir=image_cache().parent))
    memory = Path(tempfile.mkdtemp(prefix="dcx-", dir=os.environ["XDG_RUNTIME_DIR"]))
    try:
        yield folder, memory
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(memory, ignore_errors=True)


def test_whatever_is_killed_cut_and_mangled_nothing_is_lost_and_nothing_done_twice(
    folders: tuple[Path, Path],
) -> None:
    try:
        find_engines("mixed")
    except NotStarted as lacking:
        pytest.skip(str(lacking))
    said: list[str] = []

    outcome = run(
        seed=SEED,
        duration_s=DURATION_S,
        settle_s=SETTLE_S,
        runtime="mixed",
        folder=folders[0],
        memory=folders[1],
        is_strict=True,
        say=said.append,
    )

    assert outcome.violations == (), f"{outcome.line}\n{(folders[0] / 'journal.jsonl').read_text()}"
    assert outcome.line.startswith("0 violations: ")
    assert outcome.ends["done"] >= 3
    assert sum(count for act, count in outcome.done.items() if act.startswith(("kill", "fault"))) >= 3
