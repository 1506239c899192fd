"""Room in the workspace is reserved, not looked at: by one task at a time, over all threads and workers of the host.

A reservation is a number in the attempt's folder. While the root's lock is held, what is free must cover what every other
reservation has not used yet, and the new one. Memory is judged too: a tmpfs may be larger than what the host can back.
"""

import fcntl
import os
import re
import secrets
import shlex
import shutil
import stat
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Final

from agent.domain.file_systems import IN_MEMORY
from agent.errors import NoSpace, WorkspaceOnDisk

# Exact, for what bears such a name and is not in use is removed.
FOLDER_NAME: Final = (
    r"(?P<job>[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[0-9]{1,4})\.(?P<attempt>[0-9]{1,4})"
)
RESERVED: Final = ".reserved"  # the file in an attempt's folder, above everything that a guest sees

MAX_ENTRIES = 20_000  # looked at in one folder; what is not seen counts as unused, which reserves more
MAX_DEPTH = 20
MIB = 1 << 20

_IS_ATTEMPT = re.compile(FOLDER_NAME)
_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


# ------------------------------------------------------------------ reservations


def reserve(folder: Path, reserve_bytes: int) -> None:
    """Make this attempt's folder with so many bytes of its root reserved. Raises: NoSpace; FileExistsError."""
    with _alone(folder.parent):
        _require_free(folder.parent, reserve_bytes)
        _make(folder, reserve_bytes)


def require_free(root: Path, wanted_bytes: int) -> None:
    """Refuse to begin what `root` cannot hold beside what is reserved there. Raises: NoSpace."""
    with _alone(root):
        _require_free(root, wanted_bytes)


def _require_free(root: Path, wanted_bytes: int) -> None:
    unused = sum(unused_bytes(other) for other in _attempts(root))
    kind = file_system_of(root)
    _check(f"{root} ({kind})", free_bytes(root), unused, wanted_bytes)
    if kind in IN_MEMORY:
        for what, available in memory_available():
            _check(f"{root} lies in memory, and {what}", available, unused, wanted_bytes)


def lower_reservation(folder: Path, reserve_bytes: int) -> None:
    """From now on so much is enough. A reservation never grows. Raises: FileNotFoundError when the folder is gone."""
    if reserve_bytes < reserved_bytes(folder):
        _write(folder, reserve_bytes)


def reserved_bytes(folder: Path) -> int:
    """What is reserved for this attempt; 0 for a folder whose worker died before it could say."""
    try:
        return int((folder / RESERVED).read_text())
    except (OSError, ValueError):
        return 0


def unused_bytes(folder: Path) -> int:
    """What is reserved for this attempt and does not lie there yet, as far as it can be seen."""
    reserved = reserved_bytes(folder)
    return max(0, reserved - used_bytes(folder, MAX_ENTRIES)) if reserved else 0


def used_bytes(folder: Path, entries: int | None = None) -> int:
    """What a folder's files take up, each counted once, as far as the agent can see. No link is followed.

    A guest may be at work below: what cannot be entered, is gone, or comes after so many `entries` is left out.
    """
    sizes: dict[int, int] = {}
    with suppress(OSError), closing(_files(open_folder(folder), 0)) as files:
        sizes.update((about.st_ino, about.st_blocks * 512) for about in islice(files, entries))
    return sum(sizes.values())


def free_bytes(root: Path) -> int | None:
    """What is free on the file system; None where it has no size of its own (ramfs, tmpfs with size=0)."""
    about = os.statvfs(root)
    return about.f_bavail * about.f_frsize if about.f_blocks else None


def _check(what: str, free: int | None, unused: int, wanted: int) -> None:
    if free is not None and free - unused < wanted:
        raise NoSpace(
            f"{what} has {max(0, free - unused) // MIB} MiB free, "
            f"with {unused // MIB} MiB reserved by other tasks left out; this task needs {-(-wanted // MIB)} MiB"
        )


def _attempts(root: Path) -> Iterator[Path]:
    with os.scandir(root) as entries:
        for entry in entries:
            if _IS_ATTEMPT.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield root / entry.name


