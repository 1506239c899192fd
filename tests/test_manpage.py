"""The manual page: it says what the command line knows, the same everywhere, and roff has nothing to complain about."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from agent.cli.app import ExitCode, app
from agent.cli.manpage import page
from tests.test_docs import ROOT

PAGE = page()


def commands(command: Any, words: str = "") -> Iterator[tuple[str, Any]]:
    """(its name below the root, the command) of everything that can be called."""
    for name, one in command.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, f"{words}{name} ")
        else:
            yield f"{words}{name}", one


def written(text: str) -> str:
    """The text as roff has it."""
    return text.replace("-", "\\-")


def test_every_command_has_its_section_with_every_option() -> None:
    sections = {
        part.splitlines()[0]: part for part in PAGE.partition("\n.SH EXIT STATUS\n")[0].split("\n.SS ")[1:]
    }
    known = dict(commands(typer.main.get_command(app)))

    assert sections.keys() == {written(name) for name in known}
    for name, command in known.items():
        told = sections[written(name)]
        for parameter in command.params:
            names = parameter.opts if parameter.param_type_name == "option" else []
            assert all(f"\\fB{written(option)}\\fR" in told for option in names), (name, names)


def test_every_exit_code_is_told() -> None:
    section = PAGE.partition("\n.SH EXIT STATUS\n")[2].partition("\n.SH ")[0]

    assert [int(line[3:-3]) for line in section.splitlines() if line.startswith("\\fB")] == list(ExitCode)


def test_the_page_is_the_same_whoever_writes_it(tmp_path: Path) -> None:
    told = []
    for number, environment in enumerate(
        ({"COLUMNS": "40", "LANG": "C"}, {"PYTHONHASHSEED": "7", "HOME": "/"})
    ):
        out = tmp_path / f"man{number}" / "dc-compute.1"
        subprocess.run(
            [sys.executable, "-m", "agent.devkit.manpage", "--out", out],
            cwd=ROOT,
            env=environment,
            check=True,
        )
        told.append(out.read_text())

    assert told == [PAGE, PAGE]
    assert str(ROOT) not in PAGE
    assert PAGE.isascii()


def test_the_page_goes_to_standard_output() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent.devkit.manpage", "--out", "-"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == PAGE


@pytest.mark.parametrize(
    "command",
    [
        ("groff", "-man", "-ww", "-z", "-Tascii"),
        ("man", "--warnings", "--local-file", "-"),
        ("mandoc", "-Tlint"),
    ],
    ids=lambda command: command[0],
)
def test_no_formatter_complains(command: tuple[str, ...], tmp_path: Path) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]}, which formats manual pages, is not installed")

    done = subprocess.run(command, input=PAGE, capture_output=True, text=True, check=False)

    said = done.stdout if command[0] == "mandoc" else done.stderr
    # A page has no date of its own: the version says how old it is, and the same commands give the same bytes.
    assert [line for line in said.splitlines() if "missing date" not in line] == []
