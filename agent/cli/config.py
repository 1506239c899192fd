"""`config show|check|reference`: what the settings are and where each comes from, whether they hold, what they mean."""

from pathlib import Path
from typing import Annotated, Any

import typer

from agent.cli.config_check import check_all
from agent.cli.here import Here, SetOption, here_of
from agent.cli.lines import show as show_lines
from agent.cli.out import JsonFlag, print_json, print_table, say
from agent.cli.reload import services_of
from agent.config import RELOADED, Effective, Source
from agent.doctor.lines import State
from agent.errors import BadSettings
from agent.pipeline.services import Service

app = typer.Typer(help="The settings: what is in force and why, whether they hold, what there is.")

RESTART, RELOAD = "needs a restart", "needs a reload"
OF_FILES = {Source.DEFAULT, Source.FILE}  # what any process reads alike; the rest is a process's own


@app.command()
def show(context: typer.Context, told: SetOption = None, as_json: JsonFlag = False) -> None:
    """Show the value of each setting, where it comes from, and where a running service has another one.

    Paths of keys are shown, what lies there never.
    """
    here = here_of(context, told)
    read = here.read_settings()
    if read.settings is None:
        raise BadSettings("; ".join(str(mistake) for mistake in read.mistakes))
    running = services_of(here)
    lines = [_line(section, key, here, read, running) for section, key in read.origins]
    if as_json:
        print_json({"home": str(here.home), "settings": lines})
        return
    say(f"settings of {here.home}")
    rows = [
        (f"{one['section']}.{one['key']}", _text(one["value"]), one["from"], "; ".join(one["differs"]))
        for one in lines
    ]
    print_table(("setting", "value", "from~", "running services~"), rows)


@app.command()
def check(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="Settings to check before they are put in place of agent.toml.")
    ] = None,
    roster: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A roster to check before it is put in place.")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A policy to check before it is put in place.")
    ] = None,
    told: SetOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Check everything that a start would check, and start nothing. Every problem is told with what mends it.

    As root, or as the agent's user. Exit code 2 when a service would not start, or not be what it should.
    """
    from agent.cli.app import ExitCode

    lines = check_all(here_of(context, told), file, roster, policy)
    wrong = [line for line in lines if line.state in (State.FAIL, State.WARN)]
    failed = sum(1 for line in lines if line.state is State.FAIL)
    if as_json:
        print_json({"checks": lines})
    else:
        show_lines(wrong)
        say(f"{failed} wrong, {len(wrong) - failed} to mend, {len(lines) - len(wrong)} well")
    if failed:
        raise typer.Exit(ExitCode.USAGE)


@app.command()
def reference(
    as_markdown: Annotated[bool, typer.Option("--markdown", help="As a page, in Markdown.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Print every setting: what it is, its type, range, unit and default, as an agent.toml that changes nothing."""
    from agent.config_reference import markdown, rows, toml_text

    if as_json:
        print_json({"settings": list(rows())})
        return
    for line in (markdown() if as_markdown else toml_text()).splitlines():
        say(line)


def _line(
    section: str, key: str, here: Here, read: Effective, running: tuple[Service, ...]
) -> dict[str, Any]:
    from agent.wiring_reload import plain

    value, origin = plain(getattr(getattr(read.settings, section), key)), read.origins[section, key]
    differs = []
    for one in running:
        has = one.settings.get(section, {}).get(key)
        if has is None:  # it is of another version
            continue
        if has.source not in OF_FILES or origin.source not in OF_FILES:
            if has.value != value:
                differs.append(
                    f"{one.service}: {_text(has.value)} from {has.source} {has.where or ''}".strip()
                )
        elif has.value != value:
            needs = RELOAD if (section, key) in RELOADED else RESTART
            differs.append(f"{one.service}: {_text(has.value)}, {needs}")
    return {"section": section, "key": key, "value": _safe(value), "from": str(origin), "differs": differs}


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(_safe(value))


def _safe(value: object) -> object:
    """No setting holds a secret; one that somebody pasted all the same is not repeated."""
    return "…" if isinstance(value, str) and "-----BEGIN" in value else value
