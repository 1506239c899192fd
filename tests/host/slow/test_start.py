"""The README and the five-minute start, followed to the word: every block that belongs into the shell of `make town`."""

import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.docs_blocks import blocks
from tests.host.podman import Engine
from tests.test_docs import ROOT

PAGES = sorted({block.page for block in blocks("town")})


def in_town(*command: str) -> "subprocess.CompletedProcess[str]":
    """How this command ended among the hospitals."""
    town: Sequence[str] = [sys.executable, "-m", "agent.devkit.town", *command]
    return subprocess.run(town, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.chain
@pytest.mark.host
@pytest.mark.slow
@pytest.mark.xdist_group("chain")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", PAGES)
def test_who_follows_the_page_ends_with_a_verified_receipt(page: str, engine: Engine) -> None:
    typed = "".join(block.text for block in blocks("town") if block.page == page)

    done = in_town("sh", "-euc", typed)

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "verified: 3 receipts hold and link" in done.stdout
    assert engine.socket.exists()


def test_the_readme_and_the_start_have_such_blocks() -> None:
    assert PAGES == ["README.md", "docs/start.md"]
