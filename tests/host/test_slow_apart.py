"""`make test` stays short: what takes minutes lies in folders that pytest enters only when they are named."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
APART = [folder for folder in ("tests/host/slow", "tests/host/vm") if (ROOT / folder).is_dir()]


def collected(folder: str) -> set[str]:
    """The files that pytest would run when told this folder."""
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", folder],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return set(re.findall(r"^(tests/[\w/]+\.py)", told, flags=re.MULTILINE))


def test_the_slow_tests_are_not_among_those_of_the_folder_above() -> None:
    here = collected("tests/host")

    assert "tests/host/test_cage.py" in here
    assert not [name for name in here if name.startswith(("tests/host/slow/", "tests/host/vm/"))]


@pytest.mark.parametrize("folder", APART)
def test_a_slow_folder_that_is_named_is_entered(folder: str) -> None:
    assert collected(folder)


def test_make_test_host_runs_every_folder_that_is_kept_apart() -> None:
    told = (ROOT / "Makefile").read_text().partition("\ntest-host:")[2].partition("\n\n")[0]

    assert all(folder in told for folder in ("tests/host/slow", "tests/host/vm"))
