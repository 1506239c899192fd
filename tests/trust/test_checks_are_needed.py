"""Each numbered check of a hand-off is taken out in turn: its own tests must then fail, and those of the others hold."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "tests.trust.without_check")
NUMBERED = " or ".join(f"test_{number}" for number in range(8))


@pytest.mark.parametrize("check", [str(number) for number in range(8)])
def test_taking_a_check_out_fails_the_tests_of_that_check(check: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *OPTIONS, "-k", NUMBERED, "tests/trust/test_handoff.py"],
        cwd=ROOT,
        env={**os.environ, "CHECK": check, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    failed = set(re.findall(r"^FAILED \S+::test_(\d)_", done.stdout, re.MULTILINE))
    assert done.returncode == 1, done.stdout + done.stderr
    assert failed == {check}, done.stdout
