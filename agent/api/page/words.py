"""Values as a person reads them: spans of time, bytes, ids. And text of strangers made harmless to read."""

import unicodedata
from datetime import datetime, timedelta
from typing import Final

MAX_TEXT: Final = 240  # characters of any one text; the rest is counted
SHORT_ID: Final = 8

# Nothing of these is seen, but each changes how what stands around it is read: controls, marks of direction, what has no
# width, line and paragraph separators, halves of characters.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_STACKED: Final = 2  # marks that may stand on one character


def plain(text: str, most: int = MAX_TEXT) -> str:
    """The text on one line, what is not seen written out as \\u202e, and no longer than `most` and a count of the rest."""
    kept = text[:most]
    marks, made = 0, []
    for each in kept:
        kind = unicodedata.category(each)
        marks = marks + 1 if kind in {"Mn", "Me"} else 0
        if each in "\t\n\r":
            made.append(" ")
        elif kind in _UNSEEN or marks > _STACKED:
            made.append(f"\\u{ord(each):04x}")
        else:
            made.append(each)
    left = len(text) - len(kept)
    return "".join(made) + (f"… (and {left} characters)" if left else "")


def short(text: str, most: int = SHORT_ID) -> str:
    """The beginning of an id or digest: enough to tell it from others on one page."""
    bare = text.removeprefix("sha256:")
    return plain(bare[:most])


def cut(text: str, most: int) -> str:
    """The text in at most so many characters."""
    clean = plain(text)
    return clean if len(clean) <= most else clean[: most - 1] + "…"


def span(seconds: float) -> str:
    """A span of time in its two largest units: 0.42 s, 12 s, 3 min 4 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 0:
        return f"-{span(-seconds)}"
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, below, name_below in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size} {name} {rest} {name_below}" if rest else f"{whole // size} {name}"
    return f"{whole} s"


def ago(moment: datetime, now: datetime) -> str:
    """How long ago, or in how long."""
    passed = now - moment
    if abs(passed) < timedelta(seconds=1):
        return "now"
    told = _largest(abs(passed))
    return f"{told} ago" if passed > timedelta(0) else f"in {told}"


def _largest(passed: timedelta) -> str:
    whole = int(passed.total_seconds())
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // size} {name}"
    return f"{whole} s"


def size(count: int) -> str:
    """Bytes for people."""
    if count < 1024:
        return f"{count} B"
    told = float(count)
    for name in ("KiB", "MiB", "GiB"):
        told /= 1024
        if told < 1024:
            return f"{told:.0f} {name}" if told >= 100 else f"{told:.1f} {name}"
    return f"{told / 1024:.1f} TiB"


def when(moment: datetime) -> str:
    """A moment in UTC, to the second."""
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 order`, `2 orders`."""
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"
