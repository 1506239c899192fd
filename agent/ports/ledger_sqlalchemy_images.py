"""The ledger's transactions on images: what the operator ruled, and what was read of archives that wait for a ruling."""

import zlib
from collections.abc import Collection, Sequence
from typing import Final

import msgspec
from sqlalchemy import Connection, RowMapping, bindparam, delete, insert, select

from agent.domain.approvals import Ruling, Verdict
from agent.domain.ids import Digest
from agent.domain.images import PAGE_ENTRIES, ImageAbout, ImageDescription, ImageEntry
from agent.domain.prepared import prepared
from agent.domain.strict_json import encode
from agent.ports.ledger_schema import descriptions, image_needs, listings, rulings
from agent.ports.ledger_sqlalchemy_file import LedgerFile
from agent.ports.ledger_sqlalchemy_lines import tell
from agent.ports.ledger_sqlalchemy_prepared import Prepared
from agent.ports.ledger_sqlalchemy_rows import Plain

_LAST_VERDICT: Final = Prepared(
    select(rulings.c.verdict)
    .where(rulings.c.image == bindparam("image"))
    .order_by(rulings.c.seq.desc())
    .limit(1)
)

VERDICT_EVENTS = {verdict: f"image.{verdict}" for verdict in Verdict}


class ImageRecords:
    """The part of the ledger that knows of images."""

    def __init__(self, file: LedgerFile) -> None:
        self._file = file

    def rule(self, ruling: Ruling) -> bool:
        with self._file.writing() as tx:
            last = _last_ruling(tx, ruling.image)
            if last is not None and last.verdict is ruling.verdict:
                return False
            tx.execute(insert(rulings), msgspec.structs.asdict(ruling))
            values: dict[str, Plain] = {"image": ruling.image, "uid": ruling.uid, "reason": ruling.reason}
            tell(tx, VERDICT_EVENTS[ruling.verdict], ruling.at, None, None, values)
            return True

    def ruling(self, image: Digest) -> Ruling | None:
        with self._file.reading() as tx:
            return _last_ruling(tx, image)

    def verdict_on(self, image: Digest) -> Verdict | None:
        with self._file.looking() as driver:
            last = _LAST_VERDICT.first(driver, {"image": image})
        return None if last is None else Verdict(last[0])

    def rulings(self, *, image: Digest | None = None, limit: int = 500) -> tuple[Ruling, ...]:
        query = select(rulings).order_by(rulings.c.seq.desc()).limit(limit)
        if image is not None:
            query = query.where(rulings.c.image == image)
        with self._file.reading() as tx:
            return tuple(_ruling_of(row) for row in tx.execute(query).mappings())

    def describe(self, description: ImageDescription, listing: Sequence[ImageEntry] = ()) -> None:
        image = description.image
        row = msgspec.structs.asdict(description)
        row["about"] = None if description.about is None else encode(description.about)
        pages = [
            {"image": image, "page": page, "entries": zlib.compress(encode(entries))}
            for page, entries in enumerate(_in_pages(listing))
        ]
        with self._file.writing() as tx:
            if tx.execute(select(descriptions.c.image).where(descriptions.c.image == image)).first() is None:
                tx.execute(insert(descriptions), row)
                if pages:
                    tx.execute(insert(listings), pages)

    def description(self, image: Digest) -> ImageDescription | None:
        query = select(descriptions).where(descriptions.c.image == image)
        with self._file.reading() as tx:
            row = tx.execute(query).mappings().one_or_none()
        return None if row is None else _description_of(row)

    def listing(self, image: Digest, page: int) -> tuple[ImageEntry, ...]:
        query = select(listings.c.entries).where(listings.c.image == image, listings.c.page == page)
        with self._file.reading() as tx:
            entries = tx.execute(query).scalar_one_or_none()
        if entries is None:
            return ()
        return msgspec.json.decode(zlib.decompress(entries), type=prepared(tuple[ImageEntry, ...]))

    def needed_images(self, *, is_held: bool = False) -> frozenset[Digest]:
        """From the sums that triggers keep: there is a row for each set of images, however many orders name it."""
        count = image_needs.c.held if is_held else image_needs.c.open
        with self._file.reading() as tx:
            sets = tx.execute(select(image_needs.c.images).where(count > 0)).scalars().all()
        return frozenset(Digest(image) for images in sets for image in images.split())

    def forget_descriptions(self, keep: Collection[Digest]) -> int:
        with self._file.writing() as tx:
            known = tx.execute(select(descriptions.c.image)).scalars().all()
            over = [image for image in known if image not in keep]
            for image in over:
                tx.execute(delete(listings).where(listings.c.image == image))
                tx.execute(delete(descriptions).where(descriptions.c.image == image))
            return len(over)


def _last_ruling(tx: Connection, image: Digest) -> Ruling | None:
    query = select(rulings).where(rulings.c.image == image).order_by(rulings.c.seq.desc()).limit(1)
    row = tx.execute(query).mappings().one_or_none()
    return None if row is None else _ruling_of(row)


def _ruling_of(row: RowMapping) -> Ruling:
    return Ruling(
        image=Digest(row["image"]),
        verdict=Verdict(row["verdict"]),
        at=row["at"],
        uid=row["uid"],
        reason=row["reason"],
    )


def _description_of(row: RowMapping) -> ImageDescription:
    about = row["about"]
    return ImageDescription(
        image=Digest(row["image"]),
        read_at=row["read_at"],
        archive_bytes=row["archive_bytes"],
        problem=row["problem"],
        about=None if about is None else msgspec.json.decode(about, type=prepared(ImageAbout)),
    )


def _in_pages(listing: Sequence[ImageEntry]) -> list[Sequence[ImageEntry]]:
    return [listing[start : start + PAGE_ENTRIES] for start in range(0, len(listing), PAGE_ENTRIES)]
