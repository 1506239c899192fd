"""A tar from outside is read here, from front to end: one meaning for every reader, or a refusal.

Readers of tar differ on what is odd: Go's, which unpacks images in the engine, goes on where CPython's stops, and one renames
where the other does not. What is odd is refused, so that the members judged are the members unpacked. A size is held against
the caller's limit before anything is sought or read for it, and memory does not grow with what headers claim. Whether a name
may stand twice is for the caller to judge.

A tar here is ustar, GNU or PAX (magic and checksum hold, numbers are plain octal or GNU's base 256), ends with a zero
block and has nothing but zeros after it. Owners are numbers, 0 to 2^32-2; users' names are not read. Before a member stand
one PAX header, or one GNU long name and one long link, each of 64 KiB at most. Refused: global headers, sparse members,
kinds the caller did not name, content of what is no file, names that are not UTF-8, hold control characters, or are not
their own normal form.
"""

import io
import re
from collections.abc import Collection, Iterator
from enum import StrEnum
from typing import IO, NoReturn

from msgspec import Struct

BLOCK_BYTES = 512
SKIP_BYTES = 1 << 20
MAX_EXTENSION_BYTES = 64 << 10
MAX_NAME_BYTES = 4096
MAX_DEPTH = 100  # what is looked up for each folder above a member stays cheap
MAX_ID = (1 << 32) - 2  # the last number is "nobody at all" for the kernel
MAX_MODE = 0o177777  # some writers put the kind of file above the twelve bits of permission

_ZEROS = bytes(BLOCK_BYTES)
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PAX_LENGTH = re.compile(rb"([1-9][0-9]{0,5}) ")
_PAX_NUMBERS = {
    **dict.fromkeys(("size", "uid", "gid"), re.compile(rb"[0-9]{1,18}")),
    **dict.fromkeys(("mtime", "atime", "ctime"), re.compile(rb"-?[0-9]{1,18}(\.[0-9]{0,30})?")),
}
_LONG_NAME, _LONG_LINK, _PAX, _PAX_GLOBAL = b"L", b"K", b"x", b"g"
_ATTRIBUTES = re.compile(r"(SCHILY\.xattr|LIBARCHIVE\.xattr|SCHILY\.acl|RHT\.security)\..*", re.DOTALL)
_EXTENSIONS = {_LONG_NAME: "name", _LONG_LINK: "link", _PAX: "PAX"}


class BadTar(Exception):
    """What was refused; the caller tells it as an error of its own."""


class Kind(StrEnum):
    """What a member may be."""

    FILE = "file"
    FOLDER = "folder"
    SYMBOLIC_LINK = "symbolic link"
    HARD_LINK = "hard link"


_KINDS = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"5": Kind.FOLDER,
    b"2": Kind.SYMBOLIC_LINK,
    b"1": Kind.HARD_LINK,
}


class Member(Struct, frozen=True):
    """One thing in a tar. `name` is relative and its own normal form; the root itself is "."."""

    name: str
    kind: Kind
    size_bytes: int
    link: str  # what a symbolic link says, or the member that a hard link names; "" otherwise
    offset: int  # where its content begins
    mode: int = 0  # the twelve bits of permission
    uid: int = 0
    gid: int = 0
    mtime_s: int = 0  # whole seconds since 1970, rounded down; any number that fits into 62 bits
    attributes: tuple[str, ...] = ()  # the PAX keys of its extended attributes and access lists


