"""A sealed dataset becomes a file of plaintext while it comes from storage. That file lies in memory, never on a disk."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from agent.ports.storage import DatasetInfo, Storage
from agent.trust.seal import Opener, SignedHeader

READABLE = 0o644  # for the guest, below a folder that is its own to read


class LateOpener:
    """An opener whose key is still on its way: `key` waits for it, at the first piece."""

    def __init__(self, header: SignedHeader, key: Callable[[], bytes]) -> None:
        self._header, self._key = header, key
        self._opener: Opener | None = None

    def feed(self, data: bytes | memoryview) -> bytes:
        """As of `Opener`. Raises too: CancelledError when no key comes."""
        return self._opened().feed(data)

    def finish(self) -> bytes:
        """As of `Opener`. Raises too: CancelledError when no key comes."""
        return self._opened().finish()

    def _opened(self) -> Opener:
        if self._opener is None:
            self._opener = Opener(self._header, self._key())
        return self._opener


def open_into(
    target: Path,
    partial: Path,
    opener: Opener | LateOpener,
    info: DatasetInfo,
    storage: Storage,
    moved: Callable[[int], None],
) -> None:
    """The dataset's plaintext at `target`: it appears when the last chunk was verified and the file had its digest, not before.

    What was opened until then lies at `partial`, on the same file system, and is gone when it fails. `moved` is told of each
    piece of the sealed file, in bytes. Raises: OutsideError by the port, DigestMismatch, BadSeal.
    """
    with partial.open("xb", buffering=0) as plain:
        try:
            sink = OpeningSink(opener, plain, moved)
            storage.open_dataset(info, sink)
            sink.finish()
            partial.chmod(READABLE)
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)  # renamed by now, or not to be kept


class OpeningSink:
    """Takes the sealed file as it is downloaded and writes what opens."""

    def __init__(self, opener: Opener | LateOpener, plain: BinaryIO, moved: Callable[[int], None]) -> None:
        self._opener, self._plain, self._moved = opener, plain, moved

    def write(self, data: memoryview) -> int:
        """Open the next piece. Raises: BadSeal; OSError when its plaintext has no room."""
        self._keep(self._opener.feed(data))
        self._moved(len(data))
        return len(data)

    def finish(self) -> None:
        """Write the rest, when the file was whole. Raises: BadSeal; OSError."""
        self._keep(self._opener.finish())

    def _keep(self, plain: bytes) -> None:
        left = memoryview(plain)
        while left:  # an unbuffered file may take a part
            left = left[self._plain.write(left) :]
