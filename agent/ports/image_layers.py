"""How one layer of an image is judged: a tar, or a gzipped one, read once as a stream and never unpacked."""

import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from agent.domain.ids import Digest, digest_from_hex
from agent.domain.strict_tar import BadTar, Kind, Member, StrictTar
from agent.errors import BadImage

MAX_LAYERS = 128
MAX_ENTRIES = 1_000_000
MAX_BYTES = 32 << 30
MAX_LINK_BYTES = 32 << 20  # the names of all links, which are remembered
BLOCK_BYTES = 1 << 20

# Where a link would turn a mount of the cage elsewhere: the places themselves, and for the job's folders all below them.
NO_LINK_AT = frozenset(
    {
        "dev",
        "proc",
        "sys",
        "run",
        "run/.containerenv",
        "tmp",
        "etc",
        "etc/group",
        "etc/hostname",
        "etc/passwd",
    }
)
NO_LINK_BELOW = re.compile(r"(data|hidden_data|submission_data)(/.*)?")

COMPRESSIONS = {b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


class Readable(Protocol):
    """A binary file for reading from front to end."""

    def read(self, size: int = -1) -> bytes: ...


def _ignore(_layer: int, _member: Member) -> None:
    """Nobody looks on."""


def _patient() -> None:
    """Nobody counts the time."""


@dataclass(slots=True)
class Budget:
    """What an image's layers took so far, together, and the links they left.

    `see` is shown each entry that passed, with its layer's number; `beat` is called for each block. Both may raise BadImage
    when they have seen enough.
    """

    used_bytes: int = 0
    entries: int = 0
    links: set[str] = field(default_factory=set)
    link_bytes: int = 0
    layer: int = -1  # the one that is read
    see: Callable[[int, Member], None] = _ignore
    beat: Callable[[], None] = _patient


class _Content(io.RawIOBase):
    """A layer's uncompressed bytes: hashed, and counted against the budget."""

    def __init__(self, source: Readable, budget: Budget) -> None:
        self._source, self._budget, self._hash = source, budget, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self._budget.beat()
        block = self._source.read(BLOCK_BYTES if size < 0 else size)
        self._hash.update(block)
        self._budget.used_bytes += len(block)
        if self._budget.used_bytes > MAX_BYTES:
            raise BadImage(f"the image unpacks to more than {MAX_BYTES >> 30} GiB")
        return block

    def readinto(self, buffer: object) -> int:
        return _read_into(self, buffer)

    def finish(self) -> Digest:
        """Read the rest; the digest of all."""
        while self.read(BLOCK_BYTES):
            pass
        return digest_from_hex(self._hash.hexdigest())


def check_layer(raw: Readable, budget: Budget) -> Digest:
    """Judge every entry of the layer. Gives the digest of its uncompressed bytes, which a config calls diff_id.

    Raises: BadImage.
    """
    budget.layer += 1
    content = _Content(_uncompressed(raw), budget)
    limit_bytes = MAX_BYTES - budget.used_bytes
    try:
        for member in StrictTar(
            io.BufferedReader(content, BLOCK_BYTES), limit_bytes=limit_bytes, kinds=frozenset(Kind)
        ):
            budget.entries += 1
            if budget.entries > MAX_ENTRIES:
                raise BadImage(f"the image has more than {MAX_ENTRIES} files")
            _check_entry(member, budget)
            budget.see(budget.layer, member)
        return content.finish()
    except (BadTar, EOFError, zlib.error, gzip.BadGzipFile) as cause:
        raise BadImage(f"a layer is no readable tar: {cause}") from cause


def _uncompressed(raw: Readable) -> Readable:
    """The layer as a tar, by what its first bytes are and not by what the manifest calls it: so does the engine."""
    head = raw.read(6)
    whole = _Rejoined(head, raw)
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=io.BufferedReader(whole, BLOCK_BYTES))
    for magic, name in COMPRESSIONS.items():
        if head.startswith(magic):
            raise BadImage(f"a layer is compressed with {name}: only tar and tar+gzip are read")
    return whole


class _Rejoined(io.RawIOBase):
    """A file whose head was read already, from its beginning."""

    def __init__(self, head: bytes, rest: Readable) -> None:
        self._head, self._rest = head, rest

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._head:
            block, self._head = self._head[:size], self._head[size:]
            return block
        return self._rest.read(size)

    def readinto(self, buffer: object) -> int:
        return _read_into(self, buffer)


def _read_into(file: Readable, buffer: object) -> int:
    view = memoryview(buffer)  # type: ignore[arg-type]
    block = file.read(len(view))
    view[: len(block)] = block
    return len(block)


def _check_entry(member: Member, budget: Budget) -> None:
    """Refuse what would turn a mount elsewhere: a link in its place, or an entry that is unpacked through a link."""
    name = member.name
    for above in (
        *_folders_above(name),
        *_folders_above(member.link if member.kind is Kind.HARD_LINK else ""),
    ):
        if above in budget.links:
            raise BadImage(f"{name!r:.120} in a layer lies below {above!r:.120}, which is a link")
    if member.kind in {Kind.FILE, Kind.FOLDER}:
        budget.links.discard(name)  # it takes the link's place
        return
    if name in NO_LINK_AT or NO_LINK_BELOW.fullmatch(name):
        raise BadImage(f"a layer makes {'/' + name!r:.120} a link")
    budget.links.add(name)  # a hard link too: it may be one to a symbolic link
    budget.link_bytes += len(name.encode())
    if budget.link_bytes > MAX_LINK_BYTES:
        raise BadImage(f"the names of the image's links have more than {MAX_LINK_BYTES >> 20} MiB")


def _folders_above(name: str) -> Iterator[str]:
    """a/b/c lies below a and a/b."""
    return accumulate(name.split("/")[:-1], "{}/{}".format)
