"""What the command prints: tables for people, one line of JSON for programs, errors in two lines on standard error.

Text from outside (names, reasons, logs of jobs) is data: control characters are shown, never sent to the terminal.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from agent.domain.ids import KeyId

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

WIDE = 200  # columns of a table that goes to a file or a pipe


def print_json(value: Any) -> None:
    """One line of JSON on standard output. What a terminal would obey is escaped in it too: JSON allows it raw."""
    text = msgspec.json.encode(value).decode()
    if not text.isprintable():
        text = "".join(one if one.isprintable() else json.dumps(one)[1:-1] for one in text)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say(text: str = "") -> None:
    """One line on standard output."""
    sys.stdout.write(clean(text) + "\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """One line on standard error, beside what a program reads."""
    sys.stderr.write(clean(text) + "\n")


def complain(code: str, detail: str, advice: str) -> None:
    """An error, on standard error: what, and what to do about it."""
    sys.stderr.write(f"error [{clean(code)}]: {clean(detail)}\n  → {clean(advice)}\n")


def clean(text: str, *, keeps_lines: bool = False) -> str:
    """The text with control characters shown as escapes, so that nothing in it can steer a terminal."""
    kept = {"\n", "\t"} if keeps_lines else set[str]()
    return "".join(
        character if character in kept or character.isprintable() else _escape(character)
        for character in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def console() -> "Console":
    """Where tables go. Colours only on a terminal; nothing is cut when it is none."""
    from rich.console import Console

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE
    return Console(width=width, highlight=False, markup=False, emoji=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> "Table":
    """A table. A cell that is None is empty, and a column of nothing but empty cells is left out.

    The name of a column of numbers ends in `#`, that of one whose text may be broken into lines in `~`.
    """
    from rich.table import Table
    from rich.text import Text

    lines = [["" if cell is None else clean(str(cell)) for cell in row] for row in rows]
    kept = [n for n in range(len(columns)) if not lines or any(line[n] for line in lines)]
    made = Table(
        box=None, title=title, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0), header_style="bold"
    )
    for name in (columns[n] for n in kept):
        justify: Literal["left", "right"] = "right" if name.endswith("#") else "left"
        made.add_column(name.rstrip("#~"), justify=justify, no_wrap=not name.endswith("~"), overflow="fold")
    for line in lines:
        made.add_row(*(Text(line[n], style=style_of(line[n])) for n in kept))
    return made


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None
) -> None:
    """The same on standard output."""
    console().print(table(columns, rows, title=title))


STYLES = {
    "done": "green",
    "attested": "green",
    "running": "cyan",
    "queued": "blue",
    "received": "blue",
    "held": "yellow",
    "failed": "red",
    "cancelled": "red",
    "expired": "red",
    "yes": "green",
    "absent": "yellow",
    "NO": "bold red",
}


def style_of(cell: str) -> str:
    """The colour of a state's name; everything else has none."""
    return STYLES.get(cell, "")


def short(name: str | None) -> str:
    """The first 12 characters of a key id or a digest's hex, enough to tell two apart in a table."""
    return "" if name is None else name.removeprefix("sha256:")[:12]


def when(moment: datetime | None) -> str:
    """A moment for people: UTC, to the second."""
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def short_when(moment: datetime | None) -> str:
    """The same without the year, for tables of what goes on now."""
    return when(moment)[5:]


def seconds(value: float | None) -> str:
    """A duration for people."""
    return "" if value is None else f"{value:.1f} s"


def size(count: int) -> str:
    """A number of bytes for people."""
    amount, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount, units = amount / 1024, units[1:]
    return f"{amount:.0f} {units[0]}" if units[0] == "B" else f"{amount:.1f} {units[0]}"


def fingerprint_lines(keyid: KeyId) -> str:
    """The fingerprint in two lines of five groups, as people read it to each other."""
    from agent.trust.fingerprints import fingerprint

    groups = fingerprint(keyid).split(" ")
    return " ".join(groups[:5]) + "\n" + " ".join(groups[5:])
