"""docs/algorithms.md, followed to the word: the page's program, made into an image, tried in real containers."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.docs_blocks import blocks
from tests.host.podman import Engine
from tests.test_docs import FENCE, ROOT, document


@pytest.mark.host
@pytest.mark.slow
def test_who_follows_the_page_sees_the_model_trained_twice_and_the_prediction(engine: Engine) -> None:
    (program,) = [
        text for kind, text in FENCE.findall(document("docs/algorithms.md").text) if kind == "python"
    ]
    typed = "".join(block.text for block in blocks("author"))
    folder = Path(tempfile.mkdtemp(prefix="dcc-author-", dir="/dev/shm"))
    (folder / "algorithm.py").write_text(program)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DC_COMPUTE_HOME": str(folder / "home"),
        "DC_COMPUTE_RUNTIME_PODMAN_SOCKET": str(engine.socket),
    }

    done = subprocess.run(
        ["sh", "-euc", typed], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 tasks done: a host takes what they left" in done.stdout
    assert "begins    low" in done.stdout
    assert {path.name.partition("-")[0] for path in (folder / "kept").iterdir()} == {"01", "02", "03"}
    shutil.rmtree(folder)
