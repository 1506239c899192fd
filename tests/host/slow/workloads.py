"""Real workloads for the slow tests: their data, their image, and the same program outside any container, watched by strace."""

import functools
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.devkit import workloads
from agent.domain.ids import Digest
from agent.selftest.images import (
    ENV,
    PROGRAM_ROOT,
    PYTHON,
    build_image,
    packages_layer,
    program_layer,
    python_layer,
)
from tests.host.podman import image_cache

GUESTS = Path(__file__).parent / "guests"
OUTSIDE_TIMEOUT_S = 250
LIBRARIES = ("lightgbm", "pandas", "pyarrow", "scikit-learn", "xgboost-cpu")

# Workload (a file of guests/) -> the real data that it learns.
WORKLOADS = {
    "numpy_scipy": "breast_cancer",
    "sklearn_loky": "breast_cancer",
    "sklearn_threading": "digits",
    "processes": "breast_cancer",
    "pandas_arrow": "breast_cancer",
    "xgboost_hist": "breast_cancer",
    "lightgbm_trees": "breast_cancer",
    "torch_net": "digits",
    "kernel": "breast_cancer",
}


@dataclass(frozen=True)
class Told:
    """What a run of a guest said and did. `calls`: the system calls that strace saw; None when nobody watched."""

    said: dict[str, Any]
    calls: frozenset[str] | None


@dataclass(frozen=True)
class Outside:
    """A workload trained and asked outside any container."""

    trained: Told
    asked: Told
    predictions: bytes


def need(workload: str) -> None:
    """Skip when this workload's libraries are not there."""
    lacking = workloads.why_no_torch() if workload == "torch_net" else workloads.why_not()
    if lacking:
        pytest.skip(f"{workload} needs {lacking}")


@functools.cache
def dataset(name: str, *, has_target: bool) -> bytes:
    """A real dataset of scikit-learn's as the guests read it: CSV, the last column `target`."""
    from sklearn import datasets

    loaded = getattr(datasets, f"load_{name}")()
    columns = [f"c{number}" for number in range(loaded.data.shape[1])]
    table = loaded.data
    if has_target:
        columns, table = [*columns, "target"], np.column_stack([table, loaded.target])
    lines = [",".join(columns), *(",".join(repr(float(value)) for value in row) for row in table)]
    return ("\n".join(lines) + "\n").encode()


def lay_out(volume: Path, workload: str) -> None:
    """The folders of the container contract below `volume`, open to every user, with the workload's data."""
    for name in ("train/pred", "test/pred", "model"):
        (volume / name).mkdir(parents=True)
        (volume / name).chmod(0o777)
    (volume / "train" / workload).write_bytes(dataset(WORKLOADS[workload], has_target=True))
    (volume / "test" / workload).write_bytes(dataset(WORKLOADS[workload], has_target=False))


@functools.cache
def image() -> tuple[Path, Digest]:
    """The image of every workload: the libraries, torch where it is to be had, and the guests."""
    cache, site = image_cache(), workloads.packages()
    layers = [python_layer(cache), packages_layer(cache, LIBRARIES, site=site)]
    if workloads.why_no_torch() is None:
        layers.append(packages_layer(cache, ["torch"], site=site, has_sources=True))
    sources = {f"{PROGRAM_ROOT}/{path.name}": path.read_bytes() for path in sorted(GUESTS.glob("*.py"))}
    layers.append(program_layer(cache, sources))
    archive = cache / "workloads.tar"
    digest = build_image(
        archive, layers=layers, entrypoint=[PYTHON, "-u", f"{PROGRAM_ROOT}/main.py"], env=ENV
    )
    return archive, digest


def outside(workload: str, volume: Path) -> Outside:
    """Train and ask it with the same interpreter and packages, environment and data."""
    lay_out(volume, workload)
    trained = run_outside(volume, "-V", str(volume), "-T", "train")
    asked = run_outside(volume, "-V", str(volume), "-T", "predict")
    return Outside(trained, asked, (volume / "test/pred" / workload).read_bytes())


def run_outside(folder: Path, *args: str) -> Told:
    """One run of the guests' entry point. Raises: AssertionError with what it printed when it fails."""
    seen = folder / "calls.txt"
    tracing = (
        ["strace", "-f", "-qq", "-c", "-U", "name,calls,errors", "-o", str(seen)]
        if shutil.which("strace")
        else []
    )
    environment = {name: value for name, value in ENV.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*tracing, str(workloads.interpreter()), "-u", str(GUESTS / "main.py"), *args],
        env=environment | {"PATH": os.environ["PATH"], "HOME": "/tmp", "TMPDIR": "/tmp"},
        capture_output=True,
        text=True,
        timeout=OUTSIDE_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Told(last_line(done.stdout), calls_in(seen.read_text()) if tracing else None)


def last_line(text: str) -> dict[str, Any]:
    """The last line that is JSON."""
    (*_, last) = (line for line in text.splitlines() if line.startswith("{"))
    return dict(json.loads(last))


def calls_in(table: str) -> frozenset[str]:
    """The names in strace's summary, which may begin with `syscall` and end with a `total`."""
    words = re.findall(r"^(\w+) +\d+", table, flags=re.MULTILINE)
    return frozenset(words) - {"syscall", "total"}