class StrictTar:
    """The members of one tar, in order; `read` gives the content of the one that iteration stands at.

    Raises (while it is iterated or read): BadTar. Whatever the stream raises passes through.
    """

    def __init__(
        self, stream: IO[bytes], *, limit_bytes: int, kinds: Collection[Kind], allows_dot: bool = True
    ) -> None:
        """`limit_bytes` is for the content of all members together; `allows_dot` takes one "./" off a name."""
        self._stream, self._kinds, self._allows_dot = stream, kinds, allows_dot
        self._budget_bytes = limit_bytes
        self._offset = 0
        self._left = self._padding = 0  # of the member that iteration stands at

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            yield member
            self._skip(self._left + self._padding)
            self._left = self._padding = 0

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes of the present member's content, a block if negative, nothing at its end."""
        block = self._exactly(min(SKIP_BYTES if size < 0 else size, SKIP_BYTES, self._left))
        self._left -= len(block)
        return block

    def _next(self) -> Member | None:
        """The next member, after every extension header that belongs to it was read."""
        extensions: dict[bytes, bytes] = {}
        while True:
            header = self._exactly(BLOCK_BYTES)
            if header == _ZEROS:
                self._check_end()
                if extensions:
                    self._refuse("the last header belongs to no member")
                return None
            size = self._check_header(header)
            kind = header[156:157]
            if kind == _PAX_GLOBAL:
                self._refuse("a global header")
            if kind not in _EXTENSIONS:
                return self._member(header, size, extensions)
            if kind in extensions or _PAX in extensions or (kind == _PAX and extensions):
                self._refuse("more than one header for one name")
            if not 0 < size <= MAX_EXTENSION_BYTES:
                self._refuse(f"a long header of {size} bytes, 1 to {MAX_EXTENSION_BYTES} are read")
            extensions[kind] = self._exactly(size)
            if any(self._exactly(-size % BLOCK_BYTES)):  # some readers go on there as if it were more of it
                self._refuse("a long header with something behind its end")

    def _check_header(self, header: bytes) -> int:
        """Refuse a header that readers could read in two ways. Gives the size it claims."""
        checksum = _OCTAL.fullmatch(header[148:156])
        bytes_sum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        if checksum is None or int(checksum[1] or b"0", 8) != bytes_sum:
            self._refuse("its checksum is not right")
        if header[257:265] == b"ustar\x0000":
            is_plain = not any(header[500:])  # where star hides another layout
        elif header[257:265] == b"ustar  \0":
            is_plain = not any(header[345:])  # where some readers find a prefix, and others times
        else:
            is_plain = False
        numbers = [_number(header[start:end]) for start, end in ((100, 108), (329, 337), (337, 345))]
        signed = [
            _number(header[start:end], is_signed=True) for start, end in ((108, 116), (116, 124), (136, 148))
        ]
        size = _number(header[124:136], is_signed=True)
        if not is_plain or size is None or None in numbers or None in signed:
            self._refuse("it is no plain ustar, GNU or PAX header")
        if size < 0:
            self._refuse(f"the size {size}, which no regular file has")
        return size

    def _member(self, header: bytes, size: int, extensions: dict[bytes, bytes]) -> Member:
        """What header and extensions say together."""
        pax = self._pax(extensions[_PAX]) if _PAX in extensions else {}
        raw_name, raw_link = header[:100].rstrip(b"\0"), header[157:257].rstrip(b"\0")
        if header[257:265] == b"ustar\x0000" and (prefix := header[345:500].rstrip(b"\0")):
            raw_name = prefix + b"/" + raw_name
        if _LONG_NAME in extensions:
            raw_name = extensions[_LONG_NAME].rstrip(b"\0")
        if _LONG_LINK in extensions:
            raw_link = extensions[_LONG_LINK].rstrip(b"\0")
        raw_name, raw_link = pax.get("path", raw_name), pax.get("linkpath", raw_link)
        size = int(pax.get("size", size))
        kind = _KINDS.get(header[156:157])
        if kind is None or kind not in self._kinds:
            words = "file, folder or link" if Kind.SYMBOLIC_LINK in self._kinds else "regular file or folder"
            raise BadTar(f"{raw_name!r:.120} is no {words}")
        name = self._normal(raw_name, is_folder=kind is Kind.FOLDER)
        match kind:
            case Kind.HARD_LINK:
                link = self._normal(raw_link, is_folder=False)
            case Kind.SYMBOLIC_LINK:
                link = _text(raw_link)
            case Kind.FILE | Kind.FOLDER:
                link = ""
        if size and kind is not Kind.FILE:
            raise BadTar(f"{name!r:.120} is a {kind} with content")
        if size > self._budget_bytes:
            raise BadTar(f"{name!r:.120} unpacks to more than the {self._budget_bytes} bytes that are left")
        self._budget_bytes -= size
        self._left, self._padding = size, -size % BLOCK_BYTES
        mode, uid, gid = self._permissions(header, pax)
        mtime = pax.get("mtime", b"").partition(b".")[0]
        return Member(
            name,
            kind,
            size,
            link,
            self._offset,
            mode,
            uid,
            gid,
            int(mtime) if mtime else _number(header[136:148], is_signed=True) or 0,
            tuple(key for key in pax if _ATTRIBUTES.fullmatch(key)),
        )

    def _permissions(self, header: bytes, pax: dict[str, bytes]) -> tuple[int, int, int]:
        """(mode, uid, gid), without what no kernel would take."""
        mode, uid, gid = (_number(header[start : start + 8], is_signed=True) for start in (100, 108, 116))
        uid, gid = int(pax.get("uid", uid or 0)), int(pax.get("gid", gid or 0))
        if not 0 <= (mode or 0) <= MAX_MODE:
            self._refuse("a mode that no file has")
        if not (0 <= uid <= MAX_ID and 0 <= gid <= MAX_ID):
            self._refuse("an owner that no file has")
        return (mode or 0) & 0o7777, uid, gid

    def _normal(self, raw: bytes, *, is_folder: bool) -> str:
        """A member's name: one "./" before it and, of a folder, one "/" behind it are tar's way of writing."""
        text = _text(raw)
        name = text.removeprefix("./") if self._allows_dot else text
        if is_folder:
            if text in {".", "./"}:
                return "."
            name = name.removesuffix("/")
        parts = name.split("/")
        if name.startswith("/") or ".." in parts:
            raise BadTar(f"the name {text!r:.120} is refused: it lies outside of its root")
        if not {"", "."}.isdisjoint(parts):
            raise BadTar(f"the name {text!r:.120} is refused: it is not its own normal form")
        if len(parts) > MAX_DEPTH:
            raise BadTar(f"the name {text!r:.120} is refused: it is deeper than {MAX_DEPTH} folders")
        return name

    def _pax(self, content: bytes) -> dict[str, bytes]:
        """The records of a PAX header, each "length key=value\\n"."""
        records: dict[str, bytes] = {}
        start = 0
        while start < len(content):
            match = _PAX_LENGTH.match(content, start)
            end = start + int(match[1]) if match else 0
            if match is None or not match.end() < end <= len(content) or content[end - 1 : end] != b"\n":
                self._refuse("a PAX record that does not parse")
            raw_key, equals, value = content[match.end() : end - 1].partition(b"=")
            key = raw_key.decode("ascii", errors="replace")
            if not key or not equals or key in records:
                self._refuse("a PAX record that does not parse, or stands twice")
            if key.startswith("GNU.sparse."):
                self._refuse("a sparse member, which is no regular file")
            if key == "hdrcharset" or (key in {"path", "linkpath"} and not value):
                self._refuse(f"the PAX record {key!r}")
            if key in _PAX_NUMBERS and not _PAX_NUMBERS[key].fullmatch(value):
                self._refuse(f"the PAX record {key!r} is no number that an archive may hold")
            records[key] = value
            start = end
        return records

    def _check_end(self) -> None:
        """What follows the first zero block is zeros. Some readers stop here and others do not."""
        while block := self._stream.read(SKIP_BYTES):
            if block.count(0) != len(block):
                self._refuse("something stands after its end")

    def _skip(self, size: int) -> None:
        """Go on by `size` bytes. A seek may land behind the end: the next header is missing then."""
        if self._stream.seekable():
            self._stream.seek(size, io.SEEK_CUR)
            self._offset += size
            return
        while size > 0:
            size -= len(self._exactly(min(size, SKIP_BYTES)))

    def _exactly(self, size: int) -> bytes:
        blocks: list[bytes] = []
        left = size
        while left > 0:
            block = self._stream.read(left)
            if not block:
                self._refuse("it ends too early")
            blocks.append(block)
            left -= len(block)
        self._offset += size
        return b"".join(blocks)

    def _refuse(self, words: str) -> NoReturn:
        raise BadTar(f"before byte {self._offset}: {words}")


def _number(field: bytes, *, is_signed: bool = False) -> int | None:
    """A header's number, None where readers could differ on it."""
    if field[0] == 0x80 or (is_signed and field[0] == 0xFF):
        value = int.from_bytes(field[1:], "big") - (field[0] == 0xFF) * 256 ** (len(field) - 1)
        return value if abs(value) < 1 << 62 else None
    match = _OCTAL.fullmatch(field)
    return None if match is None else int(match[1] or b"0", 8)


def _text(raw: bytes) -> str:
    """A name as text. Raises: BadTar."""
    if not raw:
        raise BadTar("an empty name is refused")
    if len(raw) > MAX_NAME_BYTES:
        raise BadTar(f"the name {raw[:120]!r:.120} is too long, over {MAX_NAME_BYTES} characters")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise BadTar(f"the name {raw!r:.120} is not UTF-8") from cause
    if _CONTROL.search(text):
        raise BadTar(f"the name {text!r:.120} holds characters that cannot be printed")
    return text
