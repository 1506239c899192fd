"""Reads memory, swap and what is below it, and the file system of a folder."""

import os
import re
from pathlib import Path

from agent.doctor.lines import Unknown
from agent.doctor.look import attempt, read_text
from agent.doctor.memory import Memory, Swap, Workspace

BLOCK = Path("/sys/block")
MAX_DEPTH = 8  # of devices that lie on devices


def look_at_memory(root: Path, uid: int, gid: int, *, runs: Path | None = None) -> Memory:
    """The memory of this host, the folder of its workspaces, and that of its runs where the engine has one."""
    return Memory(
        uid=uid,
        gid=gid,
        total_bytes=_total_bytes(),
        swaps=look_at_swaps(),
        workspace=attempt(lambda: look_at_workspace(root)),
        runs=None if runs is None else attempt(lambda: look_at_workspace(runs)),
    )


def _total_bytes() -> int | Unknown:
    text = read_text("/proc/meminfo")
    if isinstance(text, Unknown):
        return text
    match = re.search(r"^MemTotal: +(\d+) kB", text, flags=re.MULTILINE)
    return Unknown("/proc/meminfo tells no MemTotal") if match is None else int(match[1]) << 10


# ------------------------------------------------------------------ swap


def look_at_swaps() -> tuple[Swap, ...] | Unknown:
    """What is swapped to now."""
    text = read_text("/proc/swaps")
    if isinstance(text, Unknown):
        return text
    paths = [line.split()[0] for line in text.splitlines()[1:] if line.split()]
    return tuple(Swap(path, attempt(lambda path=path: _keeps_in(path))) for path in paths)  # type: ignore[misc]


def _keeps_in(path: str) -> str:
    """Where the pages of a swap device or file end up. Raises: OSError."""
    about = os.stat(path)
    number = about.st_rdev or about.st_dev  # a swap file: the device that its file system lies on
    folder = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not folder.exists():
        return "disk"  # a file system without a device of its own (btrfs): nothing says that it is encrypted
    return _device_keeps_in(folder.resolve())


def _device_keeps_in(folder: Path, depth: int = 0) -> str:
    """Of a block device's folder in /sys: encrypted when it is dm-crypt, or all that it lies on is."""
    if folder.name.startswith("zram"):
        behind = read_text(folder / "backing_dev")
        return "memory" if isinstance(behind, Unknown) or behind in ("", "none") else "disk"
    uuid = read_text(folder / "dm" / "uuid")
    if isinstance(uuid, str) and uuid.startswith("CRYPT-"):
        return "encrypted"
    below = sorted((folder / "slaves").iterdir()) if (folder / "slaves").is_dir() else []
    if (
        depth < MAX_DEPTH
        and below
        and {_device_keeps_in(one.resolve(), depth + 1) for one in below} == {"encrypted"}
    ):
        return "encrypted"
    return "disk"


# ------------------------------------------------------------------ file systems


def look_at_workspace(root: Path) -> Workspace:
    """The file system that the folder lies on, or will lie on. Raises: OSError."""
    there = next(path for path in (root, *root.parents) if path.exists())
    mount_point, file_system, options = mount_of(there)
    space = os.statvfs(there)
    return Workspace(
        root=str(root),
        exists=there == root,
        mount_point=mount_point,
        file_system=file_system,
        options=options,
        size_bytes=space.f_blocks * space.f_frsize,
        free_bytes=space.f_bavail * space.f_frsize,
    )


def mount_of(path: Path) -> tuple[str, str, tuple[str, ...]]:
    """(mount point, file system, options) of what a path that exists lies on. Raises: OSError."""
    real = path.resolve()
    found = ("/", "unknown", tuple[str, ...]())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = _plain(before.split()[4])
        if (real == Path(point) or Path(point) in real.parents) and len(point) >= len(found[0]):
            kind, _, options = after.split(" ", 2)
            found = (point, kind, (*before.split()[5].split(","), *options.split(",")))
    return found


def _plain(field: str) -> str:
    """A path of mountinfo: white space stands there in octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
