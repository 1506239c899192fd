"""README, five-minute start and orchestrator's guide, followed to the word in the shell of `make town`."""

import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.docs_blocks import blocks
from tests.host.podman import Engine
from tests.test_docs import ROOT

# What whoever follows the page to its end has read.
ENDS = {
    "README.md": ["verified: 3 receipts hold and link"],
    "docs/orchestrators.md": ['"state":"cancelled"', "share-withheld"],
    "docs/start.md": ["verified: 3 receipts hold and link", "key share"],
}


def in_town(*command: str) -> "subprocess.CompletedProcess[str]":
    """How this command ended among the hospitals."""
    town: Sequence[str] = [sys.executable, "-m", "agent.devkit.town", *command]
    return subprocess.run(town, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.chain
@pytest.mark.host
@pytest.mark.slow
@pytest.mark.xdist_group("chain")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", sorted({block.page for block in blocks("town")}))
def test_who_follows_the_page_sees_what_it_promises(page: str, engine: Engine) -> None:
    typed = "".join(block.text for block in blocks("town") if block.page == page)

    done = in_town("sh", "-euc", typed)

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    for words in ENDS[page]:
        assert words in done.stdout
    assert engine.socket.exists()
