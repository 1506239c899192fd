"""Runs `inside.py` on a tmpfs of its own: whoever may make a user namespace may mount one, root or not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIZE = "24m"
MOUNT_AND_RUN = 'mount -t tmpfs -o size="$1",mode=0700 tmpfs "$2" && shift 2 && exec "$@"'


def unshared(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """The command in a mount namespace of its own where `folder` is a small tmpfs."""
    whole = ["unshare", "-rm", "--propagation", "private", "sh", "-c", MOUNT_AND_RUN, "sh", SIZE, str(folder)]
    environment = {**os.environ, "SMALL_DISK": str(folder)}
    return subprocess.run(
        [*whole, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.mark.parametrize(
    "part",
    [
        "moment_costs and 0",
        "moment_costs and 1",
        "moment_costs and 2",
        "moment_costs and 3",
        "not moment_costs",
    ],
)
def test_an_agent_whose_disk_fills_up_loses_nothing(part: str, tmp_path: Path) -> None:
    if shutil.which("unshare") is None or unshared(tmp_path, "true").returncode != 0:
        pytest.skip("a user namespace with a mount of its own")

    done = unshared(
        tmp_path,
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rP",
        "-p",
        "no:cacheprovider",
        "tests/full_disk/inside.py",
        "-k",
        part,
    )

    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
