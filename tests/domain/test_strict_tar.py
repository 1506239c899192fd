"""What the strict tar reader takes, and each oddity that it refuses instead of guessing."""

import io
import tarfile
from collections.abc import Callable
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.domain.strict_tar import MAX_EXTENSION_BYTES, BadTar, Kind, Member, StrictTar

END = bytes(1024)
Change = Callable[[bytearray], object]
Form = Literal[0, 1, 2]  # ustar, GNU, PAX, as tarfile numbers them


class Pipe(io.RawIOBase):
    """A stream that cannot seek and gives few bytes at a time."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, 100))


def head(
    name: str, kind: bytes = tarfile.REGTYPE, *, form: Form = tarfile.GNU_FORMAT, **fields: object
) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry.tobuf(form, "utf-8", "surrogateescape")


def changed(change: Change, *, form: Form = tarfile.USTAR_FORMAT) -> bytes:
    """A header after `change`, with the sum that belongs to it."""
    raw = bytearray(head("a", form=form))
    change(raw)
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def pax(*records: bytes) -> bytes:
    content = b"".join(records)
    return head("pax", tarfile.XHDTYPE, size=len(content)) + content.ljust(512, b"\0")


def read(content: bytes, *, limit_bytes: int = 1 << 30) -> list[tuple[str, Kind, str, bytes]]:
    """Every member with its content: by seeking, and the same from a pipe."""
    told = []
    for stream in (io.BytesIO(content), Pipe(content)):
        tar = StrictTar(stream, limit_bytes=limit_bytes, kinds=frozenset(Kind))  # type: ignore[arg-type]
        told.append([(one.name, one.kind, one.link, b"".join(iter(tar.read, b""))) for one in tar])
    assert told[0] == told[1]
    return told[0]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_three_forms_say_the_same(form: Form) -> None:
    long, longer = "d" * 90 + "/" + "ü" * 40, "e/" * 20 + "x" * (20 if form == tarfile.USTAR_FORMAT else 250)
    content = (
        head("./", tarfile.DIRTYPE, form=form)
        + head(long, form=form, size=3)
        + b"abc".ljust(512, b"\0")
        + head(f"./{longer}", tarfile.SYMTYPE, form=form, linkname="../any//where")
        + head("h", tarfile.LNKTYPE, form=form, linkname=f"./{long[:90]}")
        + END
    )

    assert read(content) == [
        (".", Kind.FOLDER, "", b""),
        (long, Kind.FILE, "", b"abc"),
        (longer, Kind.SYMBOLIC_LINK, "../any//where", b""),
        ("h", Kind.HARD_LINK, long[:90], b""),
    ]


BAD: dict[str, bytes] = {
    "a record behind a PAX header": head("pax", tarfile.XHDTYPE, size=10)
    + b"10 path=b\n10 path=c\n".ljust(512, b"\0")
    + head("a")
    + END,
    "a name behind a long name": head("long", tarfile.GNUTYPE_LONGNAME, size=1)
    + b"bc".ljust(512, b"\0")
    + head("a")
    + END,
    "nothing": b"",
    "no end": head("a"),
    "an end and then a header": head("a") + bytes(512) + head("b") + END,
    "bytes after the end": END + b"x",
    "half a header": head("a")[:300],
    "a wrong sum": b"b" + head("a")[1:] + END,
    "a member cut short": head("a", size=2000) + b"x" * 600,
    "an old header without a magic": changed(lambda h: h.__setitem__(slice(257, 265), bytes(8))) + END,
    "star's layout": changed(lambda h: h.__setitem__(slice(508, 512), b"tar\0")) + END,
    "a prefix in a GNU header": changed(
        lambda h: h.__setitem__(slice(345, 348), b"usr"), form=tarfile.GNU_FORMAT
    )
    + END,
    "zeros before a number": changed(lambda h: h.__setitem__(slice(124, 136), b"\x0000000000001")) + END,
    "a sign in a number": changed(lambda h: h.__setitem__(slice(124, 136), b"-0000000001\0")) + END,
    "a digit of Python's": changed(lambda h: h.__setitem__(slice(124, 136), b"0o000000001\0")) + END,
    "a mode that does not parse": changed(lambda h: h.__setitem__(slice(100, 108), b"rwxr-xr-")) + END,
    "a negative size": changed(lambda h: h.__setitem__(slice(124, 136), b"\xff" * 12)) + END,
    "a size over the limit": head("a", size=1 << 40) + END,
    "a folder with content": head("a", tarfile.DIRTYPE, size=512) + bytes(512) + END,
    "a device": head("a", tarfile.CHRTYPE) + END,
    "a sparse file": head("a", tarfile.GNUTYPE_SPARSE) + END,
    "another kind": head("a", b"Q") + END,
    "a global header": tarfile.TarInfo.create_pax_global_header({"comment": "x"}) + head("a") + END,
    "an empty name": head("") + END,
    "a zero byte in a name": changed(lambda h: h.__setitem__(slice(0, 3), b"a\0b")) + END,
    "a line break in a name": head("a\nb") + END,
    "a name that is not UTF-8": head("\udcff") + END,
    "a link that is not UTF-8": head("a", tarfile.SYMTYPE, linkname="\udcff") + END,
    "a long name": head("a" * 5000) + END,
    "a deep name": head("a/" * 100 + "a") + END,
    **{f"the name {name}": head(name) + END for name in ("/a", "../a", "a/..", "a/./b", "././a", "a//b", "a/", ".")},
    "a hard link outside": head("a", tarfile.LNKTYPE, linkname="../b") + END,
    "two long names": head("a" * 200)[:-512] * 2 + head("a") + END,
    "PAX and a long name": pax(b"10 path=b\n")[:1024] + head("a" * 200) + END,
    "a long name of nothing": head("a" * 200)[:-512] + END,
    "a huge extension": head("x", tarfile.XHDTYPE, size=MAX_EXTENSION_BYTES + 1) + bytes(1 << 17) + END,
    "a PAX record cut short": pax(b"99 path=b\n") + head("a") + END,
    "a PAX record that never ends": pax(b"2 ") + head("a") + END,
    "a PAX record without a key": pax(b"5 =b\n") + head("a") + END,
    "a PAX record twice": pax(b"10 path=b\n", b"10 path=c\n") + head("a") + END,
    "a PAX path of nothing": pax(b"8 path=\n") + head("a") + END,
    "a PAX path outside": pax(b"13 path=../b\n") + head("a") + END,
    "a PAX size with a sign": pax(b"11 size=-1\n") + head("a") + END,
    "a PAX size of nothing": pax(b"8 size=\n") + head("a") + END,
    "a PAX sparse map": pax(b"22 GNU.sparse.major=1\n") + head("a") + END,
    "a mode beyond all bits": changed(lambda h: h.__setitem__(slice(100, 108), b"0200644\0")) + END,
    "an owner below zero": head("a", uid=-1) + END,
    "a group that is nobody at all": head("a", gid=(1 << 32) - 1) + END,
    "a PAX owner below zero": pax(b"10 uid=-1\n") + head("a") + END,
    "a PAX group beyond 32 bits": pax(b"18 gid=4294967295\n") + head("a") + END,
    "another character set": pax(b"21 hdrcharset=BINARY\n") + head("a") + END,
}  # fmt: skip


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_readers_could_read_in_two_ways_is_refused_for(content: bytes) -> None:
    with pytest.raises(BadTar) as refusal:
        read(content, limit_bytes=1 << 20)

    assert str(refusal.value).isprintable()


def test_members_that_cannot_seek_share_one_limit() -> None:
    content = b"".join(head(name, size=600) + bytes(1024) for name in "ab") + END

    assert len(read(content, limit_bytes=1200)) == 2
    with pytest.raises(BadTar, match="more than the 599 bytes that are left"):
        read(content, limit_bytes=1199)


def members(content: bytes) -> list[Member]:
    return list(StrictTar(io.BytesIO(content), limit_bytes=1 << 20, kinds=frozenset(Kind)))


def test_owner_mode_and_time_are_told_and_a_pax_header_has_the_last_word() -> None:
    plain = head("a", uid=7, gid=(1 << 32) - 2, mode=0o4755, mtime=12)
    told = pax(
        b"12 uid=1000\n",
        b"12 gid=1001\n",
        b"13 mtime=5.9\n",
        b"27 SCHILY.xattr.user.x=abc\n",
        b"13 comment=x\n",
    )

    one, two = members(plain + told + plain + END)

    assert (one.uid, one.gid, one.mode, one.mtime_s, one.attributes) == (7, (1 << 32) - 2, 0o4755, 12, ())
    assert (two.uid, two.gid, two.mode, two.mtime_s) == (1000, 1001, 0o4755, 5)
    assert two.attributes == ("SCHILY.xattr.user.x",)


GOOD = (
    pax(b"10 path=b\n", b"11 mtime=1\n")
    + head("a", form=tarfile.USTAR_FORMAT, size=3)
    + b"abc".ljust(512, b"\0")
    + head("n" * 120)
    + END
)


def test_an_archive_in_order_is_read_to_its_end() -> None:
    assert [(name, content) for name, _, _, content in read(GOOD)] == [("b", b"abc"), ("n" * 120, b"")]


@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4))
def test_what_is_taken_is_what_tarfile_takes(flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(GOOD)
    for place, value in flips:
        damaged[place] = value
    for start in range(0, len(GOOD), 512):
        if damaged[start + 257 : start + 262] == b"ustar":
            damaged[start + 148 : start + 156] = b" " * 8
            damaged[start + 148 : start + 156] = b"%06o\0 " % sum(damaged[start : start + 512])

    try:
        members = read(bytes(damaged))
    except BadTar:
        return
    with tarfile.open(fileobj=io.BytesIO(bytes(damaged)), mode="r:") as archive:
        names = [one.name.removeprefix("./") for one in archive]
    assert names == [name for name, *_ in members]
