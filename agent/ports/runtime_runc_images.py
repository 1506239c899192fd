"""Images for runc: read first, then unpacked once for each archive into a read-only root that every run shares.

Below `store` each image has a folder of its own, named by its archive's digest, which appears whole and goes whole: `root` and
`image.json`, whose time is when it was loaded or ran last. A folder with another ending is on its way in or out; when nobody
holds its lock, that was interrupted.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from agent.domain.ids import Digest, digest_from_hex, hex_of
from agent.domain.prepared import prepared
from agent.errors import NoSpace
from agent.ports import image_archive, image_tree
from agent.ports.cage import StoredImage
from agent.ports.runtime import ImageInfo

PART, NOTE = ".part-", "image.json"
NAME = re.compile("[0-9a-f]{64}")
MOUNT_POINTS = (
    "data",
    "dev",
    "hidden_data",
    "proc",
    "submission_data",
    "tmp",
)  # what every run is mounted on


class RuncImages:
    """The images of one store."""

    def __init__(self, store: Path) -> None:
        self._store = store

    def load(self, archive: Path, digest: Digest) -> ImageInfo:
        """As `Runtime.load`. Raises: BadImage, NoSpace."""
        known = self.image(digest)
        if known is not None:
            return known
        found = image_archive.inspect(archive, digest)
        with self._part(digest) as part:
            self._unpack(archive, found, part)
            stored = StoredImage(
                id=hex_of(found.image_id),
                size_bytes=found.size_bytes,
                entrypoint=found.entrypoint,
                env=dict(found.env),
            )
            _write(part / NOTE, msgspec.json.encode(stored))
            self._place(part, digest)
        return self.image(digest) or _info(digest, stored, 0.0)

    def _place(self, part: Path, digest: Digest) -> None:
        """Move a whole image to its place, unless another worker was quicker. What lies there and is none makes room."""
        try:
            part.rename(self._folder(digest))
        except OSError as cause:
            if cause.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            if self.stored(digest) is None:  # a note that another version wrote
                self.discard(digest)
                part.rename(self._folder(digest))

    def image(self, digest: Digest) -> ImageInfo | None:
        """As `Runtime.image`."""
        stored = self.stored(digest)
        try:
            used_s = (self._folder(digest) / NOTE).stat().st_mtime
        except FileNotFoundError:
            return None
        return None if stored is None else _info(digest, stored, used_s)

    def images(self) -> tuple[ImageInfo, ...]:
        """As `Runtime.images`."""
        found = []
        for path in sorted(self._store.glob("*")):
            with contextlib.suppress(ValueError):  # on its way in or out, or nothing of ours
                found.append(self.image(digest_from_hex(path.name)))
        return tuple(info for info in found if info is not None)

    def touch(self, digest: Digest) -> None:
        """It is used now."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._folder(digest) / NOTE)

    def discard(self, digest: Digest) -> None:
        """Take it away, which no run may use. Gone already is fine."""
        leaving = self._store / _part_name(digest)
        with contextlib.suppress(FileNotFoundError):
            self._folder(digest).rename(leaving)  # from here on nobody finds it
            shutil.rmtree(leaving)

    def clear(self) -> int:
        """As `Runtime.clear_images`."""
        return sum(self._clear(part) for part in self._store.glob(f"*{PART}*"))

    def stored(self, digest: Digest) -> StoredImage | None:
        """What is remembered of this archive's image, None when it is not here."""
        try:
            return msgspec.json.decode((self._folder(digest) / NOTE).read_bytes(), type=prepared(StoredImage))
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def root(self, digest: Digest) -> Path:
        """The unpacked image."""
        return self._folder(digest) / "root"

    def _folder(self, digest: Digest) -> Path:
        return self._store / hex_of(digest)

    @contextlib.contextmanager
    def _part(self, digest: Digest) -> Iterator[Path]:
        """A folder to be filled, locked meanwhile; what is not moved away is removed."""
        self._store.mkdir(mode=0o700, parents=True, exist_ok=True)
        part, lock = self._new_part(digest)
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)
            os.close(lock)

    def _new_part(self, digest: Digest) -> tuple[Path, int]:
        """(folder, its lock, held). What a sweep takes for interrupted before it is locked is made again."""
        while True:
            part = self._store / _part_name(digest)
            part.mkdir(mode=0o700)
            with contextlib.suppress(FileNotFoundError):
                lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(lock, fcntl.LOCK_EX)
                if part.exists():  # nobody else makes one of this name
                    return part, lock
                os.close(lock)

    def _clear(self, part: Path) -> bool:
        """Remove what was interrupted; whether it was."""
        try:
            lock = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part, ignore_errors=True)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        return True

    def _unpack(self, archive: Path, found: image_archive.ImageArchive, part: Path) -> None:
        free = shutil.disk_usage(self._store).free
        if free < found.size_bytes:
            raise NoSpace(
                f"{self._store} has {free >> 20} MiB free, the image needs {found.size_bytes >> 20}"
            )
        image_tree.unpack(archive, found, part / "root", MOUNT_POINTS)
        (part / "root/tmp").chmod(
            0o1777
        )  # runc gives a tmpfs the mode of the folder it covers; the root is read-only


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _part_name(digest: Digest) -> str:
    return f"{hex_of(digest)}{PART}{secrets.token_hex(8)}"


def _info(digest: Digest, stored: StoredImage, used_s: float) -> ImageInfo:
    return ImageInfo(digest, stored.size_bytes, stored.entrypoint, datetime.fromtimestamp(used_s, UTC))
