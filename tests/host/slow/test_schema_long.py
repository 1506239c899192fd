"""The run over /openapi.json once more, with more calls a route."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.timeout(1500)
def test_more_calls_by_chance_are_answered_as_they_are_described() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "tests/api/test_schema.py",
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "DC_COMPUTE_EXAMPLES": "20"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-20_000:]
