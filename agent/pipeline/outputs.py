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
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from agent.domain.ceilings import Ceilings
from agent.domain.ids import Digest, digest_from_hex
from agent.domain.strict_json import decode
from agent.domain.strict_tar import BadTar, Kind, Member, StrictTar
from agent.errors import AgentError, BadOutput
from agent.pipeline.space import open_folder
from agent.pipeline.workspace import set_modes

MAX_PERFORMANCE_BYTES = 1 << 20
MAX_DEPTH = 16
COPY_BYTES = 1 << 20  # of content at once; tarfile would take 16 KiB
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 1024  # far below what the system takes: the workspace stands before it
MAX_HOLE_BYTES = 1 << 20  # of all files together: a formatted container may have some, a bomb is made of them
CAPABILITIES = "security.capability"

_SET_ID = stat.S_ISUID | stat.S_ISGID


class Performance(Struct, frozen=True, forbid_unknown_fields=True):
    """The score the problem image left: as the problem defines it, finite, larger is better."""

    perf: float
    train_perf: Annotated[dict[str, float], Meta(max_length=1000)] = {}
    test_perf: Annotated[dict[str, float], Meta(max_length=1000)] = {}


def inspect(folder: Path, ceilings: Ceilings) -> tuple[str, ...]:
    """Relative names of every regular file below `folder`, sorted, after refusing everything that is not plain.

    Memory and time are bounded by the ceilings, however much lies there.
    Raises: BadOutput for links, devices, fifos, sockets, hard links, set-id bits, file capabilities, more than 1 MiB of holes,
    names that are not UTF-8, too long or not printable, depth over 16, and more bytes or files than the ceilings.
    """
    names: list[str] = []
    total = entries = holes = 0
    with closing(_walk(folder)) as found:
        for name, info in found:
            entries += 1
            if entries > ceilings.output_files:
                raise BadOutput(f"more than {ceilings.output_files} files and folders were left")
            _check_name(name)
            if stat.S_ISDIR(info.st_mode):
                continue
            _check_file(folder, name, info)
            total += info.st_size
            if total > ceilings.output_bytes:
                raise BadOutput(f"more than {ceilings.output_bytes} bytes were left")
            holes += _hole_bytes(info)
            if holes > MAX_HOLE_BYTES:
                raise BadOutput(
                    f"sparse files with over {MAX_HOLE_BYTES} bytes of holes were left", repr(name)
                )
            names.append(name)
    return tuple(sorted(names))


def take(folder: Path, target: Path, ceilings: Ceilings) -> tuple[str, ...]:
    """Inspect `folder` and move it to `target`, a path that no guest has seen; the names of its files. Moved already is fine.

    Raises: BadOutput.
    """
    names = inspect(target if target.exists() else folder, ceilings)
    if not target.exists():
        os.rename(folder, target)
    for parent, _, files in os.walk(target):
        for name in (".", *files):
            strip_attributes(os.path.join(parent, name))
    set_modes(target, writable=False)
    return names


def take_file(folder: Path, name: str, target: Path, ceilings: Ceilings) -> None:
    """Inspect `folder`, which must hold exactly the one file `name`, and move that file to `target`. Moved already is fine.

    Raises: BadOutput.
    """
    if not target.exists():
        names = inspect(folder, ceilings)
        if names != (name,):
            raise BadOutput(f"exactly one file named {name!r} was expected, {len(names)} were left")
        os.rename(folder / name, target)
    strip_attributes(target)
    os.chmod(target, 0o644)


def strip_attributes(path: str | Path) -> None:
    """Take access lists and other extended attributes off what a guest made; the host's own labels stay.

    `path` is the agent's own by now, and no link. Raises: BadOutput for more of them than the kernel lists.
    """
    try:
        for attribute in os.listxattr(path):
            if not attribute.startswith("security."):  # SELinux and its like label every file
                os.removexattr(path, attribute)
    except OSError as cause:  # its own message would hold the name
        raise BadOutput(f"attributes cannot be taken off: {cause.strerror}", f"{path!s:.120}") from None


