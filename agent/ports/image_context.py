"""A build context: a tar.gz with a Dockerfile at its root, read as strictly as an image's layer and never unpacked."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from msgspec import Struct

from agent.domain.strict_tar import BadTar, Kind, Member, StrictTar
from agent.errors import BadBuild, BadImage
from agent.ports.image_layers import BLOCK_BYTES, Budget, Gunzip
from agent.ports.image_names import folders_above
from agent.ports.image_parts import Content

MAX_ENTRIES = 100_000
DOCKERFILE, IGNORE_FILE = "Dockerfile", ".dockerignore"
GZIP = b"\x1f\x8b"


class Context(Struct, frozen=True):
    """The members of a context by name, hard links as the files they name; folders that only names imply too."""

    file: IO[bytes]  # the plain tar
    members: Mapping[str, Member]

    @property
    def dockerfile(self) -> bytes:
        """Raises: BadBuild when there is none."""
        member = self.members.get(DOCKERFILE)
        if member is None or member.kind is not Kind.FILE:
            raise BadBuild(f"there is no file {DOCKERFILE} at the root of the context")
        return self.content(member).read(1 << 20)

    def content(self, member: Member) -> Content:
        """A file's content, read from front to end before another one is begun."""
        return Content(self.file, member)


@contextmanager
def open_context(packed: Path, work: Path, limit_bytes: int) -> Iterator[Context]:
    """The context in this tar.gz; `work` is a folder for its plain tar, of `limit_bytes` at most. Raises: BadBuild."""
    try:
        plain = _unpacked(packed, work / "context.tar", limit_bytes)
        with plain.open("rb") as file:
            members = _members(file, limit_bytes)
    except (BadTar, BadImage) as cause:
        raise BadBuild(f"{packed.name!r:.80} is no context that is taken: {cause}") from cause
    with plain.open("rb") as file:
        yield Context(file, members)


def _unpacked(packed: Path, plain: Path, limit_bytes: int) -> Path:
    with packed.open("rb") as source, plain.open("xb") as target:
        if source.peek(2)[:2] != GZIP:
            raise BadBuild(f"{packed.name!r:.80} is no tar.gz")
        stream, left = Gunzip(source, Budget()), limit_bytes
        try:
            while block := stream.read(BLOCK_BYTES):
                left -= len(block)
                if left < 0:
                    raise BadBuild(f"the context unpacks to more than {limit_bytes >> 20} MiB")
                target.write(block)
        except (EOFError, OSError, ValueError) as cause:
            raise BadBuild(f"{packed.name!r:.80} is no tar.gz that can be read: {cause}") from cause
    return plain


def _members(file: IO[bytes], limit_bytes: int) -> dict[str, Member]:
    members: dict[str, Member] = {}
    implied: dict[str, Member] = {}
    for count, member in enumerate(StrictTar(file, limit_bytes=limit_bytes, kinds=frozenset(Kind)), 1):
        name = member.name
        if count > MAX_ENTRIES:
            raise BadBuild(f"the context has more than {MAX_ENTRIES} entries")
        if name == ".":
            continue
        if name in members:
            raise BadBuild(f"{name!r:.120} stands twice in the context")
        if member.attributes:
            raise BadBuild(f"{name!r:.120} in the context has the attribute {member.attributes[0]!r:.80}")
        members[name] = _file_of(member, members) if member.kind is Kind.HARD_LINK else member
        for above in folders_above(name):
            implied.setdefault(above, Member(above, Kind.FOLDER, 0, "", 0, 0o755))
    for name in implied.keys() & members.keys():
        if members[name].kind is not Kind.FOLDER:
            raise BadBuild(
                f"{name!r:.120} in the context is a {members[name].kind} and has something below it"
            )
    if IGNORE_FILE in members:
        raise BadBuild(f"{IGNORE_FILE} is not read here: take it out of the context, with what it names")
    return implied | members


def _file_of(link: Member, members: Mapping[str, Member]) -> Member:
    target = members.get(link.link)
    if target is None or target.kind is not Kind.FILE:
        raise BadBuild(f"{link.name!r:.120} in the context is a hard link to no file before it")
    return target
