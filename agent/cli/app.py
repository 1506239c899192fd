"""The root of the command: global options, exit codes, and errors as two lines on standard error."""

import sys
from collections.abc import Sequence
from enum import IntEnum
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
    services,
    setup,
    watch,
)
from agent.cli.here import Here, Refused
from agent.cli.out import complain, say
from agent.errors import AgentError, AgentUnreachable, BadSettings, PeerUnavailable


class ExitCode(IntEnum):
    """What the exit code says."""

    OK = 0
    FAILED = 1  # the thing that was asked for failed, or was refused
    USAGE = 2  # the command line or the settings are wrong
    UNREACHABLE = 3  # the agent does not answer
    NOT_VERIFIED = 4  # a chain, an order or a model does not hold
    NOT_YET = 5  # what was waited for did not come in time; it goes on by itself


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
    services,
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
    try:
        app(args=list(arguments), prog_name="dc-compute")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(ExitCode.FAILED if end.code else ExitCode.OK)
    except Refused as refusal:
        complain(refusal.code, str(refusal), refusal.advice)
        return ExitCode.FAILED
    except AgentError as error:
        complain(error.code, error.detail, error.advice)
        return _exit_code(error)
    except BrokenPipeError:  # who read our output has seen enough
        sys.stderr.close()
        return ExitCode.OK
    return ExitCode.OK


def _exit_code(error: AgentError) -> ExitCode:
    match error:
        case BadSettings():
            return ExitCode.USAGE
        case AgentUnreachable() | PeerUnavailable():
            return ExitCode.UNREACHABLE
        case _:
            return ExitCode.FAILED
