"""A scratch root filesystem with Debian 12, the packages that install.sh asks for, shells, and a wheelhouse. It has no network.

    with Scratch.made() as scratch:             # a minute the first time, then kept in CACHE
        scratch.run("sh", "/src/install.sh")    # by chroot, in namespaces of its own, all of them empty
        scratch.boot(script)                    # under systemd, in a container of systemd-nspawn, until the script has ended

This checkout lies at /src, the wheels at /wheels. Booted, cgroups are those of the host: no test here asks for a ceiling.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent.parent
CACHE = Path("/var/cache/dc-compute-dev/scratch")
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "procps"),
    *("podman", "runc", "crun", "conmon", "uidmap", "golang-github-containers-common", "ca-certificates"),
    *("python3", "python3-venv", "bash-completion", "zsh", "fish"),
)
# Podman of root, which its package starts at boot, writes files while a test compares lists of them.
NOT_STARTED = (
    *("podman.service", "podman.socket", "podman-restart.service"),
    *("podman-auto-update.service", "podman-auto-update.timer"),
)
PROGRAMS = {"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "make": "make"}
OURS = ("src", "wheels", "variants", "result", "story.sh")  # what the tests put there
MAKE_TIMEOUT_S, RUN_TIMEOUT_S, BOOT_TIMEOUT_S = 900, 300, 900

ENTER = """
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount -t sysfs -o ro sysfs "$1/sys"
mount --rbind /dev "$1/dev"
mount -t tmpfs tmpfs "$1/tmp"
mount -t tmpfs tmpfs "$1/run"
cd "$1"
root=$1
shift
exec chroot "$root" env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
"""
UNIT = """[Unit]
After=systemd-user-sessions.service systemd-logind.service

[Service]
Type=oneshot
ExecStart=/bin/sh /story.sh
ExecStopPost=/bin/systemctl --no-block poweroff
StandardOutput=journal+console

[Install]
WantedBy=multi-user.target
"""


def why_not() -> str | None:
    """What this process lacks to make and enter such a root, as half a sentence; None when nothing is missing."""
    if os.getuid() != 0:
        return "root, who makes it (`make test-host`)"
    if os.uname().machine != "x86_64":
        return "an x86-64 host"
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program)]
    return f"the packages {', '.join(missing)}: run install.sh --deps-host" if missing else None


@dataclass(frozen=True)
class Scratch:
    """One copy of it, in `root`."""

    root: Path

    @classmethod
    @contextmanager
    def made(cls) -> Iterator["Scratch"]:
        """A fresh copy, gone when the block ends. Raises: CalledProcessError."""
        kept = _prepared()
        with tempfile.TemporaryDirectory(prefix="dcc-scratch-", dir="/var/tmp") as place:
            root = Path(place) / "root"
            root.mkdir(mode=0o755)
            subprocess.run(
                ["tar", "-C", root, "--numeric-owner", "-xpf", kept / "root.tar"],
                timeout=MAKE_TIMEOUT_S,
                check=True,
            )
            shutil.copytree(kept / "wheels", root / "wheels")
            copy_checkout(root / "src")
            yield cls(root)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run it there as root; everything it started ends with it."""
        names = ("--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child")
        return subprocess.run(
            ["nice", "-n", "10", "unshare", *names, "sh", "-euc", ENTER, "sh", self.root, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )

    def boot(self, story: str) -> Mapping[str, str]:
        """Boot it, run this shell script as root, and wait until it is off: what the script left in /result, by file."""
        (self.root / "story.sh").write_text(story)
        (self.root / "result").mkdir()
        (self.root / "etc/machine-id").write_text("")
        unit = self.root / "etc/systemd/system/story.service"
        unit.write_text(UNIT)
        for name in NOT_STARTED:
            (self.root / "etc/systemd/system" / name).symlink_to("/dev/null")
        wants = self.root / "etc/systemd/system/multi-user.target.wants/story.service"
        wants.symlink_to("/etc/systemd/system/story.service")
        done = subprocess.run(
            [
                *("nice", "-n", "10", "setpriv", "--pdeathsig", "KILL"),
                *("unshare", "--pid", "--mount-proc", "--fork", "--kill-child"),
                *("systemd-nspawn", "--quiet", f"--directory={self.root}", "--register=no", "--keep-unit"),
                *("--private-network", "--boot", "--console=pipe", "--link-journal=no"),
                # What rootless Podman needs: overlay and fuse mounts, keys for runc, a loopback that comes up.
                *("--system-call-filter=@keyring bpf", "--capability=CAP_NET_ADMIN", "--bind=/dev/fuse"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=BOOT_TIMEOUT_S,
            check=False,
        )
        left = {file.name: file.read_text(errors="replace") for file in (self.root / "result").iterdir()}
        return {**left, "console": done.stdout.decode(errors="replace")}

    def files(self) -> set[str]:
        """Every path of it, but for what these tests put there."""
        found = subprocess.run(
            [
                "find",
                ".",
                "-xdev",
                "-mindepth",
                "1",
                *(w for name in OURS for w in ("-not", "-path", f"./{name}*")),
            ],
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=True,
        )
        return set(found.stdout.splitlines())


def copy_checkout(target: Path) -> None:
    """The sources as they are now."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist"
    )
    shutil.copytree(ROOT, target, symlinks=True, ignore=ignored)


def _prepared() -> Path:
    """The folder of this recipe and these locks, made now unless it was before: root.tar, and the wheels."""
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    locks = [(ROOT / name).read_bytes() for name in ("requirements.lock", ".ci/build.lock")]
    key = hashlib.sha256(repr((PACKAGES, locks)).encode()).hexdigest()[:16]
    kept = CACHE / key
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            for old in CACHE.glob("?" * 16):
                shutil.rmtree(old)
            _make(kept)
    return kept


def _make(kept: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="making-", dir=CACHE) as place:
        made = Path(place) / "made"
        made.mkdir()
        house = [
            "make",
            "--no-print-directory",
            "wheelhouse",
            "PYTHONS=3.11",
            f"WHEELHOUSE={made / 'wheels'}",
        ]
        subprocess.run(house, cwd=ROOT, timeout=MAKE_TIMEOUT_S, check=True)
        wanted = ["--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}", "bookworm"]
        subprocess.run(
            ["nice", "-n", "10", "mmdebstrap", "--quiet", *wanted, made / "root.tar"],
            timeout=MAKE_TIMEOUT_S,
            check=True,
        )
        made.rename(kept)
