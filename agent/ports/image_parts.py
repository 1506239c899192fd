"""What an engine is sent of an image: an archive written anew from what was judged, never the author's bytes.

Another reader could find another image in those. The names, tags and spellings that the author gave are not in the new
archive, nor is any file that was not judged; contents are streamed, so that its size costs no memory.
"""

import tarfile
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import IO

from msgspec import Struct

from agent.domain import strict_tar
from agent.domain.strict_tar import Member
from agent.errors import BadImage

BLOCK_BYTES = 1 << 20


class Part(Struct, frozen=True):
    """One file of the archive that an engine is sent: its content, or where that lies in the author's archive."""

    name: str
    content: bytes | Member


class Content:
    """The content of one member, read from front to end before another one is begun."""

    def __init__(self, file: IO[bytes], member: Member) -> None:
        self._file, self._left = file, member.size_bytes
        file.seek(member.offset)

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(min(BLOCK_BYTES if size < 0 else size, self._left))
        if not block and size and self._left:
            raise BadImage("the archive was cut short while it was read")
        self._left -= len(block)
        return block


def rewritten(archive: Path, parts: Iterable[Part]) -> Generator[bytes, None, None]:
    """The blocks of a plain tar of these parts, whose contents are read from the archive as they are asked for.

    No block is empty: that would end a body sent in chunks.
    """
    with archive.open("rb") as file:
        for part in parts:
            header = tarfile.TarInfo(part.name)
            header.size = len(part.content) if isinstance(part.content, bytes) else part.content.size_bytes
            yield header.tobuf(tarfile.GNU_FORMAT)
            if isinstance(part.content, bytes):
                yield part.content
            else:
                yield from iter(Content(file, part.content).read, b"")
            if padding := bytes(-header.size % strict_tar.BLOCK_BYTES):
                yield padding
    yield bytes(2 * strict_tar.BLOCK_BYTES)
