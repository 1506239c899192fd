"""The root of the command: its pages and its global options. How it ends: `ending.py`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from agent import __version__
from agent.cli import (
    audit,
    audit_log,
    backup,
    bench,
    ca,
    cancel,
    config,
    control,
    data,
    deliveries,
    disk,
    doctor,
    fsck,
    held,
    image,
    keys,
    keys_rotation,
    orders,
    peers,
    policy,
    reload,
    selftest,
    service_commands,
    setup,
    watch,
)
from agent.cli.ending import ExitCode, ended
from agent.cli.here import Here
from agent.cli.out import say

__all__ = ["ExitCode", "app", "run"]


EPILOG = (
    "Exit codes: 0 done · 1 failed or refused · 2 wrong usage or settings · 3 the agent does not answer · "
    "4 verification failed · 5 not in time."
)

app = typer.Typer(
    name="dc-compute",
    help="The compute agent of a storage node: takes signed orders and runs them next to the data.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for page in (
    setup,
    service_commands,
    selftest,
    doctor,
    fsck,
    bench,
    backup,
    orders,
    held,
    cancel,
    control,
    reload,
    watch,
    audit,
    disk,
):
    page.register(app)
keys_rotation.register(keys.app)
for name, group in (
    ("keys", keys.app),
    ("peers", peers.app),
    ("ca", ca.app),
    ("policy", policy.app),
    ("data", data.app),
    ("deliveries", deliveries.app),
    ("image", image.app),
    ("config", config.app),
    ("audit", audit_log.app),
):
    app.add_typer(group, name=name, no_args_is_help=True)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        say(f"dc-compute {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home",
            metavar="DIR",
            help="Folder of the settings. Default: $DC_COMPUTE_HOME, /etc/dc-compute when readable, else the user's.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    context.obj = Here(home)


def run(arguments: Sequence[str]) -> int:
    """The command with these arguments; its exit code. What it prints goes to the process's own streams."""
    return ended(lambda: app(args=list(arguments), prog_name="dc-compute"))
