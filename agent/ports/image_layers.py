"""How one layer of an image is judged: a tar, or a gzipped one, read once as a stream and never unpacked."""

import gzip
import hashlib
import io
import re
import tarfile
import zlib
from dataclasses import dataclass
from typing import Protocol

from agent.domain.ids import Digest, digest_from_hex
from agent.errors import BadImage

MAX_LAYERS = 128
MAX_ENTRIES = 1_000_000
MAX_BYTES = 32 << 30
MAX_NAME_CHARS = 4096
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


@dataclass(slots=True)
class Budget:
    """What an image's layers took so far, together."""

    used_bytes: int = 0
    entries: int = 0


class _Content(io.RawIOBase):
    """A layer's uncompressed bytes: hashed, and counted against the budget."""

    def __init__(self, source: Readable, budget: Budget) -> None:
        self._source, self._budget, self._hash = source, budget, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block = self._source.read(BLOCK_BYTES if size < 0 else size)
        self._hash.update(block)
        self._budget.used_bytes += len(block)
        if self._budget.used_bytes > MAX_BYTES:
            raise BadImage(f"the image unpacks to more than {MAX_BYTES >> 30} GiB")
        return block

    def finish(self) -> Digest:
        """Read the rest; the digest of all."""
        while self.read(BLOCK_BYTES):
            pass
        return digest_from_hex(self._hash.hexdigest())


def check_layer(raw: Readable, budget: Budget) -> Digest:
    """Judge every entry of the layer. Gives the digest of its uncompressed bytes, which a config calls diff_id.

    Raises: BadImage.
    """
    content = _Content(_uncompressed(raw), budget)
    try:
        with tarfile.open(fileobj=content, mode="r|", bufsize=BLOCK_BYTES) as layer:
            for member in layer:
                budget.entries += 1
                if budget.entries > MAX_ENTRIES:
                    raise BadImage(f"the image has more than {MAX_ENTRIES} files")
                _check_entry(member)
                layer.members = []  # type: ignore[attr-defined]  # the stream would keep every one of them
        return content.finish()
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as cause:
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
        view = memoryview(buffer)  # type: ignore[arg-type]
        block = self.read(len(view))
        view[: len(block)] = block
        return len(block)


def _check_entry(member: tarfile.TarInfo) -> None:
    name = member.name
    if len(name) > MAX_NAME_CHARS or len(member.linkname) > MAX_NAME_CHARS:
        raise BadImage(f"a layer has a name over {MAX_NAME_CHARS} characters")
    _check_inside(name, "entry")
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()) or member.issparse():
        raise BadImage(f"{name!r:.120} in a layer is no file, folder or link")
    if member.islnk():
        _check_inside(member.linkname, "hard link to")
    if member.issym() or member.islnk():
        place = "/".join(part for part in name.split("/") if part not in {"", "."})
        if place in NO_LINK_AT or NO_LINK_BELOW.fullmatch(place):
            raise BadImage(f"a layer makes /{place:.120} a link")


def _check_inside(name: str, what: str) -> None:
    if name.startswith("/") or ".." in name.split("/") or "\0" in name:
        raise BadImage(f"{what} {name!r:.120} of a layer lies outside of it")
