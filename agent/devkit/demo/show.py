"""How the demo looks on a terminal, and what it must have seen to end well."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table


@dataclass(slots=True)
class Show:
    """The terminal, the clock, and the list of what had to be seen."""

    console: Console = field(default_factory=lambda: Console(width=150, highlight=False, soft_wrap=False))
    seen: list[tuple[str, bool]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def chapter(self, title: str) -> None:
        """Begin a part of the story."""
        seconds = f"{time.monotonic() - self.began:5.1f} s"
        self.console.print(f"\n[bold]{title}[/bold]  [dim]{seconds}[/dim]")

    def say(self, text: str) -> None:
        """A line."""
        self.console.print(f"  {text}")

    def expect(self, what: str, is_seen: bool, detail: str = "") -> None:
        """Note whether something that the demo promises was seen, and say so."""
        self.seen.append((what, is_seen))
        mark = "[green]seen[/green]" if is_seen else "[red]NOT SEEN[/red]"
        line = f"  {mark}  {what}" + (f"  [dim]{detail}[/dim]" if detail else "")
        self.console.print(line, no_wrap=True, overflow="ellipsis")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table."""
        self.console.print(make_table(columns, rows))

    @contextmanager
    def live(self) -> Iterator[Live]:
        """A part of the screen that is drawn anew; on anything but a terminal its last state is printed once."""
        with Live(console=self.console, auto_refresh=False, transient=False) as live:
            yield live
        if not self.console.is_terminal:
            self.console.print()

    @property
    def is_complete(self) -> bool:
        """Whether everything that had to be seen was seen."""
        return all(is_seen for _, is_seen in self.seen)


def make_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A plain table of these cells."""
    table = Table(box=None, padding=(0, 2, 0, 2), header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    return table
