"""Downloads of storage: one file streamed into a sink and hashed, taken up again by Range where the connection broke.

The sink has swallowed what came before the break, so nothing is ever sent to it twice; whether all of it was right shows in the
digest at the end, and until then nobody may use it. A large file is received, hashed and taken by the sink side by side, by a
relay; the caller's thread receives.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from agent.domain.ids import Digest, digest_from_hex
from agent.errors import BlobMissing, DigestMismatch, NoSpace, StorageUnavailable, TrustError
from agent.ports.https import HttpsClient, Peer, Stream
from agent.ports.relay import Fill, Inline, Relay, relay
from agent.ports.storage import ByteSink
from agent.trust.http_signatures import ContentDigest

MAX_RESUMES = 100  # of one download
MAX_FRUITLESS = 5  # in a row, without a new byte
RELAYED_BYTES = 4 << 20  # from so large a file on: threads for a small one take longer than they save
SKIP_BYTES = 1 << 16
FIRST_PAUSE_S = 0.2  # before a resume; doubled for each that brought nothing


Passing = Relay | Inline


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
        self._received = 0  # bytes that are hashed and in the sink, or are about to be
        self._refusal: TrustError | None = (
            None  # of the sink, which saw what is wrong before the digest could
        )

    def run(self) -> None:
        """Raises: StorageUnavailable when it cannot begin, or breaks too often; BlobMissing; DigestMismatch; NoSpace."""
        with self._passing() as passing:
            self._receive(passing)
        if digest_from_hex(self._seen.hex_digest) != self._wanted.digest:
            raise DigestMismatch(f"{self._peer} sends other bytes as {self._wanted.what}")
        if self._refusal is not None:
            raise self._refusal

    @contextmanager
    def _passing(self) -> Iterator[Passing]:
        """What hands each piece to the hash and to the sink."""
        hashing = (self._seen.update,)
        if self._wanted.size_bytes < RELAYED_BYTES:
            yield Inline(hashing, self._write)
        else:
            with relay(hashing, self._write) as relayed:
                yield relayed

    def _receive(self, passing: Passing) -> None:
        """Every byte of the file, over as many connections as it takes."""
        fruitless = 0
        for resumes in count():
            before = self._received
            try:
                self._receive_rest(passing)
                return
            except StorageUnavailable:
                fruitless = 0 if self._received > before else fruitless + 1
                if self._received == 0 or fruitless > MAX_FRUITLESS or resumes >= MAX_RESUMES:
                    raise
                if self._is_late():
                    raise
                self._pause(FIRST_PAUSE_S * 2**fruitless)

    def _receive_rest(self, passing: Passing) -> None:
        """Everything from where the last connection broke."""
        if not self._received or self._received < self._wanted.size_bytes:
            self._stream_rest(passing)
        if self._received < self._wanted.size_bytes:
            raise StorageUnavailable(f"{self._peer}: {self._wanted.what} ends after {self._received} bytes")

    def _stream_rest(self, passing: Passing) -> None:
        with self._https.stream(self._peer, self._wanted.target, self._range()) as stream:
            self._skip_seen(stream)
            while count := passing.pass_on(self._within_size(stream)):
                self._received += count
                if self._is_late():
                    raise StorageUnavailable(f"{self._peer} sends {self._wanted.what} too slowly")

    def _within_size(self, stream: Stream) -> Fill:
        """What is received next, and nothing beyond the size. Raises (when called): DigestMismatch when there is more."""
        size_bytes = self._wanted.size_bytes

        def fill(view: memoryview) -> int:
            left = size_bytes - self._received
            count = stream.read_into(view[: max(left, 1)])
            if count > left:
                raise DigestMismatch(
                    f"{self._peer} sends more than the {size_bytes} bytes of {self._wanted.what}"
                )
            return count

        return fill

    def _is_late(self) -> bool:
        return self._ends_s is not None and time.monotonic() > self._ends_s

    def _write(self, piece: memoryview) -> None:
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
        if not self._received:
            return {}
        return {"Range": f"bytes={self._received}-", "If-Range": f'"{self._wanted.digest}"'}

    def _skip_seen(self, stream: Stream) -> None:
        """Leave the stream where what was seen ends. A 200 begins anew."""
        match stream.status:
            case 200:
                self._skip(stream, self._received)
            case 206 if stream.headers.get("content-range", "").startswith(f"bytes {self._received}-"):
                pass
            case 404:
                raise BlobMissing(f"{self._peer} does not hold {self._wanted.what}")
            case status:
                raise StorageUnavailable(f"{self._peer} answers {status} when asked for {self._wanted.what}")

    @staticmethod
    def _skip(stream: Stream, size_bytes: int) -> None:
        waste = memoryview(bytearray(min(size_bytes, SKIP_BYTES)))
        while size_bytes and (passed := stream.read_into(waste[:size_bytes])):
            size_bytes -= passed
