"""How one layer of an image is judged: a tar, or a gzipped one, read once as a stream and never unpacked.

A layer that passed means the same for every engine that unpacks it, in whatever order and with whatever way to hide what
is below. So in one layer no name stands twice (but for folders), nothing that it hides is also made by it, and a hard link
names a file that it made before. What only gives rights (set-id bits, file capabilities) passes: under no_new_privileges it
gives none.
Source: OCI image-spec, layer.md, "Whiteouts"; docs/contracts/container.md, "Which image archives are loaded".
"""

import hashlib
import io
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

from msgspec import Struct

from agent.domain.ids import Digest, digest_from_hex
from agent.domain.strict_tar import BadTar, Kind, Member, StrictTar
from agent.errors import BadImage

MAX_LAYERS = 128
MAX_ENTRIES = 1_000_000
MAX_BYTES = 32 << 30
MAX_LINK_BYTES = 32 << 20  # the names of all links and of all that is hidden, which are remembered
MAX_NAME_BYTES = 255  # of one folder or file, as file systems have it
MAX_GZIP_MEMBERS = (
    1_000_000  # gzip streams in a row, which writers of seekable layers make: one for each file
)
MAX_RATIO, FREE_BYTES = (
    200,
    64 << 20,
)  # what is beyond the free bytes may not unpack to more than so many times its size
BLOCK_BYTES = 1 << 20

