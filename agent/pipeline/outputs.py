"""What the guest left is data: inspected without following a link, then taken over by renaming, packed, or parsed.

Source: docs/contracts/container.md, "outputs" of the cage and "perf". The container has ended and the runtime has
given the files to the agent (`Runtime.reclaim`) before anything here runs.
"""

import hashlib
import math
import os
import shutil
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest, digest_from_hex
from agent.domain.strict_json import decode
from agent.domain.strict_tar import BadTar, Kind, Member, StrictTar
from agent.errors import AgentError, BadOutput
from agent.pipeline.workspace import set_modes

MAX_PERFORMANCE_BYTES = 1 << 20
MAX_DEPTH = 16
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 1024  # far below what the system takes: the workspace stands before it

_SET_ID = stat.S_ISUID | stat.S_ISGID


class Performance(Struct, frozen=True, forbid_unknown_fields=True):
    """The score the problem image left: as the problem defines it, finite, larger is better."""

    perf: float
    train_perf: Annotated[dict[str, float], Meta(max_length=1000)] = {}
    test_perf: Annotated[dict[str, float], Meta(max_length=1000)] = {}


def inspect(folder: Path, ceilings: Ceilings) -> tuple[str, ...]:
    """Relative names of every regular file below `folder`, sorted, after refusing everything that is not plain.

    Raises: BadOutput for links, devices, fifos, sockets, hard links, set-id bits, sparse files, names that are not UTF-8, too
    long or not printable, depth over 16, and more bytes or files than the ceilings.
    """
    names: list[str] = []
    total = entries = 0
    for name, info in _walk(folder):
        entries += 1
        if entries > ceilings.output_files:
            raise BadOutput(f"more than {ceilings.output_files} files and folders were left")
        _check_name(name)
        if stat.S_ISDIR(info.st_mode):
            continue
        _check_file(name, info)
        total += info.st_size
        if total > ceilings.output_bytes:
            raise BadOutput(f"more than {ceilings.output_bytes} bytes were left")
        names.append(name)
    return tuple(sorted(names))


def take(folder: Path, target: Path, ceilings: Ceilings) -> tuple[str, ...]:
    """Inspect `folder` and move it to `target`, a fresh path that no guest has seen; the names of its files.

    Raises: BadOutput.
    """
    names = inspect(folder, ceilings)
    os.rename(folder, target)
    set_modes(target, writable=False)
    return names


def take_file(folder: Path, name: str, target: Path, ceilings: Ceilings) -> None:
    """Inspect `folder`, which must hold exactly the one file `name`, and move that file to `target`.

    Raises: BadOutput.
    """
    names = inspect(folder, ceilings)
    if names != (name,):
        raise BadOutput(f"exactly one file named {name!r} was expected, {len(names)} were left")
    os.rename(folder / name, target)
    os.chmod(target, 0o644)


