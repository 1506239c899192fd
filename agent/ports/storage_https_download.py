"""Downloads of storage: one file streamed into a sink and hashed, taken up again by Range where the connection broke.

The sink has swallowed what came before the break, so nothing is ever sent to it twice; whether all of it was right shows in the
digest at the end, and until then nobody may use it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from agent.domain.ids import Digest, digest_from_hex
from agent.errors import BlobMissing, DigestMismatch, NoSpace, StorageUnavailable, TrustError
from agent.ports.https import HttpsClient, Peer, Stream
from agent.ports.storage import ByteSink
from agent.trust.http_signatures import ContentDigest

MAX_RESUMES = 100  # of one download
MAX_FRUITLESS = 5  # in a row, without a new byte
FIRST_PAUSE_S = 0.2  # before a resume; doubled for each that brought nothing


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to download: `target` is path and query at storage, `what` its name in messages."""

    target: str
    digest: Digest
    size_bytes: int
    what: str


class Download:
    """One download under way. `run` returns once the sink has every byte and the digest matched."""

    def __init__(
        self,
        https: HttpsClient,
        peer: Peer,
        wanted: Wanted,
        sink: ByteSink,
        pause: Callable[[float], None],
        ends_s: float | None = None,
    ) -> None:
        """`ends_s`: when it must be over, on the monotonic clock."""
        self._https = https
        self._peer = peer
        self._wanted = wanted
        self._sink = sink
        self._pause = pause
        self._ends_s = ends_s
        self._seen = ContentDigest()
        self._refusal: TrustError | None = (
            None  # of the sink, which saw what is wrong before the digest could
        )

    def run(self) -> None:
        """Raises: StorageUnavailable when it cannot begin, or breaks too often; BlobMissing; DigestMismatch; NoSpace."""
        fruitless = 0
        for resumes in count():
            before = self._seen.length
            try:
                self._take_rest()
                return
            except StorageUnavailable:
                fruitless = 0 if self._seen.length > before else fruitless + 1
                if self._seen.length == 0 or fruitless > MAX_FRUITLESS or resumes >= MAX_RESUMES:
                    raise
                if self._is_late():
                    raise
                self._pause(FIRST_PAUSE_S * 2**fruitless)

    def _take_rest(self) -> None:
        """Everything from where the last connection broke; checks the whole at the end."""
        if not self._seen.length or self._seen.length < self._wanted.size_bytes:
            self._stream_rest()
        if self._seen.length < self._wanted.size_bytes:
            raise StorageUnavailable(
                f"{self._peer}: {self._wanted.what} ends after {self._seen.length} bytes"
            )
        if digest_from_hex(self._seen.hex_digest) != self._wanted.digest:
            raise DigestMismatch(f"{self._peer} sends other bytes as {self._wanted.what}")
        if self._refusal is not None:
            raise self._refusal

    def _stream_rest(self) -> None:
        with self._https.stream(self._peer, self._wanted.target, self._range()) as stream:
            for piece in self._unseen(stream):
                if self._is_late():
                    raise StorageUnavailable(f"{self._peer} sends {self._wanted.what} too slowly")
                self._seen.update(piece)
                if self._seen.length > self._wanted.size_bytes:
                    size = self._wanted.size_bytes
                    raise DigestMismatch(
                        f"{self._peer} sends more than the {size} bytes of {self._wanted.what}"
                    )
                self._write(piece)

    def _is_late(self) -> bool:
        return self._ends_s is not None and time.monotonic() > self._ends_s

    def _write(self, piece: bytes) -> None:
        if self._refusal is not None:
            return
        try:
            self._sink.write(piece)
        except (
            TrustError
        ) as refusal:  # the bytes are not what was sealed; whether they broke on the way, the digest tells
            self._refusal = refusal
        except OSError as cause:
            raise NoSpace(f"cannot write {self._wanted.what}: {cause.strerror}") from cause

    def _range(self) -> dict[str, str]:
        if not self._seen.length:
            return {}
        return {"Range": f"bytes={self._seen.length}-", "If-Range": f'"{self._wanted.digest}"'}

    def _unseen(self, stream: Stream) -> Iterator[bytes]:
        """The pieces that follow on what was seen. A 200 begins anew: what was seen of it is skipped."""
        match stream.status:
            case 200:
                return _after(stream.pieces, self._seen.length)
            case 206 if stream.headers.get("content-range", "").startswith(f"bytes {self._seen.length}-"):
                return stream.pieces
            case 404:
                raise BlobMissing(f"{self._peer} does not hold {self._wanted.what}")
            case status:
                raise StorageUnavailable(f"{self._peer} answers {status} when asked for {self._wanted.what}")


def _after(pieces: Iterator[bytes], skipped: int) -> Iterator[bytes]:
    """What follows on the first `skipped` bytes."""
    for piece in pieces:
        if skipped < len(piece):
            yield piece[skipped:]
        skipped = max(skipped - len(piece), 0)
