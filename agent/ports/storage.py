"""The port to storage: where datasets lie, and the bytes of datasets and blobs. Bodies are streamed and hashed, never held.

The documents in which storage tells of them are read and written here too, for both sides of the wire.

Source: docs/contracts/http.md, "Asked of storage".
"""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Protocol

from msgspec import Meta, Struct

from agent.domain.ids import Digest, DigestField, KeyId, KeyIdField, UuidField, VersionField
from agent.domain.orders import DatasetRef
from agent.domain.strict_json import decode, encode
from agent.errors import BadReport
from agent.trust.envelope import WireEnvelope

MAX_DOCUMENT_BYTES = 1 << 20
MAX_LOCATIONS = 1000


class BlobKind(StrEnum):
    """What a blob is."""

    IMAGE = "image"
    MODEL = "model"
    PREDICTION = "prediction"
    PERFORMANCE = "performance"


class Location(Struct, frozen=True, forbid_unknown_fields=True):
    """A place of a dataset: the agent that works beside it and that agent's storage."""

    agent: KeyIdField
    storage: KeyIdField


class DatasetInfo(Struct, frozen=True):
    """What storage says of one version of a dataset. `size` is of the sealed file; `header` the owner's DSSE envelope."""

    id: str
    version: str
    size: int
    digest: Digest
    header: bytes
    locations: tuple[Location, ...]


class BlobInfo(Struct, frozen=True, forbid_unknown_fields=True):
    """What storage says of a blob."""

    digest: DigestField
    size: Annotated[int, Meta(ge=0, le=1 << 53)]
    kind: BlobKind
    locations: Annotated[tuple[KeyIdField, ...], Meta(max_length=MAX_LOCATIONS)]  # storages that hold it


class _DatasetDocument(Struct, frozen=True, forbid_unknown_fields=True):
    id: UuidField
    version: VersionField
    size: Annotated[int, Meta(ge=0, le=1 << 53)]
    digest: DigestField
    header: WireEnvelope
    locations: Annotated[tuple[Location, ...], Meta(max_length=MAX_LOCATIONS)]


def parse_dataset(document: bytes) -> DatasetInfo:
    """The dataset this document tells of; the header is not opened. Raises: TooLarge, BadJson, BadReport."""
    what = "the dataset's document"
    wire = decode(document, _DatasetDocument, limit_bytes=MAX_DOCUMENT_BYTES, what=what, error=BadReport)
    return DatasetInfo(wire.id, wire.version, wire.size, wire.digest, encode(wire.header), wire.locations)


def write_dataset(info: DatasetInfo) -> bytes:
    """The document that tells of this dataset. Raises: BadReport when its header is no envelope."""
    header = decode(
        info.header, WireEnvelope, limit_bytes=MAX_DOCUMENT_BYTES, what="the header", error=BadReport
    )
    return encode(_DatasetDocument(info.id, info.version, info.size, info.digest, header, info.locations))


def parse_blob(document: bytes) -> BlobInfo:
    """The blob this document tells of. Raises: TooLarge, BadJson, BadReport."""
    return decode(
        document, BlobInfo, limit_bytes=MAX_DOCUMENT_BYTES, what="the blob's document", error=BadReport
    )


def write_blob(info: BlobInfo) -> bytes:
    """The document that tells of this blob."""
    return encode(info)


class Storage(Protocol):
    """Storage as one agent sees it: its own node's to write to, any of the consortium's to read from.

    Raises everywhere: StorageUnavailable (retried), BadAnswer (metadata not signed by that storage).
    """

    def dataset(self, ref: DatasetRef, *, within_s: float = 0.0) -> DatasetInfo:
        """What storage says of this dataset, or said that long ago at most. Raises: DatasetMissing."""
        ...

    def open_dataset(self, info: DatasetInfo, sink: "ByteSink") -> None:
        """Stream the sealed file from this node's storage into `sink`; returns after its digest matched.

        Raises: DigestMismatch, BlobMissing.
        """
        ...

    def blob(self, digest: Digest, *, near: KeyId | None = None) -> BlobInfo:
        """What this node's storage, or the one of the agent `near`, says of the blob. Raises: BlobMissing."""
        ...

    def fetch_blob(
        self,
        digest: Digest,
        target: Path,
        *,
        limit_bytes: int,
        near: KeyId | None = None,
        within_s: float | None = None,
        known: BlobInfo | None = None,
    ) -> int:
        """Bring the blob to `target`, which appears whole or not at all; its size.

        `known`: what the storage of `near` (without it this node's) just said of it: one that has it is not asked again before
        it sends. Else, and where that fails: this node's storage, then that of `near`, then whoever is named as holding it.
        Raises: BlobMissing, DigestMismatch, TooLarge; StorageUnavailable too when it is not here `within_s`.
        """
        ...

    def put_blob(
        self, digest: Digest, kind: BlobKind, source: Path, *, moved: Callable[[int], None] | None = None
    ) -> None:
        """Give this node's storage a blob. The same again is fine. `moved` is told of each piece that is sent, in bytes.

        Raises: DigestMismatch when the file is not that blob.
        """
        ...

    def check(self) -> None:
        """Ask this node's storage whether it is there."""
        ...


class ByteSink(Protocol):
    """Takes a stream piece by piece, from one thread at a time. A piece is the sink's until `write` returns."""

    def write(self, data: memoryview, /) -> object:
        """Take the next piece."""
        ...
