"""Images looked into by the reader that judges them before they are loaded (`image_archive.py`). No engine takes part.

Bounded in memory by the listing's limits, in time by a deadline that is looked at with every block: a layer of zeros that
unpacks to the limit, or a million entries, cost that much and no more.
"""

import time
from pathlib import Path

from agent.domain.ids import Digest
from agent.domain.images import MAX_LISTED, MAX_LISTED_BYTES, ImageAbout, ImageEntry, ImageLayer
from agent.domain.strict_tar import Member
from agent.errors import BadImage
from agent.ports.image_archive import inspect
from agent.ports.image_layers import Budget
from agent.ports.images import ImageLook

SET_ID = 0o6000


class TarImages:
    """See `images.Images`."""

    def look(self, archive: Path, digest: Digest, *, within_s: float) -> ImageLook:
        """What the archive holds. Raises: BadImage."""
        eye = _Eye(within_s)
        budget = Budget(see=eye.see, beat=eye.beat)
        found = inspect(archive, digest, budget)
        about = ImageAbout(
            image_id=found.image_id,
            platform=found.platform,
            entrypoint=found.entrypoint,
            env=found.env,
            labels=found.labels,
            size_bytes=found.size_bytes,
            layers=tuple(
                ImageLayer(digest=one.diff_id, size_bytes=one.size_bytes, entries=one.entries)
                for one in (layer.judged for layer in found.layers)
            ),
            entries=budget.entries,
            set_ids=eye.set_ids,
            is_cut=budget.entries > len(eye.listing),
        )
        return ImageLook(about, tuple(eye.listing))


class _Eye:
    """Looks on while the layers are read: keeps the listing within its bounds, and the time."""

    def __init__(self, within_s: float) -> None:
        self.listing: list[ImageEntry] = []
        self.set_ids = 0
        self._within_s, self._ends = within_s, time.monotonic() + within_s
        self._left_bytes = MAX_LISTED_BYTES

    def beat(self) -> None:
        """Raises: BadImage when the time is over."""
        if time.monotonic() > self._ends:
            raise BadImage(f"nobody can read it within {self._within_s:.0f} s")

    def see(self, layer: int, member: Member) -> None:
        """List this entry, while there is room."""
        self.beat()  # an entry of no bytes reads no block
        self.set_ids += bool(member.mode & SET_ID)
        self._left_bytes -= len(member.name.encode()) + len(member.link.encode())
        if self._left_bytes >= 0 and len(self.listing) < MAX_LISTED:
            entry = ImageEntry(
                layer=layer,
                path=member.name,
                kind=member.kind,
                size_bytes=member.size_bytes,
                mode=member.mode,
                link=member.link,
            )
            self.listing.append(entry)
