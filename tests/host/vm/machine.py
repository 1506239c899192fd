"""A Debian machine in QEMU without hardware virtualisation: made once, booted with this checkout inside, and always ended.

    machine = Machine.prepared()            # a minute or two the first time, then kept in CACHE
    result = machine.boot(["crun"])         # runs inside.sh in it as root, gives the files it left

It has systemd, cgroup v2 with every controller, swap, a lingering user dc-compute with subordinate ids, and no network. The
root disk is thrown away after each boot; sources and .venv come in on a second disk, results leave as a tar on a third.
"""

import contextlib
import fcntl
import hashlib
import inspect
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.selftest.images import LAYER_FORMAT

ROOT = Path(__file__).resolve().parent.parent.parent.parent
HERE = Path(__file__).resolve().parent
CACHE = Path("/var/cache/dc-compute-dev/vm")
USER, USER_ID, HOME = "dc-compute", 900, "/var/lib/dc-compute"
FIRST_SUBID, SUBID_COUNT = 100000, 524288

SUITE = "bookworm"
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "kmod", "procps"),
    *("podman", "crun", "runc", "conmon", "uidmap", "golang-github-containers-common"),
    *("python3", "python3-venv", "linux-image-cloud-amd64"),
)
NOT_STARTED = (
    *(
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "e2scrub_reap.service",
    ),
    *(
        "fstrim.timer",
        "podman.socket",
        "podman.service",
        "podman-auto-update.timer",
        "podman-auto-update.service",
    ),
    *(
        "podman-restart.service",
        "systemd-timesyncd.service",
        "getty@tty1.service",
        "serial-getty@ttyS0.service",
    ),
)
UNIT = """[Unit]
Description=What the second disk wants done
After=systemd-user-sessions.service systemd-logind.service user@900.service
Wants=user@900.service

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'mkdir -p /mnt/given && mount -o ro /dev/vdb /mnt/given && exec sh /mnt/given/inside.sh'
ExecStopPost=/bin/systemctl --no-block poweroff
StandardOutput=journal+console
StandardError=journal+console

[Install]
WantedBy=multi-user.target
"""

# Of .venv, what nothing that runs in the machine imports: two thirds of its size.
LEFT_OUT = (
    "numpy*",
    "scipy*",
    "sklearn",
    "scikit_learn*",
    "mypy*",
    "*__mypyc*",
    "pip",
    "setuptools",
    "playwright*",
)
TOOLS = ("ruff", "uv", "uvx", "shellcheck")

MEMORY_MIB, CPUS = 2048, 2
DISK, RESULT_BYTES = "3G", 64 << 20
BUILD_TIMEOUT_S, BOOT_TIMEOUT_S = 900, 1500
PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
}


def why_not() -> str | None:
    """What this process lacks to make and boot the machine, as half a sentence; None when nothing is missing."""
    if os.getuid() != 0:
        return "root, which makes its disk (`make test-host`)"
    if os.uname().machine != "x86_64":
        return "an x86-64 host"
    missing = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=_path())]
    if missing:
        return f"the packages {', '.join(missing)}: run install.sh --deps-host"
    return None


class MachineFailed(Exception):
    """The machine was not made, or did not come to its end. The message has the last lines of what it said."""


@dataclass(frozen=True)
class Result:
    """What one boot left: files by name, what was written on the console, and which process it was."""

    files: Mapping[str, str]
    console: str
    pid: int