def pack(folder: Path, names: tuple[str, ...], target: Path) -> Digest:
    """A tar of these files, the same bytes for the same content; its digest. `folder` is the agent's own."""
    with tarfile.open(target, mode="x:", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = (folder / name).stat().st_size
            entry.mode = 0o644
            with (folder / name).open("rb") as content:
                archive.addfile(entry, content)
    return file_digest(target)


def unpack(archive: Path, folder: Path, ceilings: Ceilings) -> None:
    """The regular files of a model's archive, below `folder`, which is fresh and the agent's own.

    Raises: BadOutput when the archive holds anything but regular files and folders under plain names, or too much.
    """
    try:
        with archive.open("rb") as file:
            source = StrictTar(
                file, limit_bytes=ceilings.output_bytes, kinds={Kind.FILE, Kind.FOLDER}, allows_dot=False
            )
            for entries, member in enumerate(source, 1):
                if entries > ceilings.output_files:
                    raise BadOutput(f"the model holds more than {ceilings.output_files} entries")
                _check_name(member.name)
                _unpack_member(source, member, folder)
    except BadTar as cause:
        raise BadOutput(f"the model is not a tar archive that is taken: {cause}") from cause


def read_performance(folder: Path, datasets: frozenset[str], ceilings: Ceilings) -> Performance:
    """The score the problem image left.

    Shape: performance.json = {"perf": float, "train_perf": {dataset id: float}, "test_perf": {dataset id: float}}
    Units: as the problem defines them; finite, larger is better.
    Raises: BadOutput when it is missing, over 1 MiB, not JSON, not finite, or names a dataset that was not in the task.
    Source: the container contract, "perf".
    """
    if "performance.json" not in inspect(folder, ceilings):
        raise BadOutput("performance.json is missing")
    path = folder / "performance.json"
    if path.stat().st_size > MAX_PERFORMANCE_BYTES:
        raise BadOutput(f"performance.json is over {MAX_PERFORMANCE_BYTES} bytes")
    try:
        told = decode(
            path.read_bytes(), Performance, limit_bytes=MAX_PERFORMANCE_BYTES, what="performance.json"
        )
    except AgentError as cause:
        raise BadOutput(str(cause)) from cause
    values = (told.perf, *told.train_perf.values(), *told.test_perf.values())
    if not all(math.isfinite(value) for value in values):
        raise BadOutput("performance.json holds a number that is not finite")
    if not datasets.issuperset(told.train_perf.keys() | told.test_perf.keys()):
        raise BadOutput("performance.json names a dataset that was not in the task")
    return told


def file_digest(path: Path) -> Digest:
    """The digest of a file of the agent's own."""
    with path.open("rb") as content:
        return digest_from_hex(hashlib.file_digest(content, "sha256").hexdigest())


def _walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(relative name, lstat) of everything below `folder`, walked by descriptors so that no link is followed."""
    skip = len(str(folder)) + 1
    for parent, folders, files, descriptor in os.fwalk(folder, follow_symlinks=False, onerror=_refuse):
        below = parent[skip:]
        if below.count("/") + 1 > MAX_DEPTH:
            raise BadOutput(f"folders nest deeper than {MAX_DEPTH}")
        for name in (*folders, *files):
            info = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            yield (f"{below}/{name}" if below else name), info


def _refuse(error: OSError) -> None:
    raise BadOutput(f"an output folder cannot be read: {error.strerror}") from error


def _check_name(name: str) -> None:
    parts = name.split("/")
    if name.startswith("/") or any(part in {"", ".", ".."} for part in parts) or len(parts) > MAX_DEPTH:
        raise BadOutput(f"the name {name!r:.120} is refused")
    try:
        raw = name.encode("utf-8")
    except UnicodeEncodeError as cause:
        raise BadOutput(f"the name {name!r:.120} is not UTF-8") from cause
    if not name.isprintable():
        raise BadOutput(f"the name {name!r:.120} holds characters that cannot be printed")
    if len(raw) > MAX_PATH_BYTES or max(len(part) for part in raw.split(b"/")) > MAX_NAME_BYTES:
        raise BadOutput(f"the name {name!r:.120} is too long")


def _check_file(name: str, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise BadOutput(f"{name!r} is a {_kind(info.st_mode)}, not a regular file")
    if info.st_nlink != 1:
        raise BadOutput(f"{name!r} is a hard link")
    if info.st_mode & _SET_ID:
        raise BadOutput(f"{name!r} has a set-id bit")
    if info.st_blocks * 512 + (1 << 20) < info.st_size:
        raise BadOutput(f"{name!r} is sparse")


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFLNK: "symbolic link",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
        stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")


def _unpack_member(source: StrictTar, member: Member, folder: Path) -> None:
    path = folder / member.name
    try:
        if member.kind is Kind.FOLDER:
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (FileExistsError, NotADirectoryError) as cause:
        raise BadOutput(f"the model holds {member.name!r:.120} twice") from cause