def pack(folder: Path, names: tuple[str, ...], target: Path) -> Digest:
    """A tar of these files, the same bytes for the same content; its digest. `folder` is the agent's own."""
    with tarfile.open(target, mode="x:", format=tarfile.PAX_FORMAT) as archive:
        archive.copybufsize = COPY_BYTES  # type: ignore[attr-defined]  # typeshed lacks it
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
        raise BadOutput("the model is not a tar archive that is taken", str(cause)) from cause


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
        raise BadOutput("performance.json is not strict JSON of the contract's shape", str(cause)) from cause
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


def _walk(folder: Path) -> Generator[tuple[str, os.stat_result], None, None]:
    """(relative name, lstat) of everything below `folder`, one after the other, by descriptors so that no link is followed."""
    try:
        yield from _walk_open(open_folder(folder), "", 1)
    except OSError as cause:
        raise BadOutput(f"an output folder cannot be read: {cause.strerror}") from cause


def _walk_open(folder: int, below: str, depth: int) -> Generator[tuple[str, os.stat_result], None, None]:
    """What lies in this open folder, then what lies in each of its folders. Closes it."""
    try:
        if depth > MAX_DEPTH + 1:
            raise BadOutput(f"folders nest deeper than {MAX_DEPTH}")
        folders: list[str] = []  # the caller counts entries and stops: nothing lists a whole folder
        with os.scandir(folder) as entries:
            for entry in entries:
                info = entry.stat(follow_symlinks=False)
                yield below + entry.name, info
                if stat.S_ISDIR(info.st_mode):
                    folders.append(entry.name)
        for name in folders:
            yield from _walk_open(open_folder(name, folder), f"{below}{name}/", depth + 1)
    finally:
        os.close(folder)


def _hole_bytes(info: os.stat_result) -> int:
    """How much of a file is not there, in whole pages: a file system may keep a little content beside its blocks."""
    return max(0, info.st_size - info.st_blocks * 512) // 4096 * 4096


def _check_name(name: str) -> None:
    parts = name.split("/")
    seen = f"{name!r:.120}"
    if name.startswith("/") or any(part in {"", ".", ".."} for part in parts) or len(parts) > MAX_DEPTH:
        raise BadOutput(f"a name is refused: it leads elsewhere, or deeper than {MAX_DEPTH}", seen)
    try:
        raw = name.encode("utf-8")
    except UnicodeEncodeError as cause:
        raise BadOutput("a name is not UTF-8", seen) from cause
    if not name.isprintable():
        raise BadOutput("a name holds characters that cannot be printed", seen)
    if len(raw) > MAX_PATH_BYTES or max(len(part) for part in raw.split(b"/")) > MAX_NAME_BYTES:
        raise BadOutput("a name is too long", seen)


def _check_file(folder: Path, name: str, info: os.stat_result) -> None:
    seen = f"{name!r:.120}"
    if not stat.S_ISREG(info.st_mode):
        raise BadOutput(f"a {_kind(info.st_mode)} was left, not a regular file", seen)
    if info.st_nlink != 1:
        raise BadOutput("a hard link was left", seen)
    if info.st_mode & _SET_ID:
        raise BadOutput("a file with a set-id bit was left", seen)
    try:
        attributes = os.listxattr(folder / name, follow_symlinks=False)
    except OSError as cause:  # more of them than the kernel lists; its own message would hold the name
        raise BadOutput(f"the attributes of a file cannot be read: {cause.strerror}", seen) from None
    if CAPABILITIES in attributes:
        raise BadOutput("a file with capabilities was left", seen)


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
            shutil.copyfileobj(source, target, COPY_BYTES)
    except (FileExistsError, NotADirectoryError) as cause:
        raise BadOutput("the model holds a name twice", f"{member.name!r:.120}") from cause
