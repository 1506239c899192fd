"""`fsck`: what this agent keeps, held against itself, and the mends that lose nothing.

What is wrong is judged in `agent/fsck/`; here it is looked at, printed and mended. How is in `fsck_state.py`.
"""

import os
from collections.abc import Sequence
from typing import Annotated

import typer
from msgspec import Struct

from agent.cli.doctor_patient import meet, owner_file
from agent.cli.files import as_owner_of
from agent.cli.fsck_state import Look, State, mend_all
from agent.cli.here import here_of
from agent.cli.lines import show, show_sum
from agent.cli.out import JsonFlag, print_json
from agent.doctor import lines
from agent.fsck.findings import Finding


class Report(Struct, frozen=True):
    """What `--json` prints. `not_judged`: what could not be looked at, with the reason: services run, or something is away."""

    is_stopped: bool
    findings: tuple[Finding, ...]
    mended: tuple[Finding, ...]
    not_judged: tuple[str, ...]


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(fsck)


def fsck(
    context: typer.Context,
    mend: Annotated[
        bool, typer.Option("--mend", help="Do the mends that lose nothing; what a person must decide stays.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Hold everything this agent keeps against itself: ledger, queues, receipts, folders, containers, images.

    As root, or as the agent's user; while services run, or not: then more is judged. Exit code 1 when something does not
    agree, and was not mended.
    """
    from agent.wiring_state import alone

    here = here_of(context)
    owned, is_root = owner_file(here.settings), os.geteuid() == 0
    with as_owner_of(owned):
        patient = meet(here, owned, by_root=is_root, is_quick=True)
        with alone(patient.settings) as is_stopped:
            seen = Look(patient, is_stopped=is_stopped).state()
            mended = mend_all(seen, patient) if mend else ()
    left = tuple(finding for finding in seen.findings if finding not in mended)
    if as_json:
        print_json(Report(is_stopped, left, mended, seen.not_judged))
    else:
        _show(left, mended, seen)
    if left:
        raise typer.Exit(1)


def _show(left: Sequence[Finding], mended: Sequence[Finding], seen: State) -> None:
    def line(one: Finding, state: lines.State, mend: str | None) -> lines.Check:
        return lines.Check(group_of(one), one.code, state, f"{one.where}: {one.seen}", mend)

    checks = [line(one, lines.State.OK, None) for one in mended]
    checks += [line(one, lines.State.FAIL, one.mend) for one in left]
    checks += [lines.Check("not judged", "note", lines.State.NOTE, why) for why in seen.not_judged]
    show(sorted(checks, key=lambda check: check.group))
    mends = f", {len(mended)} mended" if mended else ""
    show_sum(f"{len(left)} findings{mends}")


def group_of(finding: Finding) -> str:
    """The heading below which a finding stands."""
    first = finding.code.partition("-")[0]
    named = {
        "queues": "queues",
        "ring": "queues",
        "folder": "folders",
        "file": "folders",
        "container": "containers",
        "containers": "containers",
        "image": "images",
        "images": "images",
    }
    return named.get(first, "ledger")