HIDES, EMPTIES = ".wh.", ".wh..wh..opq"
# Extended attributes: file systems and engines obey some (user.overlay.*, user.containers.override_stat, access lists).
ATTRIBUTES_TAKEN = frozenset({"SCHILY.xattr.security.capability"})

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
# The places where the cage mounts something: a folder, or nothing at all.
FOLDERS_ONLY = frozenset(
    {"dev", "proc", "sys", "run", "tmp", "etc", "data", "hidden_data", "submission_data"}
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
    gzip_members: int = 0
    entries: int = 0
    links: set[str] = field(default_factory=set)
    name_bytes: int = 0
    layer: int = -1  # the one that is read
    see: Callable[[int, Member], None] = _ignore
    beat: Callable[[], None] = _patient

    def remember(self, name: str) -> None:
        """Count a name that is kept. Raises: BadImage when there are too many."""
        self.name_bytes += len(name.encode())
        if self.name_bytes > MAX_LINK_BYTES:
            raise BadImage(
                f"the names of the image's links and whiteouts have more than {MAX_LINK_BYTES >> 20} MiB"
            )


class Judged(Struct, frozen=True):
    """A layer that passed: the digest of its uncompressed bytes, which a config calls diff_id, and what it takes away.

    `hides`: files and folders of the layers below that are gone. `empties`: folders of which nothing below is seen.
    """

    diff_id: Digest
    size_bytes: int  # uncompressed
    entries: int
    hides: tuple[str, ...] = ()
    empties: tuple[str, ...] = ()


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


class LayerTar:
    """One layer being read: its members in order, their content by `read`, and at its end the digest.

    Raises (from everything): BadImage for what is no tar.
    """

    def __init__(self, raw: Readable, budget: Budget) -> None:
        self._content = _Content(_uncompressed(raw, budget), budget)
        self._tar = StrictTar(
            io.BufferedReader(self._content, BLOCK_BYTES),
            limit_bytes=MAX_BYTES - budget.used_bytes,
            kinds=frozenset(Kind),
        )

    def __iter__(self) -> Iterator[Member]:
        with _translated():
            yield from self._tar

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes of the member that iteration stands at."""
        with _translated():
            return self._tar.read(size)

    def finish(self) -> Digest:
        """The digest of the uncompressed bytes, once all members were read."""
        with _translated():
            return self._content.finish()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (BadTar, EOFError, zlib.error) as cause:
        raise BadImage(f"a layer is no readable tar: {cause}") from cause


def check_layer(raw: Readable, budget: Budget) -> Judged:
    """Judge every entry of the layer. Raises: BadImage."""
    before_bytes, before_entries = budget.used_bytes, budget.entries
    budget.layer += 1
    tar, rules = LayerTar(raw, budget), _Rules(budget)
    for member in tar:
        budget.entries += 1
        if budget.entries > MAX_ENTRIES:
            raise BadImage(f"the image has more than {MAX_ENTRIES} files")
        rules.check(member)
        budget.see(budget.layer, member)
    return Judged(
        diff_id=tar.finish(),
        size_bytes=budget.used_bytes - before_bytes,
        entries=budget.entries - before_entries,
        hides=tuple(rules.hides),
        empties=tuple(rules.empties),
    )


def is_whiteout(name: str) -> bool:
    """Whether an entry of this name is none, but tells what of the layers below is gone."""
    return name.rpartition("/")[2].startswith(HIDES)


def _uncompressed(raw: Readable, budget: Budget) -> Readable:
    """The layer as a tar, by what its first bytes are and not by what the manifest calls it: so does the engine."""
    head = raw.read(6)
    whole = _Rejoined(head, raw)
    if head.startswith(b"\x1f\x8b"):
        return _Gunzip(whole, budget)
    for magic, name in COMPRESSIONS.items():
        if head.startswith(magic):
            raise BadImage(f"a layer is compressed with {name}: only tar and tar+gzip are read")
    return whole


class _Gunzip:
    """What gzip streams in a row unpack to. Each `read` costs at most what it gives, however well it was packed.

    Raises: BadImage for a bomb; EOFError when it ends too early; zlib.error for what is no gzip.
    """

    def __init__(self, packed: Readable, budget: Budget) -> None:
        self._packed, self._budget = packed, budget
        self._stream = self._new_stream()
        self._rest = b""
        self._packed_bytes = self._unpacked_bytes = 0

    def read(self, size: int = -1) -> bytes:
        while True:
            if not self._rest:
                self._rest = self._packed.read(BLOCK_BYTES)
                self._packed_bytes += len(self._rest)
            if self._stream.eof and not self._rest:
                return b""
            if not self._rest:
                raise EOFError("its gzip ends too early")
            if self._stream.eof:
                self._stream = self._new_stream()
            block = self._stream.decompress(self._rest, BLOCK_BYTES if size < 0 else size)
            self._rest = self._stream.unused_data if self._stream.eof else self._stream.unconsumed_tail
            if block:
                self._count(block)
                return block

    def _new_stream(self) -> "zlib._Decompress":
        self._budget.gzip_members += 1
        if self._budget.gzip_members > MAX_GZIP_MEMBERS:
            raise BadImage(f"the image's layers have more than {MAX_GZIP_MEMBERS} gzip streams")
        return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    def _count(self, block: bytes) -> None:
        self._unpacked_bytes += len(block)
        if self._unpacked_bytes > FREE_BYTES + MAX_RATIO * self._packed_bytes:
            raise BadImage(f"a layer unpacks to more than {MAX_RATIO} times its size")


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


class _Rules:
    """What the entries of one layer must keep, one against the other and against the links of those below.

    Names are remembered by their hashes, as large as a million of them may be: a chance likeness refuses an image, no more.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._made: dict[int, Kind] = {}  # by this layer; a folder that only stands in a longer name too
        self._hidden: set[str] = set()
        self.empties: list[str] = []

    @property
    def hides(self) -> list[str]:
        """What is gone of the layers below."""
        return sorted(self._hidden)

    def check(self, member: Member) -> None:
        """Refuse an entry that would turn a mount elsewhere, or that engines could unpack in two ways."""
        self._check_attributes(member)
        self._check_name(member)
        self._check_places(member)
        for above in _folders_above(member.name):
            self._note(above, Kind.FOLDER)
        if is_whiteout(member.name):
            self._note(member.name, Kind.FILE)
            self._hide(member.name)
        else:
            self._note(member.name, member.kind)
            self._link(member)

    def _check_attributes(self, member: Member) -> None:
        for key in member.attributes:
            if key not in ATTRIBUTES_TAKEN:
                raise BadImage(f"{member.name!r:.120} in a layer has the attribute {key!r:.80}")

    def _check_name(self, member: Member) -> None:
        parts = member.name.split("/")
        if max(len(part.encode()) for part in parts) > MAX_NAME_BYTES:
            raise BadImage(f"{member.name!r:.120} in a layer has a part of over {MAX_NAME_BYTES} bytes")
        if any(is_whiteout(part) for part in parts[:-1]):
            raise BadImage(f"{member.name!r:.120} in a layer lies below a whiteout")
        if is_whiteout(parts[-1]) and (member.kind is not Kind.FILE or member.size_bytes):
            raise BadImage(f"the whiteout {member.name!r:.120} is no empty file")
        target = member.link if member.kind is Kind.HARD_LINK else ""
        if any(is_whiteout(part) for part in target.split("/")):
            raise BadImage(f"the link {member.name!r:.120} in a layer is one to a whiteout")

    def _check_places(self, member: Member) -> None:
        """Refuse what would turn a mount elsewhere: a link in its place, or an entry that is unpacked through a link."""
        name, links = member.name, self._budget.links
        for above in (
            *_folders_above(name),
            *_folders_above(member.link if member.kind is Kind.HARD_LINK else ""),
        ):
            if above in links:
                raise BadImage(f"{name!r:.120} in a layer lies below {above!r:.120}, which is a link")
        is_link = member.kind in {Kind.SYMBOLIC_LINK, Kind.HARD_LINK}
        if is_link and (name in NO_LINK_AT or NO_LINK_BELOW.fullmatch(name)):
            raise BadImage(f"a layer makes {'/' + name!r:.120} a link")
        if member.kind is not Kind.FOLDER and name in FOLDERS_ONLY:
            raise BadImage(f"a layer makes {'/' + name!r:.120} no folder: the cage mounts something there")

    def _note(self, name: str, kind: Kind) -> None:
        """This layer makes it: once, unless it is a folder."""
        if self._hidden and not self._hidden.isdisjoint((name, *_folders_above(name))):
            raise BadImage(f"a layer makes {name!r:.120} and hides it")
        before = self._made.get(hash(name))
        if before is not None and not before is kind is Kind.FOLDER:
            raise BadImage(f"{name!r:.120} stands twice in a layer")
        self._made[hash(name)] = kind

    def _link(self, member: Member) -> None:
        if member.kind in {Kind.FILE, Kind.FOLDER}:
            self._budget.links.discard(member.name)  # it takes the link's place
            return
        if member.kind is Kind.HARD_LINK:
            if member.link == member.name or self._made.get(hash(member.link)) is not Kind.FILE:
                raise BadImage(f"{member.name!r:.120} in a layer is a hard link to no file of that layer")
            self._made[hash(member.name)] = Kind.FILE
        self._budget.links.add(member.name)
        self._budget.remember(member.name)

    def _hide(self, name: str) -> None:
        """Take a whiteout down. What it hides may be hidden already, or may never have been."""
        folder, slash, last = name.rpartition("/")
        if last == EMPTIES:
            if not folder:
                raise BadImage("a layer hides all that is below it, for which engines have no one meaning")
            self._budget.remember(folder)
            self.empties.append(folder)
            return
        base = last.removeprefix(HIDES)
        if base in {"", ".", ".."} or is_whiteout(base):
            raise BadImage(f"{name!r:.120} in a layer is no whiteout that engines agree on")
        hidden = f"{folder}{slash}{base}"
        if hash(hidden) in self._made:
            raise BadImage(f"a layer makes {hidden!r:.120} and hides it")
        self._budget.remember(hidden)
        self._hidden.add(hidden)
        self._budget.links.discard(hidden)


def _folders_above(name: str) -> Iterator[str]:
    """a/b/c lies below a and a/b."""
    return accumulate(name.split("/")[:-1], "{}/{}".format)
