"""The environment of the workload tests, below `build/`: what real algorithms are made of and no agent needs.

    python -m agent.devkit.workloads      makes it, or says in a second that it is as it should be

The locked packages come from requirements-workloads.lock. torch is in no lock: an index may offer a CUDA build of gigabytes
under the same version, so pip is asked first what it would take (pip's own configuration may name a CPU build), and torch is
left out, with a sentence, where that is not a CPU build.
"""

import fcntl
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

TORCH = "torch==2.13.0"
CHECKOUT = Path(__file__).resolve().parent.parent.parent
LOCK = CHECKOUT / "requirements-workloads.lock"
ENVIRONMENT = CHECKOUT / "build" / "workloads"
OFFER_TIMEOUT_S = 120
GPU = re.compile(r"(nvidia|cuda|triton|rocm|pytorch-triton)", re.IGNORECASE)


def interpreter(environment: Path = ENVIRONMENT) -> Path:
    """The environment's Python; it may not be there yet."""
    return environment / "bin" / "python"


def packages(environment: Path = ENVIRONMENT) -> Path:
    """The folder of its packages."""
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def why_not(environment: Path = ENVIRONMENT) -> str | None:
    """What a test of workloads lacks, as half a sentence; None when the environment is as the lock says."""
    if _read(environment / ".made-from") != _stamp():
        return "the packages of requirements-workloads.lock: run make test-host"
    return None


def why_no_torch(environment: Path = ENVIRONMENT) -> str | None:
    """Why torch is not there, as half a sentence; None when it is."""
    return why_not(environment) or _read(environment / ".no-torch") or None


def make(environment: Path = ENVIRONMENT) -> None:
    """Make the environment, or what is missing of it. Two at once: the second waits, and finds it made."""
    environment.parent.mkdir(exist_ok=True)
    with environment.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if why_not(environment) is not None:
            _say(f"putting the packages of {LOCK.name} into {environment.relative_to(CHECKOUT)}")
            _make(environment)
        if _read(environment / ".no-torch") is not None:
            _add_torch(environment)
        told = _read(environment / ".no-torch")
        _say(f"{environment.relative_to(CHECKOUT)} is ready" + (f"; without torch: {told}" if told else ""))


def _make(environment: Path) -> None:
    shutil.rmtree(environment, ignore_errors=True)
    base = Path(getattr(sys, "_base_executable", sys.executable))
    _run([base, "-m", "venv", environment])
    uv = Path(sys.executable).with_name("uv")
    words = ["pip", "sync", "--quiet", "--system-certs", "--require-hashes", "--compile-bytecode"]
    _run([uv, *words, "--link-mode", "copy", "--python", interpreter(environment), LOCK])
    (environment / ".no-torch").write_text("nobody has asked for it yet")
    _open_to_everybody(environment)
    (environment / ".made-from").write_text(_stamp())


def _add_torch(environment: Path) -> None:
    """Install torch where a CPU build is offered; else write down why not."""
    refusal = _refusal_of_offer(environment)
    if refusal is not None:
        (environment / ".no-torch").write_text(refusal)
        return
    _say(f"adding {TORCH}, of which a CPU build is offered")
    _run([interpreter(environment), "-m", "pip", "install", "--quiet", "--no-deps", TORCH])
    _open_to_everybody(environment)
    (environment / ".no-torch").unlink()


def _refusal_of_offer(environment: Path) -> str | None:
    """Why what pip would install as torch is not wanted, as half a sentence; None for a CPU build. Nothing is installed."""
    words = [
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--quiet",
        "--report",
        "-",
        TORCH,
    ]
    try:
        told = subprocess.run(
            [interpreter(environment), "-m", *words],
            capture_output=True, text=True, timeout=OFFER_TIMEOUT_S, check=True,
        )  # fmt: skip
        (offer,) = json.loads(told.stdout)["install"]
    except subprocess.TimeoutExpired:
        return f"a CPU build of {TORCH} (pip did not say within {OFFER_TIMEOUT_S} s what it would take)"
    except (subprocess.CalledProcessError, ValueError, KeyError):
        return f"a build of {TORCH} for this Python and processor (pip finds none)"
    return refusal(str(offer["metadata"]["version"]), offer["metadata"].get("requires_dist", ()))


def refusal(version: str, requirements: Iterable[str]) -> str | None:
    """Why this build of torch is not wanted, as half a sentence; None when it is one for the CPU.

    `requirements`: as its metadata has them. Those of another processor or of an extra do not count.
    """
    mine = {"x86_64": "x86_64", "aarch64": "aarch64"}.get(platform.machine(), "")
    for requirement in requirements:
        name, _, marker = requirement.partition(";")
        other = {"x86_64", "aarch64"} & set(re.findall(r'platform_machine == "(\w+)"', marker)) - {mine}
        if GPU.match(name) and "extra ==" not in marker and not other:
            return f"a CPU build of {TORCH} (pip's index offers {version}, which requires {name.strip()})"
    return None


def _stamp() -> str:
    """What an environment is made from; a change of any part makes it anew."""
    return f"{sys.version}\n{TORCH}\n{hashlib.sha256(LOCK.read_bytes()).hexdigest()}\n"


def _open_to_everybody(folder: Path) -> None:
    """The unprivileged user, who runs the tests, reads what root made."""
    _run(["chmod", "-R", "u+rwX,go+rX", folder])


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True)


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


def _say(words: str) -> None:
    print(f"workloads: {words}", flush=True)


if __name__ == "__main__":
    make()
