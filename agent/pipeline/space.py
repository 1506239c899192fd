"""Room in the workspace and in the spool is reserved, not looked at: by one task at a time, over all threads and workers.

A reservation is a number in the folder of whoever needs the room. While the root's lock is held, what is free must cover what
every other reservation has not used yet, and the new one. Memory is judged too: a tmpfs may be larger than what the host can
back. On a disk the low mark stays free as well: what comes in must not take the ledger's last room.
"""

import fcntl
import os
import re
import secrets
import shlex
import shutil
import stat
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Final

from agent.domain.file_systems import IN_MEMORY
from agent.errors import NoSpace, RoomTaken, WorkspaceOnDisk

# Exact, for what bears such a name and is not in use is removed.
FOLDER_NAME: Final = (
    r"(?P<job>[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[0-9]{1,4})\.(?P<attempt>[0-9]{1,4})"
)
SHELF: Final = "held"  # the folder in the spool where the one archive lies that is read for the operator
RESERVED: Final = ".reserved"  # the file in an attempt's folder, above everything that a guest sees

MAX_ENTRIES = 20_000  # looked at in one folder; what is not seen counts as unused, which reserves more
MAX_DEPTH = 20
MIB = 1 << 20

_IS_HOLDER = re.compile(rf"{FOLDER_NAME}|{SHELF}")

_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


# ------------------------------------------------------------------ reservations


def reserve(folder: Path, reserve_bytes: int, *, keep_free: int = 0) -> None:
    """Make this folder with so many bytes of its root reserved, and `keep_free` left after that.

    Raises: RoomTaken when it will be free once others end, NoSpace when not; FileExistsError.
    """
    with _alone(folder.parent):
        _require_free(folder.parent, reserve_bytes, keep_free)
        _make(folder, reserve_bytes)


def reserved_in(root: Path) -> tuple[tuple[Path, int, int], ...]:
    """(folder, bytes reserved, of them not used yet) of everybody who holds room in this root."""
    return tuple((folder, *_reserved_and_unused(folder)) for folder in _holders(root))


def require_possible(root: Path, wanted_bytes: int) -> None:
    """Refuse what this root could not hold if it were empty; nothing where it is not there yet. Raises: NoSpace."""
    if not root.is_dir():
        return  # no worker has started since the boot: it is made then
    about = os.statvfs(root)
    if about.f_blocks and about.f_blocks * about.f_frsize < wanted_bytes:
        raise NoSpace(
            f"{root} has {about.f_blocks * about.f_frsize // MIB} MiB in all, this task needs {-(-wanted_bytes // MIB)} MiB"
        )


def _require_free(root: Path, wanted_bytes: int, keep_free: int) -> None:
    held = reserved_in(root)
    unused = sum(left for _, _, left in held)
    taken = _Taken(unused, sum(reserved - left for _, reserved, left in held), keep_free)
    kind = file_system_of(root)
    _check(f"{root} ({kind})", free_bytes(root), taken, wanted_bytes)
    if kind in IN_MEMORY:
        for what, available in memory_available():
            _check(f"{root} lies in memory, and {what}", available, taken, wanted_bytes)


@dataclass(frozen=True, slots=True)
class _Taken:
    """What is not free for a newcomer: promised to others, used by others until they end, and left free in any case."""

    unused_bytes: int
    used_bytes: int
    keep_free: int


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
    return _reserved_and_unused(folder)[1]


def _reserved_and_unused(folder: Path) -> tuple[int, int]:
    reserved = reserved_bytes(folder)
    return reserved, max(0, reserved - used_bytes(folder, MAX_ENTRIES)) if reserved else 0


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


def _check(what: str, free: int | None, taken: _Taken, wanted: int) -> None:
    left = 0 if free is None else free - taken.keep_free - taken.unused_bytes
    if free is None or left >= wanted:
        return
    kept = f" and a low mark of {taken.keep_free // MIB} MiB" if taken.keep_free else ""
    seen = (
        f"{what} has {max(0, left) // MIB} MiB free, with {taken.unused_bytes // MIB} MiB reserved by other tasks{kept} "
        f"left out; this task needs {-(-wanted // MIB)} MiB"
    )
    if left + taken.unused_bytes + taken.used_bytes >= wanted:
        raise RoomTaken(seen)
    raise NoSpace(seen)


def _holders(root: Path) -> Iterator[Path]:
    """Every folder of this root that may hold room in it."""
    with os.scandir(root) as entries:
        for entry in entries:
            if _IS_HOLDER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
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


# ------------------------------------------------------------------ the low mark


def require_above_low_mark(folders: Iterable[Path], low_bytes: int) -> str:
    """What is free on the file systems of these folders. Raises: NoSpace when one is under its low mark."""
    seen = []
    for folder in one_each(folders):
        free = free_bytes(folder)
        if free is not None and free < low_bytes:
            raise NoSpace(f"{folder} has {free // MIB} MiB free, the low mark is {low_bytes // MIB} MiB")
        seen.append("no limit" if free is None else f"{free // MIB} MiB free")
    return ", ".join(seen)


def is_low(folders: Iterable[Path], low_bytes: int) -> bool:
    """Whether one of these file systems is under the low mark."""
    try:
        require_above_low_mark(folders, low_bytes)
    except NoSpace:
        return True
    return False


def one_each(folders: Iterable[Path]) -> tuple[Path, ...]:
    """The first of these folders on each file system."""
    first: dict[int, Path] = {}
    for folder in folders:
        first.setdefault(folder.stat().st_dev, folder)
    return tuple(first.values())


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
        kinds = _kinds_of(mounts.read_text())
    except OSError:
        return "unknown"
    real = folder.resolve()
    return next((kinds[path] for path in map(str, (real, *real.parents)) if path in kinds), "unknown")


@lru_cache(maxsize=2)  # it is asked at each bell, and mounts hardly ever change
def _kinds_of(mounts: str) -> Mapping[str, str]:
    """The kind of file system by mount point, as mountinfo tells it."""
    kinds: dict[str, str] = {}
    for line in mounts.splitlines():  # a later mount on the same folder covers the earlier one
        about, _, source = line.partition(" - ")
        mount_point = about.split(" ")[4].encode().decode("unicode_escape")
        kinds[str(Path(mount_point))] = source.split(" ")[0]
    return kinds


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
