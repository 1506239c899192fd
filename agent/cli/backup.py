"""`backup`, `restore`: the ledger as a file, copied while it lives and put back while nothing runs."""

import os
from pathlib import Path
from typing import Annotated

import typer

from agent.cli.doctor_patient import owner_file
from agent.cli.files import as_owner_of
from agent.cli.here import here_of
from agent.cli.out import JsonFlag, print_json, say, size, when
from agent.errors import BadSettings


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(backup)
    app.command()(restore)


def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the copy is to lie.")],
    force: Annotated[bool, typer.Option("--force", help="Take the place of a file that is there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Copy the ledger to FILE while the agent works: one file, mode 0600, whole or not at all.

    It holds orders, receipts, jobs, what is still to be told, rulings, the log of events, and what jobs printed, sealed. It
    holds no key, no settings, no queue and no workspace: copy the key apart, the rest makes itself anew.
    """
    from agent.wiring_state import back_up

    written = back_up(here_of(context).settings, file.absolute(), overwrite=force)
    if as_json:
        print_json(written)
        return
    say(f"{written.path}: {size(written.size_bytes)}, {written.digest}")
    say(
        f"agent {written.backup.agent}, schema {written.backup.revision}, {written.orders} orders, "
        f"{written.open_jobs} jobs under way at {when(written.backup.made_at)} UTC"
    )


def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `dc-compute backup` wrote.")],
    as_json: JsonFlag = False,
) -> None:
    """Put a backup in the ledger's place, while no service runs. The ledger that lies there is kept in a folder beside it.

    The agent then starts in the mode `restored`: nothing runs or leaves before its orchestrators told what they know.
    """
    from agent import wiring_state

    settings, uid = here_of(context).settings, os.getuid()
    try:
        opened = file.open("rb")
    except OSError as cause:
        raise BadSettings(f"{file} cannot be read: {cause.strerror}") from cause
    with opened, as_owner_of(owner_file(settings)):
        restored = wiring_state.restore(settings, opened, uid)
    if as_json:
        print_json(restored)
        return
    say(f"the ledger is that of {when(restored.backup.made_at)} UTC, and its mode is `restored`")
    say(f"{restored.open_jobs} jobs and {restored.pending_deliveries} deliveries are under way in it")
    say(f"requests signed until {when(restored.restore.signed_after)} UTC are refused: they may be repeats")
    if restored.kept is not None:
        say(f"the ledger that lay there is kept in {restored.kept}")
