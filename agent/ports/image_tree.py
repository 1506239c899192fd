"""The judged layers of an archive as one folder: the read-only root that all runs of an image share.

One tree serves every id map: all of it belongs to the agent, which no container's ids contain, so a guest is "others" to
it and finds the rights that it would have had as the image's user 1000:1000. Nobody but the agent may write. Set-id bits,
extended attributes and devices do not come into it. Everything is made by descriptors, and no link that a layer made
is ever followed.
Source: OCI image-spec, layer.md, "Applying Changesets".
"""

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from agent.domain.strict_tar import Kind, Member
from agent.errors import BadImage, NoSpace
from agent.ports.cage_check import GUEST_ID
from agent.ports.image_archive import ImageArchive, ImageLayer
from agent.ports.image_layers import Budget, LayerTar, is_whiteout
from agent.ports.image_parts import Content

MAX_MTIME_S = 1 << 33  # year 2242: what every file system can hold
READ_AND_ENTER = 0o5

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_BAD = {errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EMLINK, errno.EILSEQ}


def unpack(archive: Path, found: ImageArchive, target: Path, mount_points: Iterable[str] = ()) -> int:
    """Fill `target`, a folder that is empty or not there yet, with the layers of `found`, one applied after the other.

    `found` is what `image_archive.inspect` gave for these bytes: they are held against its digests once more. The folders
    `mount_points` ("data", "dev/shm") are made where the image has none. When it returns, all is on the disk, and the
    caller moves the folder to its place; interrupted, it leaves nothing but `target`.
    Gives the bytes of all files. Raises: BadImage, NoSpace; FileExistsError when something lies in `target`.
    """
    target.mkdir(mode=0o700, exist_ok=True)
    with archive.open("rb") as file, _open(target) as root, _translated():
        if os.listdir(root):
            raise FileExistsError(errno.EEXIST, "not empty", str(target))
        tree = _Tree(root)
        try:
            for layer in found.layers:
                _apply(layer, LayerTar(Content(file, layer.content), Budget()), tree)
            for name in mount_points:
                tree.make_mount_point(name)
        finally:
            tree.close()
        os.fchmod(root, 0o755)
        _flush(root)
    return tree.size_bytes


def _apply(layer: ImageLayer, tar: LayerTar, tree: "_Tree") -> None:
    """What the layer takes away goes first, so that it touches nothing of the layer's own."""
    for name in layer.judged.empties:
        tree.empty(name)
    for name in layer.judged.hides:
        tree.remove(name)
    for member in tar:
        tree.put(member, tar)
    if tar.finish() != layer.judged.diff_id:
        raise BadImage("a layer changed after it was judged")


