"""A rootless Podman service of one's own, for the demo and the tests: started, waited for, and gone with its process group.

It runs as whoever calls, who must not be root and must have subordinate ids. On a host, systemd runs it instead.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
MOST_ROOTS = 9
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
CHECKOUT = Path(__file__).resolve().parent.parent.parent


class NoPodman(Exception):
    """Containers cannot run here; the message says what is missing."""


def why_not() -> str | None:
    """What this user lacks to run containers, as half a sentence; None when nothing is missing."""
    if os.getuid() == 0:
        return "an unprivileged user (root runs them through .ci/rootless, as `make test` does)"
    missing = [name for name in ("podman", "conmon", "newuidmap", "newgidmap") if not shutil.which(name)]
    if missing:
        return f"the programs {', '.join(missing)}: run install.sh --deps"
    if not (shutil.which("runc") or shutil.which("crun")):
        return "runc or crun: run install.sh --deps"
    if not os.environ.get("XDG_RUNTIME_DIR"):
        return "XDG_RUNTIME_DIR"
    return None


def why_no_runc() -> str | None:
    """What this user lacks to run containers with runc alone, as half a sentence; None when nothing is missing."""
    if os.getuid() == 0:
        return "an unprivileged user (root runs them through .ci/rootless, as `make test` does)"
    missing = [
        name for name in ("runc", "conmon", "newuidmap", "newgidmap") if not shutil.which(name, path=PATH)
    ]
    return f"the programs {', '.join(missing)}: run install.sh --deps" if missing else None


def oci_runtime() -> str:
    """The OCI runtime that works here: crun on pure cgroup v2, runc where v1 is mounted (crun refuses a mix of both)."""
    on_v2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    order = ("crun", "runc") if on_v2 else ("runc", "crun")
    return next((name for name in order if shutil.which(name)), order[0])


def checkout_folders() -> tuple[Path, Path]:
    """(folder for sockets, storage root) of this checkout: the same from run to run, so that images stay unpacked.

    Podman writes both into its database and refuses another pair later.
    """
    mark = hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:8]
    runtime_dir = Path(os.environ["XDG_RUNTIME_DIR"]) / f"dcc-{mark}"
    root = Path.home() / ".local/share/dc-compute-dev" / mark / "storage"
    return runtime_dir, root


@contextlib.contextmanager
def podman_service(
    runtime_dir: Path, root: Path | None = None, *, name: str = "podman", env: Mapping[str, str] | None = None
) -> Iterator[Path]:
    """The socket of a running service. Services that share `root` must share `runtime_dir` and differ in `name`.

    While a service of another boot (another .ci/rootless) has `root`, a folder beside it is used. The service's environment
    is PATH, HOME, XDG_RUNTIME_DIR and `env`. Raises: NoPodman.
    """
    lacking = why_not()
    if lacking:
        raise NoPodman(f"containers need {lacking}")
    runtime_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = runtime_dir / f"{name}.sock"
    path.unlink(missing_ok=True)
    log = runtime_dir / f"{name}.log"
    with contextlib.ExitStack() as stack:
        if root is not None:
            root = stack.enter_context(claimed_root(root, runtime_dir))
        with log.open("wb") as log_file:
            process = subprocess.Popen(
                service_command(path, runtime_dir, root),
                env=service_environment() | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=subprocess.STDOUT,
                cwd="/",
                start_new_session=True,
            )
        stack.callback(path.unlink, missing_ok=True)
        stack.callback(_stop, process)
        _await_answer(path, process, log)
        yield path


@contextlib.contextmanager
def claimed_root(root: Path, runtime_dir: Path) -> Iterator[Path]:
    """`root`, or root-2 and so on: the first that no service of another boot has. Podman would take that one's containers
    for what a reboot left and reset them."""
    boot = runtime_dir / "boot"
    mine = runtime_dir / f"boot-{uuid.uuid4()}"
    mine.write_text(mine.name)
    with contextlib.suppress(FileExistsError):
        boot.hardlink_to(mine)  # appears whole, and the first one counts
    mine.unlink()
    for number in range(1, MOST_ROOTS + 1):
        choice = root if number == 1 else root.with_name(f"{root.name}-{number}")
        choice.mkdir(mode=0o700, parents=True, exist_ok=True)
        with choice.with_name(f"{choice.name}.lock").open("a+") as lock:
            if _is_ours(lock, boot.read_text(), lambda: _remove_containers(choice, runtime_dir)):  # noqa: B023
                yield choice
                return
    raise NoPodman(f"{MOST_ROOTS} other boots have every folder beside {root}")


def _remove_containers(root: Path, runtime_dir: Path) -> None:
    """What a killed run of another boot left takes id maps from those of this one. Nobody else is here yet."""
    if why_not():
        return
    command = [*podman_words(root, runtime_dir), "rm", "--all", "--force", "--time", "0"]
    subprocess.run(command, env=service_environment(), cwd="/", capture_output=True, check=False)


def _is_ours(lock: IO[str], boot: str, on_first: Callable[[], None]) -> bool:
    """Hold the lock with everybody of this boot, after `on_first` by the first; False when another boot holds it."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.seek(0)
        if lock.read() != boot:
            on_first()
        lock.truncate(0)
        lock.write(boot)
        lock.flush()
    fcntl.flock(lock, fcntl.LOCK_SH)
    lock.seek(0)
    return lock.read() == boot


def service_command(path: Path, runtime_dir: Path, root: Path | None) -> list[str]:
    """What is started to serve at this socket."""
    return [*podman_words(root, runtime_dir), "system", "service", "--time=0", f"unix://{path}"]


def podman_words(root: Path | None, runtime_dir: Path) -> list[str]:
    """The program and what names its storage: whoever says the same words has the same images and containers."""
    command = ["podman", "--runtime", oci_runtime(), "--storage-driver", "overlay"]
    if root is None:
        return command
    runs = ["--runroot", str(runtime_dir / "run"), "--tmpdir", str(runtime_dir / "tmp")]
    return [*command, "--root", str(root), *runs]


def service_environment() -> dict[str, str]:
    """All that a service knows of its caller's environment."""
    return {
        "PATH": PATH,
        "HOME": str(Path.home()),
        "XDG_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"],
    }


def _await_answer(path: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        if answers(path):
            return
        time.sleep(0.02)
    words = log.read_text(errors="replace").strip().splitlines()[-3:]
    raise NoPodman(f"the service did not start: {' / '.join(words) or 'it says nothing'}")


def answers(path: Path) -> bool:
    """Whether a service answers at this socket."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(path))
            client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in client.recv(64)
    except OSError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the whole group: Podman's service is two processes, and one alone would keep the socket."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
