"""The services started as their units start them, without the command line's libraries: those are a third of their memory.

Only the plain forms are known here, `[--home DIR] serve|work|run [--set SECTION.KEY=VALUE]…`. Whatever else is typed, help and
mistakes too, is the whole command's (`app.py`), which knows the same services by the same names.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from agent.cli import services
from agent.cli.home import Here

SERVICES: Mapping[str, Callable[[Here], None]] = {
    "serve": services.serve,
    "work": services.work,
    "run": services.run,
}


def service_of(arguments: Sequence[str]) -> Callable[[], None] | None:
    """The service that is meant, with its agent; None where the whole command must read these arguments."""
    words = iter(arguments)
    home: Path | None = None
    for word in words:
        if word in SERVICES:
            flags = _values(words, "--set")
            return None if flags is None else partial(SERVICES[word], Here(home, flags=flags))
        value = _value(word, words, "--home")
        if value is None:
            return None
        home = Path(value)
    return None


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
    """What the option that this word begins is given, as `--option VALUE` or `--option=VALUE`; None where it is another word."""
    name, is_joined, value = word.partition("=")
    if name != option:
        return None
    if is_joined:
        return value
    value = next(after, "-")
    return (
        None if value.startswith("-") else value
    )  # a mistake, or something to think about: the whole command's
