"""Storages in memory: the semantics of `agent.ports.storage.Storage`, no network. The contract suite runs on it too.

storages = MemoryStorages(world.roster)
info = storages.keep_dataset(world.agent("a").keyid, ref, header, sealed)     # lies at a, known everywhere
model = storages.keep_blob(world.storage("a").keyid, BlobKind.MODEL, b"…")    # lies at a, known at a only
port = MemoryStorage(storages, own=world.agent("b").keyid)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from agent.domain.ids import Digest, KeyId, digest_of
from agent.domain.orders import DatasetRef
from agent.errors import BlobMissing, DatasetMissing, DigestMismatch, StorageUnavailable, TooLarge, TrustError
from agent.ports.storage import BlobInfo, BlobKind, ByteSink, DatasetInfo, Location
from agent.trust.roster import Roster

PIECE = 1000  # bytes given to a sink at once


@dataclass
class MemoryStorages:
    """Every storage of a consortium. `down`: those that do not answer. To alter a file is to replace it in `files`."""

    roster: Roster
    down: set[KeyId] = field(default_factory=set)
    files: dict[tuple[KeyId, Digest], bytes] = field(default_factory=dict)
    blobs: dict[tuple[KeyId, Digest], BlobInfo] = field(default_factory=dict)
    datasets: dict[DatasetRef, DatasetInfo] = field(default_factory=dict)

    def keep_blob(self, storage: KeyId, kind: BlobKind, content: bytes) -> Digest:
        """A blob on this storage, known to it alone until `tell`."""
        digest = digest_of(content)
        self.files[storage, digest] = content
        self.tell(storage, BlobInfo(digest, len(content), kind, (storage,)))
        return digest

    def tell(self, storage: KeyId, info: BlobInfo) -> None:
        """Let this storage know of a blob and where it lies."""
        known = self.blobs.setdefault((storage, info.digest), info)
        places = tuple(sorted({*known.locations, *info.locations}))
        self.blobs[storage, info.digest] = replace(known, locations=places)

    def keep_dataset(self, agent: KeyId, ref: DatasetRef, header: bytes, sealed: bytes) -> DatasetInfo:
        """A sealed file beside this agent (also), known to every storage."""
        storage = self.storage_of(agent)
        digest = digest_of(sealed)
        self.files[storage, digest] = sealed
        known = self.datasets.get(ref)
        places = {place.agent: place for place in (known.locations if known else ())}
        places[agent] = Location(agent, storage)
        info = DatasetInfo(ref.id, ref.version, len(sealed), digest, header, tuple(places.values()))
        self.datasets[ref] = info
        return info

    def storage_of(self, agent: KeyId) -> KeyId:
        """The storage of this agent's node. Raises: StorageUnavailable when the roster has none."""
        entry = self.roster.storage_of(agent)
        if entry is None:
            raise StorageUnavailable(f"the roster names no storage of agent {agent[:16]}")
        return entry.keyid

    def ask(self, storage: KeyId) -> KeyId:
        """This storage, when it answers. Raises: StorageUnavailable."""
        if storage in self.down:
            raise StorageUnavailable(f"storage {storage[:16]}: no connection")
        return storage

    def serve(self, storage: KeyId, digest: Digest) -> bytes:
        """What this storage sends as this file. Raises: StorageUnavailable, BlobMissing."""
        content = self.files.get((self.ask(storage), digest))
        if content is None:
            raise BlobMissing(f"storage {storage[:16]} does not hold {digest}")
        return content


class MemoryStorage:
    """See `Storage`; the port of the agent `own`."""

    def __init__(self, storages: MemoryStorages, own: KeyId) -> None:
        self._all = storages
        self._own = own

    def dataset(self, ref: DatasetRef, *, within_s: float = 0.0) -> DatasetInfo:
        self._all.ask(self._all.storage_of(self._own))
        try:
            return self._all.datasets[ref]
        except KeyError as cause:
            raise DatasetMissing(f"storage knows no place of {ref}") from cause

    def open_dataset(self, info: DatasetInfo, sink: ByteSink) -> None:
        content = self._all.serve(self._all.storage_of(self._own), info.digest)
        refusal: TrustError | None = None
        for start in range(0, len(content), PIECE):
            try:
                sink.write(memoryview(content)[start : start + PIECE])
            except (
                TrustError
            ) as told:  # as the real one: the digest tells whether the bytes broke on their way
                refusal = told
                break
        if digest_of(content) != info.digest:
            raise DigestMismatch(f"storage sends other bytes as {info.id}")
        if refusal is not None:
            raise refusal

    def blob(self, digest: Digest, *, near: KeyId | None = None) -> BlobInfo:
        storage = self._all.ask(self._all.storage_of(self._own if near is None else near))
        try:
            return self._all.blobs[storage, digest]
        except KeyError as cause:
            raise BlobMissing(f"storage {storage[:16]} knows no place of {digest}") from cause

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
        failures: list[Exception] = []
        for storage in (*self._known(known, near), *self._places(digest, near, failures)):
            try:
                content = self._all.serve(storage, digest)
                if len(content) > limit_bytes:
                    raise TooLarge(f"{digest} has {len(content)} bytes, the limit is {limit_bytes}")
                if digest_of(content) != digest:
                    raise DigestMismatch(f"storage {storage[:16]} sends other bytes as {digest}")
            except (StorageUnavailable, BlobMissing, DigestMismatch) as failure:
                failures.append(failure)
                continue
            target.write_bytes(content)
            return len(content)
        telling = [failure for failure in failures if not isinstance(failure, BlobMissing)]
        raise telling[0] if telling else BlobMissing(f"no storage names a place of {digest}")

    def put_blob(
        self, digest: Digest, kind: BlobKind, source: Path, *, moved: Callable[[int], None] | None = None
    ) -> None:
        storage = self._all.ask(self._all.storage_of(self._own))
        if digest_of(source.read_bytes()) != digest:
            raise DigestMismatch(f"{source.name} is not {digest}")
        self._all.keep_blob(storage, kind, source.read_bytes())
        if moved is not None:
            moved(source.stat().st_size)

    def check(self) -> None:
        self._all.ask(self._all.storage_of(self._own))

    def _known(self, known: BlobInfo | None, near: KeyId | None) -> tuple[KeyId, ...]:
        """Whose word `known` is, when it holds the blob itself by that word."""
        home = self._all.storage_of(self._own if near is None else near)
        return (home,) if known is not None and home in known.locations else ()

    def _places(self, digest: Digest, near: KeyId | None, failures: list[Exception]) -> Iterator[KeyId]:
        tried: set[KeyId] = set()
        for agent in (self._own, near):
            if agent is None:
                continue
            try:
                named = self.blob(digest, near=agent).locations
            except (StorageUnavailable, BlobMissing) as failure:
                failures.append(failure)
                continue
            home = self._all.storage_of(agent)
            for storage in sorted(set(named) - tried, key=lambda keyid: keyid != home):
                tried.add(storage)
                yield storage