class _Tree:
    """A folder being filled. The folders on the way to the last member are kept open: the next one is most often there."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._way: list[tuple[str, int]] = []  # (part of a name, descriptor), from the root down
        self.size_bytes = 0

    def close(self) -> None:
        self._leave(0)

    def put(self, member: Member, content: LayerTar) -> None:
        """Make one member, in the place of whatever had its name; a folder stays, with what it has."""
        if is_whiteout(member.name):
            self._folder(_above(member.name))
            return
        match member.kind:
            case Kind.FOLDER:
                self._put_folder(member)
            case Kind.FILE:
                self._put_file(member, content)
            case Kind.SYMBOLIC_LINK:
                parent, last = self._free_place(member.name)
                os.symlink(member.link, last, dir_fd=parent)
            case Kind.HARD_LINK:
                self._put_hard_link(member)

    def remove(self, name: str) -> None:
        """Take it away with all below it. It may not be there."""
        with suppress(FileNotFoundError, NotADirectoryError):
            self._remove(self._folder(_above(name), may_make=False), _last(name))

    def empty(self, name: str) -> None:
        """Take all away that the folder has. It may not be there, or be no folder."""
        with suppress(FileNotFoundError, NotADirectoryError):
            for one in os.listdir(self._folder(name, may_make=False)):
                self._remove(self._folder(name, may_make=False), one)

    def make_mount_point(self, name: str) -> None:
        """A folder that a runtime can reach without any right over the agent's files. Raises: BadImage."""
        parts = name.split("/")
        for depth in range(1, len(parts) + 1):
            try:
                os.fchmod(self._folder("/".join(parts[:depth])), 0o755)
            except NotADirectoryError as cause:
                raise BadImage(
                    f"the image has no folder at {'/' + name!r}, where the cage mounts one"
                ) from cause

    def _put_folder(self, member: Member) -> None:
        if member.name == ".":
            return
        parent, last = self._folder(_above(member.name)), _last(member.name)
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.stat(last, dir_fd=parent, follow_symlinks=False).st_mode):
                os.unlink(last, dir_fd=parent)
        os.fchmod(self._folder(member.name), 0o700 | _rights(member))

    def _put_file(self, member: Member, content: LayerTar) -> None:
        parent, last = self._free_place(member.name)
        with open(os.open(last, _NEW_FILE, 0o600, dir_fd=parent), "wb") as file:
            while block := content.read():
                file.write(block)
            file.flush()
            os.fchmod(file.fileno(), 0o400 | _rights(member))
            # Python takes compiled code only while the source has the time that it was compiled from.
            mtime_s = min(max(member.mtime_s, 0), MAX_MTIME_S)
            os.utime(file.fileno(), (mtime_s, mtime_s))
        self.size_bytes += member.size_bytes

    def _put_hard_link(self, member: Member) -> None:
        source = os.dup(self._folder(_above(member.link), may_make=False))
        try:
            if not stat.S_ISREG(os.stat(_last(member.link), dir_fd=source, follow_symlinks=False).st_mode):
                raise BadImage(f"{member.name!r:.120} is a hard link to no file")
            parent, last = self._free_place(member.name)
            os.link(_last(member.link), last, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError as cause:
            raise BadImage(f"{member.name!r:.120} is a hard link to nothing") from cause
        finally:
            os.close(source)

    def _free_place(self, name: str) -> tuple[int, str]:
        """(folder, last part of the name), with nothing there."""
        parent, last = self._folder(_above(name)), _last(name)
        try:
            os.stat(last, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return parent, last
        self._remove(parent, last)
        return self._folder(_above(name)), last

    def _remove(self, parent: int, last: str) -> None:
        if not stat.S_ISDIR(os.stat(last, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(last, dir_fd=parent)
            return
        shutil.rmtree(last, dir_fd=parent)
        self._leave(0)  # what is open may be gone

    def _folder(self, name: str, *, may_make: bool = True) -> int:
        """The descriptor of a folder, good until the next call. Raises: NotADirectoryError, for a link too."""
        parts = [] if name == "" else name.split("/")
        known = 0
        while known < min(len(parts), len(self._way)) and self._way[known][0] == parts[known]:
            known += 1
        self._leave(known)
        for part in parts[known:]:
            parent = self._way[-1][1] if self._way else self._root
            self._way.append((part, _enter(parent, part, may_make=may_make)))
        return self._way[-1][1] if self._way else self._root

    def _leave(self, depth: int) -> None:
        while len(self._way) > depth:
            os.close(self._way.pop()[1])


def _enter(parent: int, part: str, *, may_make: bool) -> int:
    try:
        return os.open(part, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        if not may_make:
            raise
    os.mkdir(part, 0o700, dir_fd=parent)
    folder = os.open(part, _FOLDER, dir_fd=parent)
    os.fchmod(folder, 0o755)  # whatever the umask
    return folder


def _rights(member: Member) -> int:
    """What user and group 1000 may do with it, but write, as the mode of everybody."""
    shift = 6 if member.uid == GUEST_ID else 3 if member.gid == GUEST_ID else 0
    return (member.mode >> shift & READ_AND_ENTER) * 0o111


def _above(name: str) -> str:
    return name.rpartition("/")[0]


def _last(name: str) -> str:
    return name.rpartition("/")[2]


@contextmanager
def _open(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, _FOLDER)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _translated() -> Iterator[None]:
    """What the file system refuses, as whose fault it is. Other OSErrors are the host's and pass."""
    try:
        yield
    except OSError as cause:
        if cause.errno in _NO_SPACE:
            raise NoSpace(f"there is no space to unpack an image: {cause.strerror}") from cause
        if cause.errno in _BAD:
            raise BadImage(f"an image's layers do not fit together: {cause}") from cause
        raise


def _flush(folder: int) -> None:
    """Everything of this file system onto its disk: one call, where a sync of each file would take minutes."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(folder) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
