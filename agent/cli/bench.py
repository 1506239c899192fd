"""`bench`: what the agent adds to a bare container on this host, each figure beside its baseline. docs/performance.md."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from agent.cli.out import JsonFlag, print_json, say, warn
from agent.errors import BadSettings, RuntimeUnavailable


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(bench)


def bench(
    parts: Annotated[
        str | None, typer.Option("--parts", metavar="PART,…", help="Only these. Default: every part.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each thing is measured, at most.")] = 15,
    short: Annotated[
        bool, typer.Option("--short", help="Everything once and small, to see it work.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the JSON there too.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure on this host what a task, a hop and the services cost, beside bare containers in the same run.

    For a user without privileges who may run containers (subordinate ids). It starts agents, storages and orchestrators of
    its own and touches no other. Minutes.
    """
    from agent.bench.figures import document
    from agent.bench.machine import about
    from agent.bench.run import PARTS, Asked, lines_of, parts_of, run_parts
    from agent.devkit.podman_service import why_not

    try:
        chosen = PARTS if parts is None else parts_of(parts)
    except ValueError as cause:
        raise BadSettings(str(cause)) from cause
    if lacking := why_not():
        raise RuntimeUnavailable(f"the bench needs {lacking}")
    asked = Asked(parts=chosen, rounds=1 if short else rounds, is_short=short)
    machine = about(asked.commit)
    measured = run_parts(asked, warn)
    found = document(measured, rounds=asked.rounds, is_short=asked.is_short, machine=machine)
    if out is not None:
        out.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    if as_json:
        print_json(found)
        return
    for line in lines_of(measured):
        say(line)
