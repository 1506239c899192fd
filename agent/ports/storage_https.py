"""Storage over HTTPS: documents signed by storage, bodies streamed and hashed.

Source: docs/contracts/http.md, "Asked of storage".
"""

import base64
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from agent.domain.ids import Digest, KeyId, hex_of
from agent.domain.orders import DatasetRef
from agent.errors import (
    BadAnswer,
    BlobMissing,
    DatasetMissing,
    DigestMismatch,
    NoSpace,
    OrderError,
    OutsideError,
    StorageUnavailable,
    TooLarge,
    TrustError,
)
from agent.ports.https import BYTES_TYPE, Answer, Body, HttpsClient, Identity, Peer, Timeouts
from agent.ports.storage import (
    MAX_DOCUMENT_BYTES,
    BlobInfo,
    BlobKind,
    ByteSink,
    DatasetInfo,
    parse_blob,
    parse_dataset,
)
from agent.ports.storage_https_download import Download, Wanted
from agent.trust.roster import Role, RosterEntry

PIECE_BYTES = 1 << 20  # of a file that is sent
KEPT_DATASETS = 64  # what was said of them, for who asks again at once
ASK_FIRST_BYTES = 1 << 20  # to send less takes no longer than to ask whether it is there already


class HttpsStorage:
    """The storage of the agent `own`, and those of the others to read from. `pause` waits between resumes of a download.

    Raises everywhere: StorageUnavailable; BadAnswer for a document that the storage asked did not sign.
    """

    def __init__(
        self, identity: Identity, own: KeyId, timeouts: Timeouts, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._https = HttpsClient(identity, timeouts)
        self._own = own
        self._pause = pause
        self._told = _Told()

    def dataset(self, ref: DatasetRef, *, within_s: float = 0.0) -> DatasetInfo:
        """What this node's storage says of the dataset, or said that long ago at most. Raises: DatasetMissing."""
        peer = self._storage_of(self._own)
        told = self._told.get(ref, within_s)
        return self._ask_dataset(peer, ref) if told is None else told

    def _ask_dataset(self, peer: Peer, ref: DatasetRef) -> DatasetInfo:
        answer = self._ask(peer, f"/v1/datasets/{ref.id}?version={quote(ref.version)}")
        if answer.status == 404:
            raise DatasetMissing(f"{peer} knows no place of dataset {ref}")
        self._require_document(peer, answer)
        with _documented(peer):
            info = parse_dataset(answer.body)
        if (info.id, info.version) != (ref.id, ref.version):
            raise BadAnswer(f"{peer} tells of dataset {info.id}@{info.version} when asked for {ref}")
        self._told.keep(ref, info)
        return info

    def open_dataset(self, info: DatasetInfo, sink: ByteSink) -> None:
        """Stream the sealed file from this node's storage into `sink`; returns after its digest matched.

        Raises: DigestMismatch, BlobMissing.
        """
        target = f"/v1/datasets/{info.id}/content?version={quote(info.version)}"
        wanted = Wanted(target, info.digest, info.size, f"dataset {info.id}@{info.version}")
        Download(self._https, self._storage_of(self._own), wanted, sink, self._pause).run()

    def blob(self, digest: Digest, *, near: KeyId | None = None) -> BlobInfo:
        """What this node's storage, or the one of the agent `near`, says of the blob. Raises: BlobMissing."""
        return self._blob_at(self._storage_of(self._own if near is None else near), digest)

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

        Asks this node's storage, then that of the agent `near`, then whoever one of them names as holding it; before all of
        them whoever told `known` and has it.
        Raises: BlobMissing, DigestMismatch, TooLarge, NoSpace; StorageUnavailable when one that may hold it did not answer,
        or not all of it came `within_s`.
        """
        ends_s = None if within_s is None else time.monotonic() + within_s
        failures: list[OutsideError | DigestMismatch | TooLarge] = []
        for peer, told in self._tellers(digest, near, known, failures):
            try:
                return self._fetch_from(peer, told, target, limit_bytes, ends_s)
            except (StorageUnavailable, BlobMissing, DigestMismatch, TooLarge) as failure:
                failures.append(failure)
        raise next((f for f in failures if not isinstance(f, BlobMissing)), None) or BlobMissing(
            f"no storage of the consortium names a place of {digest}"
        )

    def put_blob(
        self, digest: Digest, kind: BlobKind, source: Path, *, moved: Callable[[int], None] | None = None
    ) -> None:
        """Give this node's storage a blob; a large one if it lacks it. Raises: DigestMismatch when the file is another one."""
        peer = self._storage_of(self._own)
        with source.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            if length > ASK_FIRST_BYTES and self._has(peer, digest):
                return
            content = file if moved is None else _Counted(file, moved)
            body = Body(content, length, _content_digest_of(digest), BYTES_TYPE)
            target = f"/v1/blobs/{digest}?kind={kind}"
            answer = self._https.call(
                peer, "PUT", target, body=body, limit_bytes=MAX_DOCUMENT_BYTES, is_transfer=True
            )
        if (
            answer.is_refusal
            and answer.problem[0] == DigestMismatch.code
            and self._https.is_signed(peer, answer)
        ):
            raise DigestMismatch(f"{source.name} is not {digest}")
        self._require_document(peer, answer)

    def check(self) -> None:
        """Ask this node's storage whether it is there."""
        self._https.check_health(self._storage_of(self._own))

    def close(self) -> None:
        """Close every connection."""
        self._https.close()

    # ---- documents

    def _blob_at(self, peer: Peer, digest: Digest) -> BlobInfo:
        answer = self._ask(peer, f"/v1/blobs/{digest}")
        if answer.status == 404:
            raise BlobMissing(f"{peer} knows no place of {digest}")
        self._require_document(peer, answer)
        with _documented(peer):
            info = parse_blob(answer.body)
        if info.digest != digest:
            raise BadAnswer(f"{peer} tells of {info.digest} when asked for {digest}")
        return info

    def _has(self, peer: Peer, digest: Digest) -> bool:
        try:
            return peer.keyid in self._blob_at(peer, digest).locations
        except BlobMissing:
            return False

    def _ask(self, peer: Peer, target: str) -> Answer:
        return self._https.call(peer, "GET", target, limit_bytes=MAX_DOCUMENT_BYTES)

    def _require_document(self, peer: Peer, answer: Answer) -> None:
        if not answer.is_success:
            raise self._https.unavailable(peer, answer)
        self._https.verify(peer, answer)

    # ---- places

    def _tellers(
        self,
        digest: Digest,
        near: KeyId | None,
        known: BlobInfo | None,
        failures: list[OutsideError | DigestMismatch | TooLarge],
    ) -> Iterator[tuple[Peer, BlobInfo]]:
        """Who is to send the blob, each with its own word on it. One that cannot be asked is noted in `failures`."""
        if known is not None:
            peer = self._storage_of(self._own if near is None else near)
            if peer.keyid in known.locations:
                yield peer, known
        for peer, told in self._places(digest, near, failures):
            try:
                yield peer, self._blob_at(peer, digest) if told is None else told
            except (StorageUnavailable, BlobMissing) as failure:
                failures.append(failure)

    def _places(
        self, digest: Digest, near: KeyId | None, failures: list[OutsideError | DigestMismatch | TooLarge]
    ) -> Iterator[tuple[Peer, BlobInfo | None]]:
        """The storages to try, nearest first, each once, with what it said itself where it was asked.

        One that cannot be asked is noted in `failures`.
        """
        tried: set[KeyId] = set()
        for agent in (self._own, near):
            if agent is None:
                continue
            try:
                peer = self._storage_of(agent)
                told = self._blob_at(peer, digest)
            except (StorageUnavailable, BlobMissing) as failure:
                failures.append(failure)
                continue
            for storage in sorted(set(told.locations) - tried, key=lambda keyid: keyid != peer.keyid):
                tried.add(storage)
                try:
                    yield self._storage(storage), told if storage == peer.keyid else None
                except TrustError as cause:
                    failures.append(
                        StorageUnavailable(f"{peer} names storage {storage[:16]}: {cause.detail}")
                    )

    def _fetch_from(
        self, peer: Peer, told: BlobInfo, target: Path, limit_bytes: int, ends_s: float | None
    ) -> int:
        if told.size > limit_bytes:
            raise TooLarge(f"{told.digest} has {told.size} bytes, the limit is {limit_bytes}")
        wanted = Wanted(f"/v1/blobs/{told.digest}/content", told.digest, told.size, str(told.digest))
        with _appearing(target, hex_of(told.digest)) as file:
            Download(self._https, peer, wanted, file, self._pause, ends_s).run()
        return told.size

    def _storage_of(self, agent: KeyId) -> Peer:
        entry = self._https.identity.roster().storage_of(agent)
        if entry is None:
            raise StorageUnavailable(f"the roster names no storage of agent {agent[:16]}")
        return self._peer(entry)

    def _storage(self, keyid: KeyId) -> Peer:
        identity = self._https.identity
        return self._peer(identity.roster().require(keyid, role=Role.STORAGE, at=identity.now()))

    def _peer(self, entry: RosterEntry) -> Peer:
        return Peer.of(entry, entry.storage_url, StorageUnavailable)


class _Told:
    """What storage said of datasets a moment ago, the newest few. Safe to use from threads."""

    def __init__(self) -> None:
        self._kept: dict[DatasetRef, tuple[float, DatasetInfo]] = {}  # oldest first
        self._lock = threading.Lock()

    def keep(self, ref: DatasetRef, info: DatasetInfo) -> None:
        """It was said just now."""
        with self._lock:
            self._kept.pop(ref, None)
            self._kept[ref] = time.monotonic(), info
            while len(self._kept) > KEPT_DATASETS:
                del self._kept[next(iter(self._kept))]

    def get(self, ref: DatasetRef, within_s: float) -> DatasetInfo | None:
        """What was said that long ago at most."""
        with self._lock:
            at, info = self._kept.get(ref, (0.0, None))
        return info if info is not None and time.monotonic() - at < within_s else None


class _Counted:
    """A file whose pieces are told as they are read."""

    def __init__(self, file: BinaryIO, moved: Callable[[int], None]) -> None:
        self._file, self._moved = file, moved

    def __iter__(self) -> Iterator[bytes]:
        while piece := self._file.read(PIECE_BYTES):
            yield piece
            self._moved(len(piece))  # the next one is asked for when this one is on its way


@contextmanager
def _documented(peer: Peer) -> Iterator[None]:
    """Blame storage for a signed document that the contract does not know. Raises: BadAnswer."""
    try:
        yield
    except OrderError as cause:
        raise BadAnswer(f"{peer} signs a document that the contract does not know: {cause.detail}") from cause


@contextmanager
def _appearing(target: Path, name: str) -> Iterator[BinaryIO]:
    """A file beside `target` that takes its place, durable, when the block ends well, and is gone when not. Raises: NoSpace."""
    beside = target.with_name(f".{name[:16]}-{secrets.token_hex(4)}.partial")
    try:
        with os.fdopen(
            os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
        ) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    except OSError as cause:
        raise NoSpace(f"cannot write {target.name}: {cause.strerror}") from cause
    finally:
        beside.unlink(missing_ok=True)


def _content_digest_of(digest: Digest) -> str:
    """The Content-Digest field of the blob with this digest: the same sha256, written in base64."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(hex_of(digest))).decode('ascii')}:"
