"""What a storage remembers: the files it holds, and where others hold theirs. Files under their digest, the rest in SQLite.

A file is on the shelf only whole: it comes hashed and flushed from `uploaded`, is renamed into place, and then written down.
"""

import os
import sqlite3
from datetime import datetime
from pathlib import Path

from agent.devkit.database import Database
from agent.domain.ids import Digest, KeyId, hex_of
from agent.domain.orders import DatasetRef
from agent.errors import RecordConflict
from agent.ports.storage import BlobInfo, BlobKind, DatasetInfo, Location

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blobs (
    digest TEXT PRIMARY KEY, size INTEGER NOT NULL, kind TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS blob_places (
    digest TEXT, storage TEXT, PRIMARY KEY (digest, storage)) STRICT;
CREATE TABLE IF NOT EXISTS datasets (
    id TEXT, version TEXT, size INTEGER NOT NULL, digest TEXT NOT NULL, header BLOB NOT NULL, noted_at TEXT NOT NULL,
    PRIMARY KEY (id, version)) STRICT;
CREATE TABLE IF NOT EXISTS dataset_places (
    id TEXT, version TEXT, agent TEXT, storage TEXT, PRIMARY KEY (id, version, agent)) STRICT;
"""


class Shelf:
    """The memory of one storage. `folder` is its own; uploads are to be spooled into `incoming`, on the same disk."""

    def __init__(self, folder: Path) -> None:
        self.incoming = folder / "incoming"
        self._files = folder / "files"
        for room in (folder, self.incoming, self._files):
            room.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left_over in self.incoming.iterdir():  # of uploads that a crash cut off
            left_over.unlink()
        self.database = Database(folder / "storage.sqlite", _SCHEMA)

    # ---- files

    def keep(self, upload: Path, digest: Digest) -> None:
        """Move a hashed and flushed file to its place. One that is there already stays."""
        place = self._place(digest)
        if not place.exists():
            upload.replace(place)
            _flush_folder(self._files)

    def file(self, digest: Digest) -> Path | None:
        """Where the file with this digest lies, if it does."""
        place = self._place(digest)
        return place if place.exists() else None

    def _place(self, digest: Digest) -> Path:
        return self._files / hex_of(digest)

    # ---- blobs

    def note_blob(self, info: BlobInfo) -> None:
        """Remember a blob and these places of it beside those known. Its first kind stays."""
        with self.database.transaction() as sql:
            sql.execute("INSERT OR IGNORE INTO blobs VALUES (?, ?, ?)", (info.digest, info.size, info.kind))
            places = [(info.digest, storage) for storage in info.locations]
            sql.executemany("INSERT OR IGNORE INTO blob_places VALUES (?, ?)", places)

    def blob(self, digest: Digest) -> BlobInfo | None:
        """What is known of this blob. Its size is the file's, when that lies here: others' word gives way to it."""
        row = self.database.row("SELECT * FROM blobs WHERE digest = ?", digest)
        if row is None:
            return None
        places = self.database.rows(
            "SELECT storage FROM blob_places WHERE digest = ? ORDER BY storage", digest
        )
        file = self.file(digest)
        size = row["size"] if file is None else file.stat().st_size
        return BlobInfo(digest, size, BlobKind(row["kind"]), tuple(place["storage"] for place in places))

    # ---- datasets

    def note_dataset(self, info: DatasetInfo, now: datetime) -> None:
        """Remember a dataset and these places of it beside those known.

        Raises: RecordConflict when this version is known with another file.
        """
        with self.database.transaction() as sql:
            known = sql.execute(
                "SELECT digest FROM datasets WHERE id = ? AND version = ?", (info.id, info.version)
            ).fetchone()
            if known is not None and known["digest"] != info.digest:
                raise RecordConflict(
                    f"dataset {info.id}@{info.version} is another file here: give yours a new version"
                )
            values = (info.id, info.version, info.size, info.digest, info.header, now.isoformat())
            sql.execute("INSERT OR IGNORE INTO datasets VALUES (?, ?, ?, ?, ?, ?)", values)
            places = [(info.id, info.version, place.agent, place.storage) for place in info.locations]
            sql.executemany("INSERT OR REPLACE INTO dataset_places VALUES (?, ?, ?, ?)", places)

    def dataset(self, dataset_id: str, version: str | None) -> DatasetInfo | None:
        """What is known of this dataset; without a version of the one that was noted last."""
        row = self.database.row(
            "SELECT * FROM datasets WHERE id = ? AND version = ifnull(?, version) ORDER BY noted_at DESC, rowid DESC",
            dataset_id,
            version,
        )
        if row is None:
            return None
        ref = DatasetRef(row["id"], row["version"])
        return DatasetInfo(
            ref.id, ref.version, row["size"], Digest(row["digest"]), row["header"], self._places(ref)
        )

    def _places(self, ref: DatasetRef) -> tuple[Location, ...]:
        rows: list[sqlite3.Row] = self.database.rows(
            "SELECT agent, storage FROM dataset_places WHERE id = ? AND version = ? ORDER BY agent",
            ref.id,
            ref.version,
        )
        return tuple(Location(KeyId(row["agent"]), KeyId(row["storage"])) for row in rows)


def _flush_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
