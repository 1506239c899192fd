"""The part of the port to the ledger that knows of images: what the operator ruled, and what archives hold."""

from collections.abc import Collection, Sequence
from typing import Protocol

from agent.domain.approvals import Ruling, Verdict
from agent.domain.ids import Digest
from agent.domain.images import ImageDescription, ImageEntry


class ImagesLedger(Protocol):
    """Images that an order named and this host did not know."""

    # ---- what the operator ruled on images

    def rule(self, ruling: Ruling) -> bool:
        """Append it with an event `image.<verdict>`, unless it says what the last one on this image says; whether it did."""
        ...

    def ruling(self, image: Digest) -> Ruling | None:
        """The last ruling on this image."""
        ...

    def verdict_on(self, image: Digest) -> Verdict | None:
        """What the last ruling on this image says."""
        ...

    def rulings(self, *, image: Digest | None = None, limit: int = 500) -> tuple[Ruling, ...]:
        """Rulings, of one image or of all, newest first."""
        ...

    # ---- which images orders name

    def needed_images(self, *, is_held: bool = False) -> frozenset[Digest]:
        """Every image of an order with a job here that is to run still; `is_held`: with one that is held."""
        ...

    # ---- what images hold that wait for the operator

    def describe(self, description: ImageDescription, listing: Sequence[ImageEntry] = ()) -> None:
        """Keep what was read of an archive. The first description of an image stays: the archive's digest is its name."""
        ...

    def description(self, image: Digest) -> ImageDescription | None:
        """What was read of this archive."""
        ...

    def listing(self, image: Digest, page: int) -> tuple[ImageEntry, ...]:
        """The entries of page `page` (from 0, of PAGE_ENTRIES) of a description's listing; none behind its end."""
        ...

    def forget_descriptions(self, keep: Collection[Digest]) -> int:
        """Drop the descriptions of all images but these; how many."""
        ...
