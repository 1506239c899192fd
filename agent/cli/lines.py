"""Lines of the doctor and of fsck on a terminal: what, how it stands, what was seen, and below it the mend."""

from collections.abc import Sequence

from agent.cli.out import clean, console
from agent.doctor.lines import Check, State

STYLES = {State.OK: "green", State.WARN: "yellow", State.FAIL: "bold red", State.NOTE: "dim"}


def show(lines: Sequence[Check]) -> None:
    """The lines of a section, whole: a command is there to be copied."""
    from rich.text import Text

    width = max((len(line.name) for line in lines), default=0)
    group = None
    for line in lines:
        if line.group != group:
            group = line.group
            console().print(Text(clean(group), style="bold"), soft_wrap=True)
        text = Text(f"  {line.state:<4} ", style=STYLES[line.state])
        text.append(f" {clean(line.name):<{width}}  {clean(line.seen)}", style="default")
        console().print(text, soft_wrap=True)
        if line.mend is not None and line.state is not State.OK:
            console().print(Text(f"        → {clean(line.mend)}"), soft_wrap=True)


def show_sum(words: str) -> None:
    """The last line."""
    from rich.text import Text

    console().print(Text(words, style="bold"), soft_wrap=True)
