"""Which agent is meant, and how it is asked: the options that say so, and what they lead to (`home.py`)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.home import Desk, Here, Refused, read_answer, read_file, set_log

__all__ = [
    "AgentOption",
    "Desk",
    "Here",
    "Refused",
    "SetOption",
    "SignOption",
    "here_of",
    "read_answer",
    "read_file",
    "set_log",
]

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="A setting, over agent.toml and the environment; may be repeated.",
    ),
]

AgentOption = Annotated[
    str | None,
    typer.Option(
        "--agent",
        metavar="WHO",
        help="URL, name or key id of an agent of the roster; default: the own agent.",
    ),
]
SignOption = Annotated[
    Path | None, typer.Option("--sign-with", metavar="KEY", help="The orchestrator's key file.")
]


def here_of(context: typer.Context, flags: Sequence[str] | None = None) -> Here:
    """The agent that the global options name, with what `--set` says."""
    found = context.find_object(Here) or Here()
    return replace(found, flags=tuple(flags)) if flags else found
