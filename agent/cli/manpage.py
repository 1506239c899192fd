"""The manual page dc-compute(1), written from the command line's own tree: what `--help` says, for `man`.

`python -m agent.devkit.manpage` is how a build or an installation calls it. The same tree gives the same bytes.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import typer.main

from agent import __version__
from agent.cli.app import EPILOG, app
from agent.config import HOME_VARIABLE, PREFIX, SECTIONS

NAME = "dc-compute"
LINE = 78  # characters of a line of text

FILES = (
    ("/etc/dc-compute/agent.toml", "Settings of the agent of this host; another folder by --home."),
    (
        "/etc/dc-compute/roster.toml",
        "Who is who: orchestrators, agents, storages and owners, with their keys.",
    ),
    ("/etc/dc-compute/policy.toml", "What may run on this host. An empty one admits nothing."),
    ("/var/lib/dc-compute", "Its key, certificate, ledger, queues and images."),
    ("/run/dc-compute", "The operator's socket, and the workspaces of running tasks, in memory."),
    ("~/.config/dc-compute, ~/.local/share/dc-compute", "The same of a user's own agent."),
)
ENVIRONMENT = (
    (HOME_VARIABLE, "The folder of the settings, where --home names none."),
    (
        f"{PREFIX}SECTION_KEY",
        f"A setting over the file's: {PREFIX}LISTEN_PORT is `port` of [listen]. Sections: {', '.join(SECTIONS)}.",
    ),
    ("XDG_RUNTIME_DIR", "Where the socket and the workspaces of a user's own agent lie."),
    ("NO_COLOR, COLUMNS", "No colours; how wide tables are."),
)
VALUES: Mapping[type, str] = {int: "N", float: "N", Path: "PATH", datetime: "TIME"}
ALSO = ("podman(1)", "runc(8)", "systemctl(1)", "journalctl(1)")


def page() -> str:
    """The whole page in roff, with the macros of man(7)."""
    root = typer.main.get_command(app)
    lines = [
        '.\\" Written by agent/cli/manpage.py from the commands themselves: change those.',
        f'.TH {NAME.upper()} 1 "" "{NAME} {__version__}" "User Commands"',
        ".SH NAME",
        f"{NAME} \\- {_text('the compute agent of a storage node')}",
        ".SH SYNOPSIS",
        *_synopsis(NAME, root),
        ".SH DESCRIPTION",
        *_paragraphs(root.help or ""),
        ".SH OPTIONS",
        *_parameters(root),
        ".SH COMMANDS",
        *(line for words, command in _commands(NAME, root) for line in _section(words, command)),
        ".SH EXIT STATUS",
        *_exit_codes(),
        ".SH ENVIRONMENT",
        *_terms(ENVIRONMENT),
        ".SH FILES",
        *_terms(FILES),
        ".SH SEE ALSO",
        *_see_also(),
    ]
    return "\n".join(lines) + "\n"


def _commands(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    """(how it is called, the command) of everything that can be called, group by group."""
    for name, one in command.commands.items():
        if one.hidden:
            continue
        if hasattr(one, "commands"):
            yield from _commands(f"{words} {name}", one)
        else:
            yield f"{words} {name}", one


def _section(words: str, command: Any) -> Iterator[str]:
    yield f".SS {_text(words.removeprefix(f'{NAME} '))}"
    yield from _synopsis(words, command)
    yield ".PP"
    yield from _paragraphs(command.help or "")
    yield from _parameters(command)


def _synopsis(words: str, command: Any) -> Iterator[str]:
    parts = [f"\\fB{_text(words)}\\fR"]
    if hasattr(command, "commands"):
        parts.append("[\\fIOPTIONS\\fR] \\fICOMMAND\\fR [\\fIARGUMENTS\\fR]")
    else:
        shown = [one for one in command.params if not one.hidden and one.name != "help"]
        for one in (one for one in shown if one.param_type_name == "option" and one.required):
            parts.append(f"\\fB{_text(one.opts[0])}\\fR \\fI{_text(_value_of(one))}\\fR")
        if any(one.param_type_name == "option" and not one.required for one in shown):
            parts.append("[\\fIOPTIONS\\fR]")
        for one in (one for one in shown if one.param_type_name == "argument"):
            name = f"\\fI{_text(_value_of(one))}\\fR{' ...' if one.nargs != 1 else ''}"
            parts.append(name if one.required else f"[{name}]")
    yield " ".join(parts)


def _parameters(command: Any) -> Iterator[str]:
    arguments = [one for one in command.params if one.param_type_name == "argument" and not one.hidden]
    options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    for one in arguments:
        yield from _term(f"\\fI{_text(_value_of(one))}\\fR", one.help or "")
    for one in options:
        names = ", ".join(f"\\fB{_text(name)}\\fR" for name in (*one.opts, *one.secondary_opts))
        value = "" if one.is_flag else f" \\fI{_text(_value_of(one))}\\fR"
        yield from _term(names + value, f"{one.help or ''}{_default_of(one)}")


def _value_of(parameter: Any) -> str:
    """How the value of an option or argument is called."""
    if parameter.metavar:
        return str(parameter.metavar)
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    told = parameter.type_descriptor
    if told.is_choice:
        return "|".join(told.choices)
    kind = told.annotation
    return VALUES.get(get_args(kind)[0] if told.is_list else kind, "TEXT")


def _default_of(parameter: Any) -> str:
    default = parameter.default
    is_told = isinstance(default, str | int | float) and not isinstance(default, bool)
    return f" Default: {default}." if is_told and "Default" not in (parameter.help or "") else ""


def _exit_codes() -> Iterator[str]:
    """The codes of the epilog: `0 done · 1 failed …`."""
    told = EPILOG.partition(": ")[2].rstrip(".")
    for part in told.split(" · "):
        code, _, meaning = part.partition(" ")
        yield from _term(f"\\fB{code}\\fR", meaning)


def _terms(rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    for name, meaning in rows:
        yield from _term(f"\\fB{_text(name)}\\fR", meaning)


def _see_also() -> Iterator[str]:
    for number, name in enumerate(ALSO, 1):
        title, _, section = name.partition("(")
        yield f".BR {title} ({section}{',' if number < len(ALSO) else ''}"


def _term(head: str, text: str) -> Iterator[str]:
    yield ".TP"
    yield head
    yield from _lines(text)


def _paragraphs(text: str) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".PP"
        yield from _lines(paragraph)


def _lines(text: str) -> Iterator[str]:
    """Each sentence on lines of its own, as roff wants it; words between backticks are bold."""
    for sentence in re.split(r"(?<=[.:;]) (?=[A-Z])", " ".join(text.split())):
        parts = re.split(r"`([^`]*)`", sentence)
        made = "".join(f"\\fB{_text(p)}\\fR" if n % 2 else _text(p) for n, p in enumerate(parts))
        for line in textwrap.wrap(made, LINE, break_long_words=False, break_on_hyphens=False):
            yield f"\\&{line}" if line.startswith((".", "'")) else line


def _text(text: str) -> str:
    """Text that roff prints as it stands, in letters that every device has."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    for character, name in (
        ("’", "'"),
        ("“", "\\(lq"),
        ("”", "\\(rq"),
        ("…", "..."),
        ("·", "\\(pc"),
        ("→", "\\(->"),
    ):
        escaped = escaped.replace(character, name)
    return escaped


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page to a file (docs/man/dc-compute.1 of this checkout, or `--out`); `-` is standard output."""
    parser = argparse.ArgumentParser(prog="python -m agent.devkit.manpage", description=__doc__)
    default = Path(__file__).resolve().parents[2] / "docs" / "man" / f"{NAME}.1"
    parser.add_argument("--out", type=Path, default=default, help="the file; - is standard output")
    out = parser.parse_args(arguments).out
    if str(out) == "-":
        sys.stdout.write(page())
        return 0
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