def _files(folder: int, depth: int) -> Generator[os.stat_result, None, None]:
    """Everything below an open folder, which this closes."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    about = entry.stat(follow_symlinks=False)
                    yield about
                    if stat.S_ISDIR(about.st_mode) and depth < MAX_DEPTH:
                        yield from _files(open_folder(entry.name, folder), depth + 1)
    finally:
        os.close(folder)


def _make(folder: Path, reserve_bytes: int) -> None:
    folder.mkdir(mode=0o700)
    try:
        _write(folder, reserve_bytes)
    except OSError as cause:  # a file system may be out of inodes while it has bytes
        shutil.rmtree(folder, ignore_errors=True)
        raise NoSpace(f"the workspace {folder.parent} takes no file: {cause.strerror}") from cause


def open_folder(path: str | Path, within: int | None = None) -> int:
    """A descriptor of this folder, also below another open one. A link is not followed. Raises: OSError."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)


def _write(folder: Path, reserve_bytes: int) -> None:
    beside = folder / f"{RESERVED}.{secrets.token_hex(4)}"
    beside.write_text(f"{reserve_bytes}\n")
    beside.replace(folder / RESERVED)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One at a time on this host. The kernel lets go of the lock of a process that dies."""
    lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


# ------------------------------------------------------------------ memory


def require_memory(root: Path, what: str = "the workspace") -> None:
    """Return only when this folder lies in memory. Raises: WorkspaceOnDisk, with the command that mends it."""
    kind = file_system_of(root)
    if kind not in IN_MEMORY:
        raise WorkspaceOnDisk(
            f"{what} {root} lies on {kind}, not in memory: "
            f"mount -t tmpfs -o size=50%,mode=0700,uid={os.geteuid()},gid={os.getegid()} tmpfs {shlex.quote(str(root))}"
        )


def file_system_of(folder: Path, mounts: Path = _PROC / "self/mountinfo") -> str:
    """The kind of file system that `folder` lies on, by /proc/self/mountinfo; "unknown" without that file."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return "unknown"
    real = folder.resolve()
    kinds: dict[Path, str] = {}
    for line in lines:  # a later mount on the same folder covers the earlier one
        about, _, source = line.partition(" - ")
        mount_point = about.split(" ")[4].encode().decode("unicode_escape")
        kinds[Path(mount_point)] = source.split(" ")[0]
    return next((kinds[path] for path in (real, *real.parents) if path in kinds), "unknown")


def memory_available(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> tuple[tuple[str, int], ...]:
    """(whose, bytes) of memory that can still be had: of the host, and of each group of processes that bounds this one.

    Raises: NoSpace when the host does not tell.
    """
    try:
        text = (proc / "meminfo").read_text()
        host = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError) as cause:
        raise NoSpace(
            f"{proc / 'meminfo'} does not tell how much memory is available (a unit with ProcSubset=pid hides it)"
        ) from cause
    return ("the host", host * 1024), *_groups(proc, cgroups)


@dataclass(frozen=True, slots=True)
class _Controller:
    """Where a version of cgroups keeps what bounds memory: limit, use, and the name of what it would give back."""

    folder: Path
    limit: str
    used: str
    given_back: str


def _groups(proc: Path, cgroups: Path) -> Iterator[tuple[str, int]]:
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, names, path = line.split(":", 2)
        if number == "0":
            told = _Controller(cgroups, "memory.max", "memory.current", "inactive_file")
        elif "memory" in names.split(","):
            told = _Controller(
                cgroups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            )
        else:
            continue
        here = PurePosixPath(path.lstrip("/"))
        for group in (here, *here.parents):
            available = _available(told, told.folder / group)
            if available is not None:
                yield f"the group /{group}".removesuffix("/."), available


def _available(told: _Controller, group: Path) -> int | None:
    """What this group may still use; None without a limit, or where its files are not to be seen."""
    try:
        limit = (group / told.limit).read_text().strip()
        if limit == "max" or int(limit) >= 1 << 60:
            return None
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / told.used).read_text()) - int(statistics.get(told.given_back, 0))
        return max(0, int(limit) - used)
    except (OSError, ValueError):
        return None
