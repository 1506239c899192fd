"""A short run of one part of the bench as `make bench` makes it, and what every part must tell. No time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agent.bench.figures import TARGETS
from agent.devkit.podman_service import why_not

ROOT = Path(__file__).resolve().parent.parent.parent
# Which parts `make test` runs, and which are left to tests/host/slow: those that start three hosts or keep a whole minute busy.
QUICK = {"task", "intake", "stream", "scale", "idle", "parallel", "cage"}
SLOW = {"hop", "model"}
WITHOUT_TARGET = {"cage", "model"}


def run_short(part: str) -> None:
    """Run it, and hold its document against the shape that readers of build/bench.json count on."""
    if lacking := why_not():
        pytest.skip(f"real containers need {lacking}")

    done = subprocess.run(
        [sys.executable, "-m", "agent.bench", "--short", "--parts", part, "--commit", "abc"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["version"], told["rounds"], told["short"], told["commit"]) == (2, 1, True, "abc")
    assert {"dc-compute", "python", "sqlite", "openssl"} <= set(told["versions"])
    assert {"cpus", "kernel", "processor", "cgroups", "oci_runtime", "load"} == set(told["machine"])
    assert told["rows"]
    assert all(one["part"] == part and one["samples"] for one in told["rows"])
    assert set(told["figures"]) & set(TARGETS) or part in WITHOUT_TARGET
    assert part in done.stderr
