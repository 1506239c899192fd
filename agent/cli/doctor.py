"""`doctor`: looks at this host as the agent's user would meet it, and says line by line what is well and what to mend.

Whom it looks at is in `doctor_patient.py`, how in `doctor_sections.py`; what a line says is decided in `agent/doctor/`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from msgspec import Struct

from agent import __version__
from agent.cli import doctor_sections as sections
from agent.cli.doctor_patient import STRANGE, Patient, meet, owner_file
from agent.cli.files import as_owner_of
from agent.cli.here import here_of
from agent.cli.lines import show, show_sum
from agent.cli.out import JsonFlag, print_json
from agent.doctor.lines import Check, State
from agent.errors import AgentError
from agent.pipeline.checkup import Checkup, Finding, keep_checkup

Section = Callable[[Patient], Iterable[Check]]

# What is looked at, in this order. One more section is one more function here; what it cannot read, it raises or says.
SECTIONS: list[Section] = [
    sections.look_at_versions,
    sections.look_at_user_ids,
    sections.look_at_kernel_settings,
    sections.look_at_ceilings,
    sections.look_at_podman,
    sections.look_at_memory,
    sections.look_at_files,
    sections.look_at_trust,
    sections.look_at_clock,
    sections.look_at_disk,
    sections.look_at_others,
    sections.look_at_units,
    sections.look_at_services,
    sections.look_at_selftest,
]


class Report(Struct, frozen=True):
    """What `--json` prints."""

    checks: list[Check]


# ------------------------------------------------------------------ the command


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(doctor)


def doctor(
    context: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="Of the self-test only what a worker tries at its start.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Look at this host and tell what is well, what is not, and the command that mends it.

    As root, or as the agent's user. Nothing is changed. At the end hostile code is run in the real cage. Exit code 1
    when a line fails. What was found is kept for the status page.
    """
    here = here_of(context)
    owned, is_root = owner_file(here.settings), os.geteuid() == 0
    checks: list[Check] = []
    with as_owner_of(owned):
        patient = meet(here, owned, by_root=is_root, is_quick=quick)
        for lines in examine(patient):
            checks += lines
            if not as_json:
                show(lines)
        keep(checks, here.settings.paths.data)
    if as_json:
        print_json(Report(checks))
    else:
        show_sum(sum_of(checks))
    if any(check.state is State.FAIL for check in checks):
        raise typer.Exit(1)


def keep(checks: Sequence[Check], folder: Path) -> None:
    """Keep the lines where the status page finds them; where that is not possible, the page tells of the run before."""
    found = tuple(Finding(one.group, one.name, one.state, one.seen, one.mend) for one in checks)
    with suppress(OSError):
        keep_checkup(Checkup(datetime.now(UTC), __version__, found), folder)


def examine(patient: Patient) -> Iterator[list[Check]]:
    """The lines of each section. One that meets what nobody foresaw gives a note, and the next one begins."""
    for section in SECTIONS:
        try:
            yield list(section(patient))
        except STRANGE as cause:
            why = cause.detail if isinstance(cause, AgentError) else f"{type(cause).__name__}: {cause}"[:200]
            name = section.__name__.removeprefix("look_at_").replace("_", " ")
            yield [Check(name, name, State.NOTE, f"cannot tell: {why}")]


def sum_of(checks: Sequence[Check]) -> str:
    """How many of each."""
    told = {state: sum(1 for check in checks if check.state is state) for state in State}
    return f"{told[State.FAIL]} failed, {told[State.WARN]} to mend, {told[State.NOTE]} not judged, {told[State.OK]} well"
