"""The services started as their units start them, without the command line's libraries: those are a third of their memory.

Only the plain forms are known here, `[--home DIR] serve|work|run [--set SECTION.KEY=VALUE]…`. Whatever else is typed, help and
mistakes too, is the whole command's (`app.py`), which knows the same services by the same names.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

SERVICES: Final = ("serve", "work", "run")

# structlog and httpx import these where they are there: for tracebacks that would show local variables, keys among them, and
# for a command of httpx's own. A service has no use for either.
FOR_TERMINALS: Final = ("rich", "pygments")


class Asked(NamedTuple):
    """A service, and the agent that it is to be of: the folder of its settings, where one is named, and settings over it."""

    service: str
    home: Path | None
    flags: tuple[str, ...]


def asked_for(arguments: Sequence[str]) -> Asked | None:
    """The service that is meant; None where the whole command must read these arguments."""
    words = iter(arguments)
    home: Path | None = None
    for word in words:
        if word in SERVICES:
            flags = _values(words, "--set")
            return None if flags is None else Asked(word, home, flags)
        value = _value(word, words, "--home")
        if value is None:
            return None
        home = Path(value)
    return None


def run_lean(asked: Asked) -> int:
    """Run this service until it ends; its exit code. For a process that does nothing else: libraries for terminals are
    hidden from it."""
    hide_terminals()
    from agent.cli import services
    from agent.cli.ending import ended
    from agent.cli.home import Here

    here = Here(asked.home, flags=asked.flags)
    act = {"serve": services.serve, "work": services.work, "run": services.run}[asked.service]
    return ended(lambda: act(here))


def hide_terminals() -> None:
    """No library of this process finds these from here on."""
    for name in FOR_TERMINALS:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # how Python writes that there is none


def _values(words: Iterator[str], option: str) -> tuple[str, ...] | None:
    """The values of this option, repeated; None where anything else is among the words."""
    found = []
    for word in words:
        value = _value(word, words, option)
        if value is None:
            return None
        found.append(value)
    return tuple(found)


def _value(word: str, after: Iterator[str], option: str) -> str | None:
    """What this word gives the option, as `--option VALUE` or `--option=VALUE`; None where it is another word."""
    name, is_joined, value = word.partition("=")
    if name != option:
        return None
    if is_joined:
        return value
    value = next(after, "-")
    return (
        None if value.startswith("-") else value
    )  # a mistake, or something to think about: the whole command's
