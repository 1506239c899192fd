"""The port to storage: where datasets lie, and the bytes of datasets and blobs. Bodies are streamed and hashed, never held."""

from enum import StrEnum
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from agent.domain.ids import Digest, KeyId
from agent.domain.orders import DatasetRef


class BlobKind(StrEnum):
    """What a blob is."""

    IMAGE = "image"
    MODEL = "model"
    PREDICTION = "prediction"
    PERFORMANCE = "performance"


class Location(Struct, frozen=True):
    """A place of a dataset: the agent that works beside it and that agent's storage."""

    agent: KeyId
    storage: KeyId


class DatasetInfo(Struct, frozen=True):
    """What storage says of one version of a dataset. `size` is of the sealed file; `header` the owner's DSSE envelope."""

    id: str
    version: str
    size: int
    digest: Digest
    header: bytes
    locations: tuple[Location, ...]


class BlobInfo(Struct, frozen=True):
    """What storage says of a blob."""

    digest: Digest
    size: int
    kind: BlobKind
    locations: tuple[KeyId, ...]  # storages that hold it


class Storage(Protocol):
    """Storage as one agent sees it: its own node's to write to, any of the consortium's to read from.

    Raises everywhere: StorageUnavailable (retried), BadAnswer (metadata not signed by that storage).
    """

    def dataset(self, ref: DatasetRef) -> DatasetInfo:
        """What storage says of this dataset. Raises: DatasetMissing."""
        ...

    def open_dataset(self, info: DatasetInfo, sink: "ByteSink") -> None:
        """Stream the sealed file from this node's storage into `sink`; returns after its digest matched.

        Raises: DigestMismatch, BlobMissing.
        """
        ...

    def blob(self, digest: Digest, *, near: KeyId | None = None) -> BlobInfo:
        """What this node's storage, or the one of the agent `near`, says of the blob. Raises: BlobMissing."""
        ...

    def fetch_blob(self, digest: Digest, target: Path, *, limit_bytes: int, near: KeyId | None = None) -> int:
        """Bring the blob to `target`, which appears whole or not at all; its size.

        Asks this node's storage first, then that of the agent `near`, then whoever is named as holding it.
        Raises: BlobMissing, DigestMismatch, TooLarge.
        """
        ...

    def put_blob(self, digest: Digest, kind: BlobKind, source: Path) -> None:
        """Give this node's storage a blob. The same again is fine."""
        ...

    def check(self) -> None:
        """Ask this node's storage whether it is there."""
        ...


class ByteSink(Protocol):
    """Takes a stream piece by piece."""

    def write(self, data: bytes, /) -> object:
        """Take the next piece."""
        ...
