"""`make demo` as a test: the whole walk, and everything it promises to see."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.host.podman import Engine

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.chain
@pytest.mark.host
@pytest.mark.xdist_group("chain")
@pytest.mark.timeout(400)
def test_the_demo_sees_everything_it_promises(engine: Engine) -> None:
    command = [sys.executable, "-m", "agent.devkit.demo"]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "16 of 16 things seen" in done.stdout
    assert engine.socket.exists()
