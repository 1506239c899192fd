"""Prometheus' own checker, where `install.sh --deps` put it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=str(Path(sys.executable).parent))

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None,
    reason="there is no promtool: `sh install.sh --deps` takes it out of Debian's package prometheus",
)


def promtool(*arguments: str, told: str = "") -> subprocess.CompletedProcess[str]:
    """What it says of this."""
    assert PROMTOOL is not None
    return subprocess.run(
        [PROMTOOL, *arguments], input=told, capture_output=True, text=True, timeout=120, check=False
    )
