"""Run as a process by test_seal.py: seals and opens SIZE bytes in one stream and tells what memory that took."""

import hashlib
import io
import json
import sys
from pathlib import Path

from agent.trust.seal import Opener, parse_header, read_preamble, seal_stream
from tests.trust.people import NOW, OWNER, ROSTER
from tests.trust.test_seal import KEY, header_for

BLOCK = hashlib.shake_128(b"block").digest(1 << 20)


class Source(io.BytesIO):
    """A file of that many bytes that do not compress, made while it is read."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.left = size
        self.digest = hashlib.sha256()

    def read(self, size: int | None = -1, /) -> bytes:
        piece = BLOCK[: min(size or 0, self.left)]
        self.left -= len(piece)
        self.digest.update(piece)
        return piece


class Pipe(io.BytesIO):
    """Opens at once what is written to it: a pipe without a second process."""

    opener: Opener | None = None

    def __init__(self) -> None:
        super().__init__()
        self.digest = hashlib.sha256()

    def write(self, piece: bytes, /) -> int:  # type: ignore[override]
        if self.opener is None:  # the header comes in one piece
            header = parse_header(read_preamble(io.BytesIO(piece)), ROSTER, at=NOW)
            self.opener = Opener(header, KEY)
        self.digest.update(self.opener.feed(piece))
        return len(piece)

    def finish(self) -> int:
        """How many bytes were opened."""
        assert self.opener is not None
        self.digest.update(self.opener.finish())
        return self.opener.opened_bytes


def memory_bytes(name: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process; not ru_maxrss, which starts at the parent's peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise LookupError(name)


def main(size: int) -> None:
    """Print {"opened_bytes", "growth_bytes"}."""
    source, pipe = Source(size), Pipe()
    before = memory_bytes("VmRSS")
    seal_stream(source, pipe, header=header_for(size), data_key=KEY, owner=OWNER)
    opened_bytes = pipe.finish()
    assert pipe.digest.digest() == source.digest.digest()
    growth_bytes = memory_bytes("VmHWM") - before
    sys.stdout.write(json.dumps({"opened_bytes": opened_bytes, "growth_bytes": growth_bytes}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
