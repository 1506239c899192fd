"""Images in Podman's storage: loaded from archives that were read first, remembered by their archive's digest.

Nothing is ever pulled, and nothing is ever looked up by a name. Of each archive the store holds one file, whose ending
tells how far it is:

    HEX.loading   it is being loaded; when nobody holds the lock, that was interrupted
    HEX.json      it is loaded; the file's time is when it was loaded or ran last
    HEX.leaving   it is being discarded; when nobody holds the lock, that was interrupted
"""

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from agent.domain.ids import Digest, digest_from_hex, hex_of
from agent.domain.prepared import prepared
from agent.errors import BadImage, NoSpace, RuntimeUnavailable
from agent.ports import image_archive, image_parts
from agent.ports.cage import StoredImage
from agent.ports.runtime import ImageInfo
from agent.ports.runtime_podman_api import ApiRefusal, PodmanApi

LOADED, LOADING, LEAVING, PART = ".json", ".loading", ".leaving", ".part"
PART_LIFE_S = 3600.0  # a file is written beside in a moment; one this old was left


class PodmanImages:
    """The images of one service that came in through `load`; `store` is this agent's alone, the service need not be."""

    def __init__(self, api: PodmanApi, store: Path) -> None:
        self._api, self._store = api, store

    def load(self, archive: Path, digest: Digest) -> ImageInfo:
        """As `Runtime.load`. Raises: BadImage, NoSpace, RuntimeUnavailable."""
        known = self.image(digest)
        if known is not None:
            return known
        found = image_archive.inspect(archive, digest)
        stored = StoredImage(
            id=hex_of(found.image_id),
            size_bytes=found.size_bytes,
            entrypoint=found.entrypoint,
            env=dict(found.env),
        )
        with self._locked(digest):
            if (known := self.image(digest)) is None:  # another worker was quicker
                self._write(self._path(digest, LOADING), stored)
                self._upload(archive, digest, found)
                if not self._has(stored):
                    raise BadImage(
                        f"Podman made another image of {hex_of(digest)[:12]} than its config names"
                    )
                self._name(digest, stored)
                self.remember(digest, stored)
        return known or self._info(digest, stored)

    def image(self, digest: Digest) -> ImageInfo | None:
        """As `Runtime.image`."""
        stored = self.stored(digest)
        return None if stored is None else self._info(digest, stored)

    def images(self) -> tuple[ImageInfo, ...]:
        """As `Runtime.images`."""
        found = []
        for path in sorted(self._store.glob(f"*{LOADED}")):
            with contextlib.suppress(ValueError):
                found.append(self.image(digest_from_hex(path.stem)))
        return tuple(info for info in found if info is not None)

    def stored(self, digest: Digest) -> StoredImage | None:
        """What is remembered of this archive, if Podman still has the image. Raises: RuntimeUnavailable."""
        stored = self.remembered(digest)
        return stored if stored is not None and self._has(stored) else None

    def remembered(self, digest: Digest) -> StoredImage | None:
        """The same without asking Podman, who may have lost the image."""
        try:
            return msgspec.json.decode(self._path(digest, LOADED).read_bytes(), type=prepared(StoredImage))
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def remember(self, digest: Digest, stored: StoredImage) -> None:
        """Keep it durably; a reader sees all of it or nothing."""
        self._write(self._path(digest, LOADED), stored)
        self._path(digest, LOADING).unlink(missing_ok=True)

    def touch(self, digest: Digest) -> None:
        """It is used now."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._path(digest, LOADED))

    # -------------------------------------------------------------- leaving

    def discard(self, digest: Digest) -> bool:
        """As `Runtime.discard`."""
        with self._locked(digest):
            loaded, leaving = self._path(digest, LOADED), self._path(digest, LEAVING)
            # From here on nobody finds it: a task that looks for it now loads it again.
            with contextlib.suppress(FileNotFoundError):
                os.rename(loaded, leaving)
            if not self._delete(digest):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(leaving, loaded)
                return False
            leaving.unlink(missing_ok=True)
        return True

    def clear(self) -> int:
        """As `Runtime.clear_images`."""
        cleared = 0
        for path in sorted((*self._store.glob(f"*{LOADING}"), *self._store.glob(f"*{LEAVING}"))):
            with contextlib.suppress(ValueError, BlockingIOError):
                digest = digest_from_hex(path.stem)
                with self._locked(digest, waits=False):
                    cleared += self._clear_one(digest, path)
        for part in self._store.glob(f"*{PART}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - part.stat().st_mtime > PART_LIFE_S:
                    part.unlink()
        return cleared

    def _clear_one(self, digest: Digest, path: Path) -> bool:
        """End what was interrupted, with the lock held."""
        if not path.exists():  # it ended meanwhile
            return False
        if not self._path(digest, LOADED).exists():
            with contextlib.suppress(msgspec.MsgspecError):  # then nothing was begun with it
                stored = msgspec.json.decode(path.read_bytes(), type=prepared(StoredImage))
                if not self._delete(digest) or not self._delete_unnamed(stored):
                    return False
        path.unlink(missing_ok=True)
        return True

    def _delete(self, digest: Digest) -> bool:
        """Take our name off the image, and the image with the last of its names. False while a container uses it."""
        return self._remove(self._reference(digest))

    def _delete_unnamed(self, stored: StoredImage) -> bool:
        """Delete an image that was loaded and not named yet. One with a name is somebody's."""
        try:
            about = self._api.get(f"/images/{stored.id}/json")
        except ApiRefusal as refusal:
            if refusal.status == 404:
                return True
            raise RuntimeUnavailable(f"Podman does not say what an image is: {refusal}") from refusal
        return bool(about.get("RepoTags")) or self._remove(stored.id)

    def _remove(self, reference: str) -> bool:
        try:
            self._api.delete(f"/images/{reference}")
        except ApiRefusal as refusal:
            if refusal.status == 409:
                return False
            if refusal.status != 404:
                raise RuntimeUnavailable(f"Podman does not remove an image: {refusal}") from refusal
        return True

    # -------------------------------------------------------------- parts

    def _info(self, digest: Digest, stored: StoredImage) -> ImageInfo:
        try:
            used_s = self._path(digest, LOADED).stat().st_mtime
        except FileNotFoundError:  # discarded this very moment
            used_s = 0.0
        return ImageInfo(digest, stored.size_bytes, stored.entrypoint, datetime.fromtimestamp(used_s, UTC))

    def _path(self, digest: Digest, ending: str) -> Path:
        return self._store / f"{hex_of(digest)}{ending}"

    def _write(self, path: Path, stored: StoredImage) -> None:
        self._store.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.{time.monotonic_ns()}{PART}")
        with part.open("wb") as file:
            file.write(msgspec.json.encode(stored))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    @contextlib.contextmanager
    def _locked(self, digest: Digest, *, waits: bool = True) -> Iterator[None]:
        """One at a time over all workers, for each archive (and the few that share a lock with it).

        Raises: BlockingIOError when it shall not wait.
        """
        self._store.mkdir(parents=True, exist_ok=True)
        lock = os.open(
            self._store / f"{hex_of(digest)[0]}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            yield
        finally:
            os.close(lock)

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
        repo, _, tag = self._reference(digest).partition(":")
        try:
            self._api.post(f"/images/{stored.id}/tag", repo=repo, tag=tag)
        except ApiRefusal as refusal:
            raise RuntimeUnavailable(f"Podman does not name an image: {refusal}") from refusal

    def _reference(self, digest: Digest) -> str:
        """The image's name in Podman: one for each archive and store, so that an image goes with the last that wants it."""
        mark = hashlib.sha256(os.fsencode(self._store.absolute())).hexdigest()[:12]
        return f"localhost/dc-compute/{mark}:{hex_of(digest)}"

    def _has(self, stored: StoredImage) -> bool:
        try:
            self._api.get(f"/images/{stored.id}/exists")
        except ApiRefusal as refusal:
            if refusal.status == 404:
                return False
            raise RuntimeUnavailable(f"Podman does not say whether it has an image: {refusal}") from refusal
        return True
