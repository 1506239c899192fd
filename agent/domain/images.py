"""What an image's archive holds, as the operator is shown it before anything of it is unpacked or run.

Everything here was written by the image's author: data, to be shown and never obeyed.
"""

from datetime import datetime

from msgspec import Struct

from agent.domain.ids import Digest

PAGE_ENTRIES = 500  # of a listing, together in one page
MAX_LISTED = 200_000  # entries that a listing names; those after it are only counted
MAX_LISTED_BYTES = 8 << 20  # of names and links in one listing


class ImageEntry(Struct, frozen=True, kw_only=True):
    """One entry of one layer, in the order in which the layers bring them; a later one takes an earlier one's place.

    `kind`: file, folder, symbolic link or hard link. `mode`: the permission bits, set-id and sticky among them.
    `link`: what a symbolic link says, or the entry that a hard link names; "" otherwise.
    """

    layer: int
    path: str
    kind: str
    size_bytes: int
    mode: int
    link: str = ""


class ImageLayer(Struct, frozen=True, kw_only=True):
    """One layer: the digest of its content, the bytes it unpacks to (headers of the tar included), its entries."""

    digest: Digest
    size_bytes: int
    entries: int


class ImageAbout(Struct, frozen=True, kw_only=True):
    """What stands in the papers of an image that may be loaded, and how much its layers bring.

    `set_ids`: entries with a set-id bit, which the cage makes useless. `is_cut`: the listing names fewer than `entries`.
    """

    image_id: Digest
    platform: str
    entrypoint: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    labels: tuple[tuple[str, str], ...]
    size_bytes: int  # of all layers, unpacked
    layers: tuple[ImageLayer, ...]
    entries: int
    set_ids: int
    is_cut: bool


class ImageDescription(Struct, frozen=True, kw_only=True):
    """An archive that was read once: `about` is None when it may not be loaded, and `problem` then says why."""

    image: Digest
    read_at: datetime
    archive_bytes: int
    problem: str | None = None
    about: ImageAbout | None = None
