"""Images in Podman's storage: loaded from archives that were read first, remembered by their archive's digest.

Nothing is ever pulled, and nothing is ever looked up by a name.
"""

import contextlib
import os
import time
from pathlib import Path

import msgspec

from agent.domain.ids import Digest, digest_from_hex, hex_of
from agent.errors import BadImage, NoSpace, RuntimeUnavailable
from agent.ports import image_archive, image_parts
from agent.ports.cage import StoredImage
from agent.ports.runtime import ImageInfo
from agent.ports.runtime_podman_api import ApiRefusal, PodmanApi


class PodmanImages:
    """The images of one service that came in through `load`; `store` holds one small JSON file for each."""

    def __init__(self, api: PodmanApi, store: Path) -> None:
        self._api, self._store = api, store

    def load(self, archive: Path, digest: Digest) -> ImageInfo:
        """As `Runtime.load`. Raises: BadImage, NoSpace, RuntimeUnavailable."""
        known = self.image(digest)
        if known is not None:
            return known
        found = image_archive.inspect(archive, digest)
        self._upload(archive, digest, found)
        stored = StoredImage(
            id=hex_of(found.image_id),
            size_bytes=found.size_bytes,
            entrypoint=found.entrypoint,
            env=dict(found.env),
        )
        if not self._has(stored):
            raise BadImage(f"Podman made another image of {hex_of(digest)[:12]} than its config names")
        self._name(digest, stored)
        self.remember(digest, stored)
        return _info(digest, stored)

    def image(self, digest: Digest) -> ImageInfo | None:
        """As `Runtime.image`."""
        stored = self.stored(digest)
        return None if stored is None else _info(digest, stored)

    def images(self) -> tuple[ImageInfo, ...]:
        """As `Runtime.images`."""
        found = []
        for path in sorted(self._store.glob("*.json")):
            with contextlib.suppress(ValueError):
                found.append(self.image(digest_from_hex(path.stem)))
        return tuple(info for info in found if info is not None)

    def stored(self, digest: Digest) -> StoredImage | None:
        """What is remembered of this archive, if Podman still has the image. Raises: RuntimeUnavailable."""
        try:
            content = (self._store / f"{hex_of(digest)}.json").read_bytes()
            stored = msgspec.json.decode(content, type=StoredImage)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return stored if self._has(stored) else None

    def remember(self, digest: Digest, stored: StoredImage) -> None:
        """Keep it durably; a reader sees all of it or nothing."""
        self._store.mkdir(parents=True, exist_ok=True)
        path = self._store / f"{hex_of(digest)}.json"
        part = path.with_suffix(f".{os.getpid()}.{time.monotonic_ns()}.part")
        with part.open("wb") as file:
            file.write(msgspec.json.encode(stored))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def _upload(self, archive: Path, digest: Digest, found: image_archive.ImageArchive) -> None:
        """Send what was judged, written anew: another reader could find another image in the author's bytes."""
        with contextlib.closing(image_parts.rewritten(archive, found.parts)) as blocks:
            try:
                self._api.upload("/images/load", blocks)
            except ApiRefusal as refusal:
                error = NoSpace if "no space left" in str(refusal) else BadImage
                raise error(f"Podman does not take image {hex_of(digest)[:12]}: {refusal}") from refusal

    def _name(self, digest: Digest, stored: StoredImage) -> None:
        """Give it a name, without which `podman image prune` would sweep it."""
        try:
            self._api.post(f"/images/{stored.id}/tag", repo="localhost/dc-compute", tag=hex_of(digest))
        except ApiRefusal as refusal:
            raise RuntimeUnavailable(f"Podman does not name an image: {refusal}") from refusal

    def _has(self, stored: StoredImage) -> bool:
        try:
            self._api.get(f"/images/{stored.id}/exists")
        except ApiRefusal as refusal:
            if refusal.status == 404:
                return False
            raise RuntimeUnavailable(f"Podman does not say whether it has an image: {refusal}") from refusal
        return True


def _info(digest: Digest, stored: StoredImage) -> ImageInfo:
    return ImageInfo(digest, stored.size_bytes, stored.entrypoint)
