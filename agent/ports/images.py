"""The port that looks into an image's archive without an engine: nothing is unpacked, loaded or run."""

from pathlib import Path
from typing import Protocol

from msgspec import Struct

from agent.domain.ids import Digest
from agent.domain.images import ImageAbout, ImageEntry


class ImageLook(Struct, frozen=True):
    """What was seen: the papers, and the listing within the bounds of `domain.images`."""

    about: ImageAbout
    listing: tuple[ImageEntry, ...]


class Images(Protocol):
    """Reads archives, judges them as they will be judged before they are loaded, and lists them."""

    def look(self, archive: Path, digest: Digest, *, within_s: float) -> ImageLook:
        """What the archive holds. `digest` is that of its bytes; the caller has checked it.

        Raises: BadImage, naming what is refused; also when reading it took longer than `within_s`.
        """
        ...
