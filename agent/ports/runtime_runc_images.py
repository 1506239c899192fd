"""Images for runc: read first, then unpacked once for each archive into a read-only root that every run shares.

Below `store` each image has a folder of its own, named by its archive's digest, which appears whole: `root` and `image.json`.
"""

import os
import secrets
import shutil
from pathlib import Path

import msgspec

from agent.domain.ids import Digest, digest_from_hex, hex_of
from agent.errors import NoSpace
from agent.ports import image_archive, image_tree
from agent.ports.cage import StoredImage
from agent.ports.runtime import ImageInfo

PART = ".part-"
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
        self._store.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self._store / f"{hex_of(digest)}{PART}{secrets.token_hex(8)}"
        part.mkdir(mode=0o700)
        try:
            self._unpack(archive, found, part)
            stored = StoredImage(
                id=hex_of(found.image_id),
                size_bytes=found.size_bytes,
                entrypoint=found.entrypoint,
                env=dict(found.env),
            )
            _write(part / "image.json", msgspec.json.encode(stored))
            if not self._folder(digest).exists():  # else another worker was quicker
                part.rename(self._folder(digest))
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return _info(digest, stored)

    def image(self, digest: Digest) -> ImageInfo | None:
        """As `Runtime.image`."""
        stored = self.stored(digest)
        return None if stored is None else _info(digest, stored)

    def images(self) -> tuple[ImageInfo, ...]:
        """As `Runtime.images`."""
        names = sorted(path.name for path in self._store.glob("*") if PART not in path.name)
        found = (self.image(digest_from_hex(name)) for name in names)
        return tuple(info for info in found if info is not None)

    def stored(self, digest: Digest) -> StoredImage | None:
        """What is remembered of this archive's image, None when it is not here."""
        try:
            return msgspec.json.decode((self._folder(digest) / "image.json").read_bytes(), type=StoredImage)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def root(self, digest: Digest) -> Path:
        """The unpacked image."""
        return self._folder(digest) / "root"

    def _folder(self, digest: Digest) -> Path:
        return self._store / hex_of(digest)

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


def _info(digest: Digest, stored: StoredImage) -> ImageInfo:
    return ImageInfo(digest, stored.size_bytes, stored.entrypoint)
