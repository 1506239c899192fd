"""A Debian system that boots under systemd in a container of systemd-nspawn: made once, copied, and always ended.

    with System.made("bookworm") as system:      # half a minute the first time, then kept in CACHE; a few seconds to copy
        system.boot()
        system.run("systemctl", "--version")     # as root in it, as a login would
        system.cut_power()                       # everything in it is gone at once, its disk stays
        system.boot()

It has cgroup v2, a network of its own without any way out, Debian's packages in apt's cache instead of a registry, wheels of
the locked versions, and this checkout, at /mnt/given. Only what the host's kernel gives it has controllers: on a host with
cgroup v1 there is no memory, cpu or pids ceiling in it. tests/host/vm/machine.py has them.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.devkit.demo.data import write_splits
from agent.devkit.demo.guests import demo_images
from agent.selftest.images import LAYER_FORMAT, PROGRAM_ROOT, PYTHON, build_image, program_layer, python_layer

ROOT = Path(__file__).resolve().parent.parent.parent.parent
CACHE = Path("/var/cache/dc-compute-dev/systems")
LONG = Path(__file__).resolve().parent / "long.py"

# What a fresh Debian has, as far as it matters here. What the agent needs is for install.sh to install.
BASE = (
    *(
        "systemd",
        "systemd-sysv",
        "dbus",
        "libpam-systemd",
        "ca-certificates",
        "procps",
        "util-linux",
        "passwd",
    ),
    *("iproute2", "netbase", "tzdata"),
)
# What install.sh asks apt for. Their archives wait in apt's cache.
FOR_APT = (
    *("python3", "python3-venv", "podman", "runc", "crun", "conmon", "uidmap", "dbus-user-session"),
    *("ca-certificates", "golang-github-containers-common"),
)
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
# An interpreter's own tags are pip's; a wheel for an older C library fits a newer one.
PLATFORMS = tuple(f"--platform=manylinux{tag}_x86_64" for tag in ("_2_34", "_2_28", "_2_17", "2014"))

MAKE_TIMEOUT_S, BOOT_TIMEOUT_S, RUN_TIMEOUT_S = 600, 120, 240
PROGRAMS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "nsenter": "util-linux",
}
REBOOT = 133  # how systemd-nspawn says that the system asked for one


def why_not() -> str | None:
    """What this process lacks to make and boot such a system, as half a sentence; None when nothing is missing."""
    if os.getuid() != 0:
        return "root, who boots it (`make test-host`)"
    if os.uname().machine != "x86_64":
        return "an x86-64 host"
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=_path())]
    if missing:
        return f"the packages {', '.join(missing)}: run install.sh --deps-host"
    if not Path("/dev/fuse").exists():
        return "/dev/fuse"
    return None


class SystemFailed(Exception):
    """The system was not made, did not boot, or a command in it failed. The message has the last lines of what was said."""


@dataclass
class System:
    """One copy of a made system: its root folder, and what it is shown at /mnt/given."""

    suite: str
    root: Path
    given: Path
    _nspawn: subprocess.Popen[bytes] | None = None
    _helpers: list[subprocess.Popen[str]] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def made(cls, suite: str) -> Iterator["System"]:
        """A fresh copy, not booted, gone when the block ends. Raises: SystemFailed."""
        base, wheels, images = _prepared(suite)
        with tempfile.TemporaryDirectory(prefix=f"dcc-{suite}-", dir="/var/tmp") as place:
            root, given = Path(place) / "root", Path(place) / "given"
            root.mkdir(mode=0o755)
            _run(["tar", "-C", str(root), "--numeric-owner", "-xpf", str(base)])
            given.mkdir(mode=0o755)
            _copy_checkout(given / "src")
            for name, source in {"wheels": wheels, "images": images, "data": images.parent / "data"}.items():
                (given / name).symlink_to(source)
            system = cls(suite, root, given)
            try:
                yield system
            finally:
                system.end()

    # -------------------------------------------------------------- its life

    def boot(self) -> None:
        """Boot it and wait until it has come up. Raises: SystemFailed with the console's end."""
        console = self.root.parent / "console"
        shown = [(self.given / "src", "/mnt/given/src")]
        shown += [
            ((self.given / name).resolve(), f"/mnt/given/{name}") for name in ("wheels", "images", "data")
        ]
        with console.open("ab") as words:
            self._nspawn = subprocess.Popen(
                [
                    # It ends with the tests, however they end: a killed nspawn alone would leave the system running.
                    *("nice", "-n", "10", "setpriv", "--pdeathsig", "KILL"),
                    *("unshare", "--pid", "--mount-proc", "--fork", "--kill-child"),
                    *(
                        "systemd-nspawn",
                        "--quiet",
                        f"--directory={self.root}",
                        f"--machine=hospital-{os.getpid()}",
                    ),
                    *("--register=no", "--keep-unit", "--private-network", "--boot", "--console=pipe"),
                    *("--resolv-conf=off", "--timezone=off", "--link-journal=no"),
                    # What rootless Podman needs: overlay and fuse mounts, keys for runc, a loopback that comes up.
                    *("--system-call-filter=@keyring bpf", "--capability=CAP_NET_ADMIN", "--bind=/dev/fuse"),
                    *(f"--bind-ro={here}:{there}" for here, there in shown),
                ],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=subprocess.STDOUT,
                env={"PATH": _path(), "LANG": "C.UTF-8", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                start_new_session=True,
            )
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while time.monotonic() < deadline and self._nspawn.poll() is None:
            if (self.root / "run").is_dir() and self._leader() is not None:
                seen = self.run("systemctl", "is-system-running", "--wait", is_checked=False)
                if seen.stdout.strip() in {"running", "degraded"}:
                    return
            time.sleep(0.1)
        raise SystemFailed(f"{self.suite} did not come up\n{_end(console.read_text(errors='replace'))}")

    def wait_for_reboot(self) -> None:
        """Return when the system went down to come up again, as it was asked to. Raises: SystemFailed."""
        code = self._wait()
        if code != REBOOT:
            raise SystemFailed(f"{self.suite} went down with {code}, not for a reboot")

    def cut_power(self) -> None:
        """Kill everything in it at once. What was written stays, memory is lost."""
        leader = self._leader()
        assert leader is not None, "it is not booted"
        os.kill(leader, signal.SIGKILL)  # the first process of a pid namespace takes all others with it
        self._wait()

    def end(self) -> None:
        """Nothing of it runs any more."""
        self._end_helpers()
        if self._nspawn is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._nspawn.pid, signal.SIGKILL)
            self._nspawn.wait()
            self._nspawn = None

    def _wait(self) -> int:
        assert self._nspawn is not None
        try:
            code = self._nspawn.wait(BOOT_TIMEOUT_S)
        except subprocess.TimeoutExpired as cause:
            raise SystemFailed(f"{self.suite} did not go down") from cause
        self._nspawn = None
        self._end_helpers()
        return code

    def _end_helpers(self) -> None:
        for helper in self._helpers:
            helper.kill()
            helper.communicate()
        self._helpers.clear()

    def _leader(self) -> int | None:
        """The first process of the system, as this host numbers it."""
        if self._nspawn is None or self._nspawn.poll() is not None:
            return None
        below = [self._nspawn.pid]
        with contextlib.suppress(OSError):
            while below:
                pid = below.pop()
                if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                    return pid
                below += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return None

    # -------------------------------------------------------------- what is done in it

    def _inside(self, command: Sequence[str], user: str | None, env: Sequence[str]) -> list[str]:
        leader = self._leader()
        if leader is None:
            raise SystemFailed(f"{self.suite} is not running: {' '.join(command)}")
        become: list[str] = []
        if user is not None:
            become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--inh-caps=-all"]
        words = [
            "env",
            "-i",
            "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG=C.UTF-8",
            "COLUMNS=200",
            *env,
        ]
        return ["nsenter", f"--target={leader}", "--all", "--root", "--wdns=/", *words, *become, *command]

    def run(
        self,
        *command: str,
        user: str | None = None,
        env: Sequence[str] = (),
        is_checked: bool = True,
        timeout_s: float = RUN_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run it there, as root unless `user` is named. Raises: SystemFailed when it fails and `is_checked`."""
        done = subprocess.run(
            self._inside(command, user, env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        if is_checked and done.returncode != 0:
            raise SystemFailed(
                f"{' '.join(command)} ended with {done.returncode}\n{_end(done.stdout + done.stderr)}"
            )
        return done

    def sh(self, script: str, **how: Any) -> str:
        """What this shell script prints there. Raises: SystemFailed."""
        return self.run("sh", "-euc", script, **how).stdout

    def start(self, *command: str, user: str | None = None, env: Sequence[str] = ()) -> subprocess.Popen[str]:
        """A process there with pipes to it; killed at the end at the latest."""
        process = subprocess.Popen(
            self._inside(command, user, env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._helpers.append(process)
        return process

    def journal(self, unit: str = "dc-compute*") -> str:
        """What these units said since the last boot."""
        return self.run("journalctl", "-b", "--no-pager", "-o", "cat", "-u", unit).stdout


# ------------------------------------------------------------------ making it


def _prepared(suite: str) -> tuple[Path, Path, Path]:
    """The root file system as a tar, a folder of wheels, a folder of images. Made now unless they were before."""
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    locks = b"".join((ROOT / name).read_bytes() for name in ("requirements.lock", ".ci/build.lock"))
    guests = b"".join(path.read_bytes() for path in sorted((ROOT / "agent/devkit/demo_images").glob("*.py")))
    makers = {
        f"{suite}-{_key(BASE, FOR_APT)}.tar": lambda to: _make_root(suite, to),
        f"wheels-{PYTHONS[suite]}-{_key(locks, PLATFORMS)}": lambda to: _make_wheels(PYTHONS[suite], to),
        f"guests-{_key(guests, LONG.read_bytes(), LAYER_FORMAT, sys.version)}": _make_guests,
    }
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, make in makers.items():
            if not (CACHE / name).exists():
                for old in CACHE.glob(f"{name.rpartition('-')[0]}-*"):
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
                with tempfile.TemporaryDirectory(prefix=".making-", dir=CACHE) as work:
                    make(Path(work) / "made")
                    (Path(work) / "made").rename(CACHE / name)
    root, wheels, guests_folder = (CACHE / name for name in makers)
    return root, wheels, guests_folder / "images"


def _make_root(suite: str, target: Path) -> None:
    tree = target.with_name("tree")
    wanted = [f"--include={','.join(BASE)}", "--variant=minbase", "--mode=root", "--skip=cleanup/apt"]
    _run(["nice", "-n", "10", "mmdebstrap", "--quiet", *wanted, "--format=dir", suite, str(tree)])
    shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")  # for apt, now; it has no network later
    fetch = ["apt-get", "-q", "install", "-y", "--download-only", "--no-install-recommends", *FOR_APT]
    _run(["chroot", str(tree), *fetch])
    (tree / "etc/resolv.conf").write_text("")
    (tree / "etc/hostname").write_text("hospital-a\n")
    (tree / "etc/machine-id").write_text("")  # as an image has it: each copy gets one at its first boot
    _run(["tar", "-C", str(tree), "--numeric-owner", "-cpf", str(target), "."])


def _make_wheels(python: str, target: Path) -> None:
    """The locked versions of the program and of its build, for this Python: for a system without network."""
    for_it = [f"--python-version={python}", "--only-binary=:all:", *PLATFORMS]
    for name in ("requirements.lock", ".ci/build.lock"):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--require-hashes",
            "--no-deps",
            *for_it,
        ]
        _run([*command, "--dest", str(target), "-r", str(ROOT / name)])
    _run(["chmod", "-R", "go+rX", str(target)])


def _make_guests(target: Path) -> None:
    """The demo's images and data, and a guest that trains for as long as its data say."""
    folder, layers = target / "images", target / "layers"
    made = {image.name: image for image in demo_images(folder)}
    digests = {name: image.digest for name, image in made.items() if name in ("problem", "algo")}
    inside = f"{PROGRAM_ROOT}/long.py"
    parts = [python_layer(folder), program_layer(folder, {inside: LONG.read_bytes()})]
    digests["long"] = build_image(folder / "long.oci.tar", layers=parts, entrypoint=[PYTHON, "-u", inside])
    (folder / "digests.json").write_text(json.dumps(digests))
    write_splits(target / "data")
    shutil.rmtree(layers, ignore_errors=True)
    _run(["chmod", "-R", "go+rX", str(target)])


def _copy_checkout(target: Path) -> None:
    """The sources as they are now, readable for everybody."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist"
    )
    shutil.copytree(ROOT, target, symlinks=True, ignore=ignored)
    _run(["chmod", "-R", "u+rwX,go+rX", str(target)])


def _key(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


# ------------------------------------------------------------------ programs


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def _run(command: list[str]) -> None:
    """Run it to its end. Raises: SystemFailed with the end of what it said."""
    env = {**os.environ, "PATH": _path(), "LANG": "C.UTF-8"}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        env=env,
        timeout=MAKE_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise SystemFailed(
            f"{' '.join(command)[:200]} ended with {done.returncode}\n{_end(done.stdout + done.stderr)}"
        )


def _end(text: str) -> str:
    return "\n".join(text.splitlines()[-60:])