@dataclass(frozen=True)
class Machine:
    """A made machine: its disk, kernel and initrd."""

    folder: Path

    @classmethod
    def prepared(cls) -> "Machine":
        """The machine of this recipe, made now unless it was before. Raises: MachineFailed."""
        CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
        recipe = repr((SUITE, PACKAGES, NOT_STARTED, UNIT, DISK, LAYER_FORMAT))
        steps = inspect.getsource(_make) + inspect.getsource(_settle)
        key = hashlib.sha256((recipe + steps).encode())
        folder = CACHE / key.hexdigest()[:16]
        with (CACHE / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                for old in CACHE.glob("?" * 16):
                    shutil.rmtree(old)
                _make(folder)
        return cls(folder)

    def boot(self, runs: Sequence[str]) -> Result:
        """Run `inside.sh` in the machine, which knows these runs, and wait until it is off.

        Raises: MachineFailed with the console's end.
        """
        with tempfile.TemporaryDirectory(prefix="dcc-vm-", dir="/var/tmp") as place:
            work = Path(place)
            console = work / "console"
            _given_disk(work / "given.img", work / "given", runs)
            with (work / "result.img").open("wb") as file:
                file.truncate(RESULT_BYTES)
            pid = _run(
                self._command(work), BOOT_TIMEOUT_S, work / "log", console=console, env={"TMPDIR": place}
            )
            text = console.read_text(errors="replace")
            try:
                return Result(_files(work / "result.img"), text, pid)
            except tarfile.TarError as cause:
                raise MachineFailed(f"the machine left no result\n{_end(text)}") from cause

    def _command(self, work: Path) -> list[str]:
        disks = (
            (self.folder / "disk.img", "snapshot=on"),
            (work / "given.img", "readonly=on"),
            (work / "result.img", "cache=unsafe"),
        )
        return [
            *(
                "nice",
                "-n",
                "10",
                "setpriv",
                "--pdeathsig",
                "KILL",
            ),  # it ends with the tests, however they end
            *("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi"),
            *(
                "-cpu",
                "max,la57=off,cx16=off",
            ),  # newer kernels than Debian 12's do not boot on what TCG does of these
            *("-smp", str(CPUS), "-m", str(MEMORY_MIB), "-nodefaults", "-no-reboot", "-display", "none"),
            *("-serial", f"file:{work / 'console'}"),
            *("-kernel", str(self.folder / "vmlinuz"), "-initrd", str(self.folder / "initrd.img")),
            *(
                "-append",
                "root=/dev/vda rw console=ttyS0 quiet panic=-1 systemd.show_status=0 mitigations=off",
            ),
            *(
                word
                for path, option in disks
                for word in ("-drive", f"file={path},format=raw,if=virtio,{option}")
            ),
        ]


def _files(image: Path) -> dict[str, str]:
    """The plain files of the tar on this disk. Raises: tarfile.TarError."""
    with tarfile.open(image) as tar:
        opened = (
            (member.name.removeprefix("./"), tar.extractfile(member)) for member in tar if member.isfile()
        )
        return {name: file.read().decode(errors="replace") for name, file in opened if file is not None}


# ------------------------------------------------------------------ making it


def _make(folder: Path) -> None:
    """Kernel, initrd and disk into `folder`, which appears whole."""
    with tempfile.TemporaryDirectory(prefix="making-", dir=CACHE) as place:
        work, made = Path(place), Path(place) / "made"
        made.mkdir()
        archive, root, log = work / "rootfs.tar", work / "rootfs", work / "log"
        wanted = ["--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}", SUITE, str(archive)]
        _run(["nice", "-n", "10", "mmdebstrap", *wanted], BUILD_TIMEOUT_S, log)
        root.mkdir()
        _run(["tar", "-C", str(root), "-xf", str(archive)], BUILD_TIMEOUT_S, log)
        _settle(root, log)
        for name in ("vmlinuz", "initrd.img"):
            (found,) = (root / "boot").glob(f"{name}-*")
            found.rename(made / name)
        _run(
            ["mke2fs", "-q", "-t", "ext4", "-d", str(root), str(made / "disk.img"), DISK],
            BUILD_TIMEOUT_S,
            log,
        )
        made.rename(folder)


def _settle(root: Path, log: Path) -> None:
    """The user, what starts at boot, and the cached layer of the tests' images."""

    def inside(*words: str) -> None:
        _run(["chroot", str(root), *words], BUILD_TIMEOUT_S, log)

    inside("groupadd", "--gid", str(USER_ID), USER)
    inside(
        "useradd",
        "--uid",
        str(USER_ID),
        "--gid",
        USER,
        "--home-dir",
        HOME,
        "--shell",
        "/usr/sbin/nologin",
        USER,
    )
    inside("install", "-d", "-m", "0700", "-o", USER, "-g", USER, HOME)
    row = f"{USER}:{FIRST_SUBID}:{SUBID_COUNT}\n"
    (root / "etc/subuid").write_text(row)
    (root / "etc/subgid").write_text(row)
    linger = root / "var/lib/systemd/linger" / USER
    linger.parent.mkdir(parents=True, exist_ok=True)
    linger.touch()
    (root / "etc/hostname").write_text("vm\n")
    (root / "etc/systemd/system/dc-compute-vm.service").write_text(UNIT)
    inside("systemctl", "enable", "dc-compute-vm.service")
    inside("systemctl", "mask", *NOT_STARTED)
    _copy_checkout(root / "opt/checkout")
    as_user = ("setpriv", f"--reuid={USER_ID}", f"--regid={USER_ID}", "--clear-groups", "env", f"HOME={HOME}")
    code = "from tests.host.podman import probe_archive; probe_archive()"
    inside(*as_user, "sh", "-c", f"cd /opt/checkout && exec .venv/bin/python -B -c '{code}'")
    shutil.rmtree(root / "opt/checkout")


# ------------------------------------------------------------------ what goes in


def _given_disk(image: Path, staging: Path, runs: Sequence[str]) -> None:
    staging.mkdir()
    _copy_checkout(staging / "src")
    shutil.copy(HERE / "inside.sh", staging / "inside.sh")
    (staging / "runs").write_text(" ".join(runs) + "\n")
    used = sum(path.lstat().st_size + 4096 for path in staging.rglob("*"))
    size_kib = (used * 5 // 4 + (32 << 20)) >> 10
    _run(
        ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(staging), str(image), f"{size_kib}k"],
        BUILD_TIMEOUT_S,
        image.with_suffix(".log"),
    )
    shutil.rmtree(staging)


def _copy_checkout(target: Path) -> None:
    """The sources as they are now, and of .venv what tests of containers need; readable for everybody."""
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "build", "dist"
    )
    shutil.copytree(ROOT, target, symlinks=True, ignore=ignored)
    packages = shutil.ignore_patterns(*LEFT_OUT, *TOOLS)
    shutil.copytree(ROOT / ".venv", target / ".venv", symlinks=True, ignore=packages)
    subprocess.run(["chmod", "-R", "u+rwX,go+rX", str(target)], check=True)


# ------------------------------------------------------------------ programs


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"


def _run(
    command: list[str],
    timeout_s: float,
    log: Path,
    *,
    console: Path | None = None,
    env: dict[str, str] | None = None,
) -> int:
    """Run it in a process group that is gone afterwards, its words into `log`. Gives its id.

    Raises: MachineFailed with the end of what it said.
    """
    with log.open("wb") as words:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=subprocess.STDOUT,
            env={"PATH": _path(), "LANG": "C.UTF-8", **(env or {})},
            start_new_session=True,
        )
        code: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code != 0:
        said = [path.read_text(errors="replace") for path in (log, console) if path and path.exists()]
        how = f"took over {timeout_s:.0f} s" if code is None else f"ended with {code}"
        raise MachineFailed(f"{' '.join(command)[:200]} {how}\n{_end(''.join(said))}")
    return process.pid


def _end(text: str) -> str:
    return "\n".join(text.splitlines()[-60:])


if (
    __name__ == "__main__"
):  # by hand: `python -m tests.host.vm.machine crun`: makes it, boots it, prints its console
    sys.stdout.write(Machine.prepared().boot(sys.argv[1:]).console)
